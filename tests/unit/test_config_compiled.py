"""The compiled form: made whole or not at all, and used only for the very sources that it was made from.

A tree of one small module stands for podroute, with podroute's own ``config.compiled`` and ``config.compiling``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest

from config import compiling
from config.compiled import DIRECTORY, MODULES, ROOT, STAMP, SUFFIX, SWITCH, directories, fitting, form, library
from config.compiling import CompilingError, compile_all, sources

TOLD = "import toy.sums as s; from config.compiled import form; print(s.total([1, 2]), s.__file__, form().detail)"
COMPILED = re.compile(rf"13 \S+/{DIRECTORY}/\w{{16}}/toy/sums{re.escape(SUFFIX)} mypyc \S+ -O2")

compiles = pytest.mark.skipif(
    shutil.which("cc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="needs a C compiler and Python's headers",
)


class Tree:
    """A tree of ``toy.sums``, which is compiled, and ``toy.constants``, which it imports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = root / DIRECTORY

    def plant(self) -> None:
        for package in ("config", "toy"):
            (self.root / package).mkdir(parents=True)
        for file in ("__init__.py", "compiled.py", "compiling.py"):
            shutil.copy(Path(ROOT, "config", file), self.root / "config")
        self.edit("config/compiled.py", r"MODULES: Final = \([^)]*\)", 'MODULES: Final = ("toy.sums",)')
        shutil.copy(Path(ROOT, "bgp/__init__.py"), self.root / "toy")
        (self.root / "toy/constants.py").write_text("from typing import Final\n\nFIRST: Final = 10\n")
        (self.root / "toy/sums.py").write_text(
            "from toy.constants import FIRST\n\n\ndef total(of: list[int]) -> int:\n    return FIRST + sum(of)\n"
        )

    def edit(self, path: str, old: str, new: str) -> None:
        text, count = re.subn(old, new, (self.root / path).read_text())
        assert count == 1
        (self.root / path).write_text(text)

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in (SWITCH, "CC")}
        return {**kept, "PYTHONPATH": str(self.root), **more}

    def told(self, **environment: str) -> str:
        """Return the sum, where its module came from, and by what it was compiled or why it was not."""
        command = [sys.executable, "-c", TOLD]
        # Not from the tree: neither form may depend on where a process was started.
        return subprocess.run(
            command, cwd="/", env=self.environment(environment), capture_output=True, text=True, check=True
        ).stdout.strip()

    def compiling(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "config.compiling"],
            cwd="/",
            env=self.environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def compile(self, **environment: str) -> str:
        done = self.compiling(**environment)
        output, errors = done.communicate()
        assert done.returncode == (1 if errors else 0), errors
        return output + errors

    def forms(self) -> list[str]:
        return directories(str(self.root))

    def unfinished(self) -> list[Path]:
        return list(self.place.glob("unfinished-*"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    tree = Tree(tmp_path_factory.mktemp("compiled") / "tree")
    tree.plant()
    assert " 1 modules compiled in " in tree.compile()
    return tree


@pytest.fixture
def made(planted: Tree, tmp_path: Path) -> Tree:
    """Return a tree whose form is compiled."""
    shutil.copytree(planted.root, tmp_path / "tree")
    return Tree(tmp_path / "tree")


@pytest.fixture
def bare(tmp_path: Path) -> Tree:
    """Return a tree that was never compiled."""
    tree = Tree(tmp_path / "tree")
    tree.plant()
    return tree


def plain(tree: Tree, why: str, total: int = 13) -> str:
    return f"{total} {tree.root}/toy/sums.py {why}"


STALE = "the sources are others than those compiled"


@compiles
def test_it_is_used_wherever_its_tree_lies(made: Tree, planted: Tree) -> None:
    assert COMPILED.fullmatch(made.told())
    assert made.told().startswith(f"13 {made.root}/"), "and not the other tree's, of the same sources"
    assert planted.told().startswith(f"13 {planted.root}/")


@compiles
def test_what_is_compiled_already_is_not_compiled_again(made: Tree) -> None:
    before = sorted(made.place.rglob("*"))
    assert " 1 modules compiled already: " in made.compile(CC="/no/compiler")
    assert sorted(made.place.rglob("*")) == before


@compiles
def test_a_source_that_changed_is_never_passed_over(made: Tree) -> None:
    source = made.root / "toy/sums.py"
    before = source.stat()
    made.edit("toy/sums.py", r"FIRST \+", "FIRST -")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert made.told() == plain(made, STALE, 7), "though it is as long and as old as it was"
    made.edit("toy/sums.py", "FIRST -", "FIRST +")
    os.utime(source)
    assert COMPILED.fullmatch(made.told()), "it reads as it did"


@compiles
def test_nor_is_one_that_was_not_compiled_itself(made: Tree) -> None:
    made.edit("toy/constants.py", "10", "20")
    assert made.told() == plain(made, STALE, 23), "mypyc has written the 10 into the code"


@compiles
def test_nor_is_one_that_went(made: Tree) -> None:
    (made.root / "toy/constants.py").rename(made.root / "toy/constant.py")
    assert fitting(str(made.root), made.forms()) is None


@compiles
@pytest.mark.parametrize(("value", "used"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_plain_python_can_be_had_by_a_switch(made: Tree, value: str, used: bool) -> None:
    told = made.told(PODROUTE_PURE=value)
    assert COMPILED.fullmatch(told) if used else told == plain(made, "PODROUTE_PURE is set")


@compiles
@pytest.mark.parametrize("line", ["suffix .cpython-399-x86_64-linux-gnu.so", "suffix", ""])
def test_another_pythons_is_not_used(made: Tree, line: str) -> None:
    (form,) = made.forms()
    made.edit(f"{form}/{STAMP}", f"suffix {re.escape(SUFFIX)}\n", line)
    assert made.told() == plain(made, STALE)


@compiles
def test_one_that_cannot_be_loaded_is_not_used(made: Tree) -> None:
    (form,) = made.forms()
    Path(form, library(form) + SUFFIX).write_text("for another machine")
    assert made.told().startswith(plain(made, "cannot be loaded: "))


@compiles
def test_of_two_runs_at_once_one_makes_what_another_mypyc_had_made(made: Tree) -> None:
    (form,) = made.forms()
    made.edit(f"{form}/{STAMP}", "mypyc .*", "mypyc 0.1 -O2")
    Path(form).rename(made.place / "0123456789abcdef")
    runs = [made.compiling() for _ in range(2)]
    said = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert sorted("compiled in" in output for output, _ in said) == [False, True], "the second finds it done"
    assert made.forms() == [form]
    assert COMPILED.fullmatch(made.told())


@compiles
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_leaves_what_was_there(made: Tree, tmp_path: Path, number: signal.Signals) -> None:
    (before,) = made.forms()
    made.edit("toy/sums.py", r"FIRST \+", "FIRST -")
    reached, compiler = tmp_path / "reached", tmp_path / "cc"
    os.mkfifo(reached)
    compiler.write_text(f"#!/bin/sh\n: > {reached}\nexec sleep 600\n")
    compiler.chmod(0o755)
    run = made.compiling(CC=str(compiler))
    try:
        reached.read_text()
        assert made.unfinished()
        assert made.told() == plain(made, STALE, 7)
    finally:
        os.killpg(run.pid, number)
        run.communicate()
    assert run.returncode
    assert made.forms() == [before]
    assert bool(made.unfinished()) == (number == signal.SIGKILL)
    made.edit("toy/sums.py", "FIRST -", "FIRST +")
    assert COMPILED.fullmatch(made.told())
    assert " compiled already: " in made.compile()
    assert not made.unfinished(), "the next run takes it away"


@compiles
def test_what_the_compiler_says_is_passed_on(bare: Tree, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no space left >&2\nexit 3\n")
    compiler.chmod(0o755)
    assert bare.compile(CC=str(compiler)).endswith("\nno space left\n")
    assert not bare.forms()
    assert not bare.unfinished()


def test_types_that_are_wrong_are_told(bare: Tree) -> None:
    bare.edit("toy/sums.py", r"FIRST \+ sum\(of\)", "''")
    assert "toy/sums.py:5: error: Incompatible return value type" in bare.compile()
    assert not bare.forms()


def test_without_a_compiler_it_says_what_to_install(bare: Tree, tmp_path: Path) -> None:
    assert bare.compile(PATH=str(tmp_path)) == (
        "podroute cannot be compiled, and runs as plain Python: there is no C compiler: "
        "install it (Debian: `apt-get install gcc libc6-dev python3-dev`)\n"
    )
    assert bare.told() == plain(bare, "nothing was compiled")


def test_without_pythons_headers_too(bare: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "true")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(CompilingError, match=r"no /nowhere/Python\.h: install it \(Debian: .*python3-dev"):
        compile_all(bare.root)
    assert not bare.forms()


@compiles
def test_a_source_that_changes_meanwhile(bare: Tree, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\necho >> {bare.root}/toy/constants.py\nfor last; do :; done\n: > "$last"\n')
    compiler.chmod(0o755)
    assert " compiled in " in bare.compile(CC=str(compiler))
    assert bare.told() == plain(bare, STALE)


def test_the_stamp_covers_every_compiled_module_and_what_it_imports() -> None:
    covered = set(sources(Path(ROOT)))
    assert {module.replace(".", "/") + ".py" for module in MODULES} < covered
    assert {"config/compiled.py", "config/prefix.py", "bgp/messages.py", "bgp/paths.py"} < covered
    assert all(Path(ROOT, path).exists() for path in covered)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_on_the_list_comes_in_the_form_that_runs(module: str) -> None:
    path = module.replace(".", "/")
    directory = form().directory
    assert import_module(module).__file__ == (f"{directory}/{path}{SUFFIX}" if directory else f"{ROOT}/{path}.py")


def test_old_forms_go(bare: Tree) -> None:
    for age in range(9):
        form = bare.place / f"{age:016}"
        form.mkdir(parents=True)
        (form / STAMP).write_text("")
        os.utime(form, (1000 - age, 1000 - age))
    compiling.tidy(bare.root)
    assert [Path(form).name for form in bare.forms()] == ["0" * 16, f"{1:016}", f"{2:016}"]
