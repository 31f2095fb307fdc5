"""Compiles the hot modules with mypyc, where there is a C compiler: ``python -m config.compiling``, or `make compiled`.

A form is made in a directory of its own and gets its name when it is whole and on disk: an interrupted run leaves
nothing that would be used, and an agent that runs keeps what it has loaded. Of two runs at once the second waits, and
finds the work done.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import io
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from importlib.util import source_hash
from pathlib import Path
from typing import Any, Final

from config.compiled import DIRECTORY, MODULES, ROOT, STAMP, SUFFIX, directories, fitting, library, text_digest

_OPTIMISATION: Final = "2"
_MYPY: Final = ("--config-file=", "--cache-dir=/dev/null", "--ignore-missing-imports", "--follow-imports=silent")
"""Options of mypy: what is compiled depends on the sources, not on where they lie and what was checked before."""
_KEPT: Final = 3
"""Forms that stay: agents may still import from the last but one, and branches be switched."""
_UNFINISHED: Final = "unfinished-"


class CompilingError(Exception):
    """The modules cannot be compiled; the text says what is missing, or what the compiler said."""


def compile_all(root: Path) -> tuple[Path, bool]:
    """Return the form that fits the sources, and whether it was made now. Raises CompilingError."""
    place = root / DIRECTORY
    place.mkdir(exist_ok=True)
    with _alone(place):
        made = fitting(str(root), directories(str(root)))
        if made is not None and _compiler() in (Path(made) / STAMP).read_text().splitlines():
            os.utime(made)
            return Path(made), False
        form = _make(root, place)
        if made is not None and form != Path(made):
            shutil.rmtree(made)
        tidy(root)
        return form, True


def tidy(root: Path) -> None:
    """Remove all forms but the last few that were made or asked for."""
    forms = sorted(directories(str(root)), key=os.path.getmtime, reverse=True)
    for old in forms[_KEPT:]:
        shutil.rmtree(old)


def sources(root: Path, modules: Sequence[str] = MODULES) -> list[str]:
    """Return the paths below ``root`` of all sources that decide what the compiled modules do.

    Those are the modules themselves and whatever of the same packages they import, directly or not: mypyc goes by its
    types, and writes its constants into the code.
    """
    packages = {"config", *(module.partition(".")[0] for module in modules)}
    waiting, found = ["config.compiled", *modules], set[str]()
    while waiting:
        name = waiting.pop()
        if name.partition(".")[0] not in packages:
            continue
        path = Path(*name.split("."))
        path = path / "__init__.py" if (root / path).is_dir() else path.with_suffix(".py")
        if str(path) in found or not (root / path).exists():
            continue
        found.add(str(path))
        waiting.append(name.rpartition(".")[0])
        for node in ast.walk(ast.parse((root / path).read_bytes())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return sorted(found)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Be the only run below ``place``, and remove what killed ones left."""
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in place.glob(_UNFINISHED + "*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _compiler() -> str:
    try:
        return f"compiler mypyc {version('mypy')} -O{_OPTIMISATION}"
    except PackageNotFoundError:
        raise CompilingError("mypyc is not installed: `pip install mypy setuptools`") from None


def _make(root: Path, place: Path) -> Path:
    command = _c_compiler()
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=place) as directory:
        copy, objects, whole = (Path(directory, name) for name in ("sources", "objects", "whole"))
        # What is edited meanwhile is not what is compiled; and mypy sees nothing that lies beside the sources.
        for path in sources(root):
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, copy / path)
        stamp = _stamp(copy)
        digest = source_hash(stamp.encode()).hex()
        extensions = _translate(copy, objects, library(digest).removesuffix("__mypyc"))
        _build(command, extensions, objects, whole)
        (whole / STAMP).write_text(stamp)
        for file in (*whole.rglob("*.so"), whole / STAMP):
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        form = place / digest
        shutil.rmtree(form, ignore_errors=True)
        whole.rename(form)
    return form


def _stamp(root: Path) -> str:
    lines = [_compiler(), f"suffix {SUFFIX}"]
    lines += (f"{path} {text_digest(str(root / path))}" for path in sources(root))
    return "\n".join(lines) + "\n"


def _c_compiler() -> list[str]:
    """Return the C compiler's command. Raises CompilingError where it or Python's headers are missing."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(command[0]) is None:
        command = ["cc"]
    if shutil.which(command[0]) is None:
        raise CompilingError("there is no C compiler: install it (Debian: `apt-get install gcc libc6-dev python3-dev`)")
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        raise CompilingError(f"there is no {include}/Python.h: install it (Debian: `apt-get install python3-dev`)")
    return [*command, "-fPIC", "-fwrapv", "-DNDEBUG", "-fvisibility=hidden", f"-I{include}"]


def _translate(root: Path, directory: Path, group: str) -> list[Any]:
    """Write the modules as C below ``directory``; return what is to be built of it, as setuptools' Extensions."""
    try:
        from mypyc.build import mypycify
    except ImportError as error:
        raise CompilingError(f"mypyc is not installed ({error}): `pip install mypy setuptools`") from None
    paths = [module.replace(".", "/") + ".py" for module in MODULES]
    said = io.StringIO()
    try:
        with contextlib.chdir(root), contextlib.redirect_stdout(said):
            return mypycify(
                [*_MYPY, *paths],
                opt_level=_OPTIMISATION,
                debug_level="0",
                multi_file=True,
                target_dir=str(directory),
                group_name=group,
            )
    except SystemExit as error:
        raise CompilingError(said.getvalue() + str(error.code)) from None


def _build(command: Sequence[str], extensions: Sequence[Any], objects: Path, output: Path) -> None:
    """Compile and link, as many files at a time as there are processors. Raises CompilingError with what was said."""

    def compiled(job: tuple[Any, str]) -> str:
        extension, source = job
        made = str(objects / (source.replace("/", "_") + ".o"))
        includes = [f"-I{directory}" for directory in extension.include_dirs]
        _run([*command, *extension.extra_compile_args, "-Wno-error", *includes, "-c", source, "-o", made])
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            made = [pool.map(compiled, [(one, source) for source in one.sources]) for one in extensions]
            for one, parts in zip(extensions, made, strict=True):
                target = output / (one.name.replace(".", "/") + SUFFIX)
                target.parent.mkdir(parents=True, exist_ok=True)
                _run([*command, "-shared", *parts, "-o", str(target)])
        finally:
            pool.shutdown(cancel_futures=True)


def _run(command: Sequence[str]) -> None:
    run = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if run.returncode:
        raise CompilingError(f"{shlex.join(command)}\n{run.stderr.strip()}")


def main() -> None:
    began = time.monotonic()
    try:
        form, new = compile_all(Path(ROOT))
    except (CompilingError, OSError) as error:
        sys.exit(f"podroute cannot be compiled, and runs as plain Python: {error}")
    took = f"compiled in {time.monotonic() - began:.0f} s" if new else "compiled already"
    sys.stdout.write(f"  {len(MODULES)} modules {took}: {form}\n")


if __name__ == "__main__":
    main()
