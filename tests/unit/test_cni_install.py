"""Installing the plugin: whole files, nobody else's overwritten, an interpreter that is one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from cni import compiled
from cni.commands import cni_commands, settings_of
from cni.install import InstallError, InstallSettings, Kind, choose_interpreter, install, render_plugin, uninstall


@pytest.fixture
def settings(tmp_path: Path) -> InstallSettings:
    return InstallSettings(
        tmp_path / "run" / "cni.sock", tmp_path / "notes", tmp_path / "opt" / "bin", tmp_path / "etc" / "net.d"
    )


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Compiling takes half a second: only what is about that does it."""
    with monkeypatch.context() as host:
        host.setattr(compiled, "READY", tmp_path / "plugin.elf")
        host.setenv("PATH", "")
        yield host


def test_writes_binary_and_conflist(settings: InstallSettings) -> None:
    first, second = install(settings)
    assert first.startswith(f"wrote {settings.binary} (")
    assert second == f"wrote {settings.conflist}"
    assert settings.binary.stat().st_mode & 0o777 == 0o755
    assert settings.conflist.stat().st_mode & 0o777 == 0o644
    assert settings.notes.stat().st_mode & 0o777 == 0o700
    conflist = json.loads(settings.conflist.read_text())
    assert conflist["name"] == "podroute"
    assert conflist["cniVersion"] == "1.0.0"
    assert conflist["cniVersions"] == ["1.0.0", "1.1.0"]
    assert [plugin["type"] for plugin in conflist["plugins"]] == ["podroute"]
    assert conflist["plugins"][0]["capabilities"] == {"ips": True, "mac": True, "dns": True}


def test_the_plugin_names_an_interpreter_and_the_agents_paths(settings: InstallSettings) -> None:
    install(settings, plugin="python")
    lines = settings.binary.read_text().splitlines()
    assert lines[0] == f"#!{choose_interpreter()} -IS"
    assert f"#: SOCKET = {str(settings.socket)!r}" in lines
    assert f"#: NOTES = {str(settings.notes)!r}" in lines
    compile(settings.binary.read_text(), "plugin", "exec")


def test_again_replaces_what_it_wrote_while_it_runs(settings: InstallSettings) -> None:
    install(settings)
    with settings.binary.open() as running:
        before = os.fstat(running.fileno()).st_ino
        install(settings)
        assert settings.binary.stat().st_ino != before
        assert os.fstat(running.fileno()).st_size
    assert sorted(path.name for path in settings.bin_dir.iterdir()) == ["podroute"]


@pytest.mark.parametrize("which", ["binary", "conflist"])
def test_what_it_did_not_write_stays(settings: InstallSettings, which: str) -> None:
    path: Path = getattr(settings, which)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(InstallError, match="was not written by podroute"):
        install(settings)
    with pytest.raises(InstallError, match="--force would remove it"):
        uninstall(settings)
    assert path.read_text() == "{}"
    others = {settings.binary, settings.conflist} - {path}
    assert not any(other.exists() for other in others)
    install(settings, force=True)
    assert path.read_bytes() != b"{}"


def test_an_operators_change_is_not_overwritten(settings: InstallSettings) -> None:
    install(settings)
    conflist = json.loads(settings.conflist.read_text())
    conflist["plugins"][0]["mtu"] = 9000
    settings.conflist.write_text(json.dumps(conflist))
    with pytest.raises(InstallError, match="or changed since"):
        install(settings)


@pytest.mark.parametrize("plugin", ["python", "compiled"])
def test_uninstall(settings: InstallSettings, plugin: Kind, compiler: pytest.MonkeyPatch) -> None:
    compiler.undo()
    install(settings, plugin=plugin)
    assert uninstall(settings) == [f"removed {settings.conflist}", f"removed {settings.binary}"]
    assert uninstall(settings) == [f"{settings.conflist} was not there", f"{settings.binary} was not there"]


def test_chain(settings: InstallSettings) -> None:
    settings.bin_dir.mkdir(parents=True)
    (settings.bin_dir / "portmap").touch()
    chained = InstallSettings(settings.socket, settings.notes, settings.bin_dir, settings.conf_dir, chain=["portmap"])
    install(chained)
    conflist = json.loads(settings.conflist.read_text())
    assert [plugin["type"] for plugin in conflist["plugins"]] == ["podroute", "portmap"]
    assert conflist["plugins"][1]["capabilities"] == {"portMappings": True}
    assert "cniVersions" not in conflist, "Debian's plugins stop at 1.0.0"


@pytest.mark.parametrize(("name", "text"), [("bandwidth", "not in"), ("bridge", "known are portmap")])
def test_chain_refused(settings: InstallSettings, name: str, text: str) -> None:
    chained = InstallSettings(settings.socket, settings.notes, settings.bin_dir, settings.conf_dir, chain=[name])
    with pytest.raises(InstallError, match=text):
        install(chained)
    assert not settings.binary.exists()


def test_a_network_that_sorts_before_is_pointed_out(settings: InstallSettings) -> None:
    settings.conf_dir.mkdir(parents=True)
    (settings.conf_dir / "05-other.conflist").touch()
    (settings.conf_dir / "00-readme.txt").touch()
    assert "05-other.conflist comes before" in install(settings)[-1]


def test_interpreter_is_a_binary(tmp_path: Path) -> None:
    chosen = choose_interpreter()
    assert Path(chosen).read_bytes()[:4] == b"\x7fELF"
    shim = tmp_path / "python3"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    shim.chmod(0o755)
    with pytest.raises(InstallError, match="is a script"):
        choose_interpreter(str(shim))
    with pytest.raises(InstallError, match="is not an absolute path"):
        choose_interpreter("python3")
    with pytest.raises(InstallError, match="does not start"):
        choose_interpreter(str(tmp_path / "gone"))
    with pytest.raises(InstallError, match="is not Python"):
        choose_interpreter("/bin/false")


def test_what_a_host_without_a_compiler_gets(settings: InstallSettings) -> None:
    assert install(settings)[0].endswith("compiled: there is no `cc`)")
    assert settings.binary.read_bytes().startswith(b"#!")
    with pytest.raises(InstallError, match="cannot be compiled: there is no `cc`"):
        install(settings, plugin="compiled")


def test_what_a_compiler_that_fails_leaves(
    settings: InstallSettings, compiler: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho cannot find -lc >&2\nexit 1\n")
    broken.chmod(0o755)
    compiler.setenv("PATH", str(tmp_path))
    assert "cannot find -lc" in install(settings)[0]
    assert settings.binary.read_bytes().startswith(b"#!")


def test_an_image_without_a_compiler_has_a_program_that_was_compiled_before(
    settings: InstallSettings, compiler: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="cc"):
        compiled.main()
    with pytest.MonkeyPatch.context() as image:
        image.setenv("PATH", "/usr/bin:/bin")
        compiled.main()
    assert install(settings)[0].endswith("(compiled beforehand)")
    code = settings.binary.read_bytes()
    assert code.startswith(b"\x7fELF")
    assert os.fsencode(settings.socket) in code
    assert uninstall(settings)[1] == f"removed {settings.binary}", "known again"
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    compiler.setenv("PATH", str(tmp_path))
    assert install(settings)[0].endswith("(compiled beforehand)")


def test_a_program_that_is_none_of_ours_is_not_filled_in() -> None:
    with pytest.raises(compiled.CompilerError, match="no room"):
        compiled.fill(b"\x7fELF", mark="m", socket=Path("/s"), interpreter="/p", script="")


def test_one_kind_replaces_the_other(settings: InstallSettings, compiler: pytest.MonkeyPatch) -> None:
    compiler.undo()
    for kind, start in (("python", b"#!"), ("compiled", b"\x7fELF"), ("python", b"#!")):
        install(settings, plugin=cast(Kind, kind))
        assert settings.binary.read_bytes().startswith(start)


def test_a_socket_whose_path_is_too_long_to_connect_to(settings: InstallSettings, compiler: pytest.MonkeyPatch) -> None:
    compiler.undo()
    long = replace(settings, socket=Path("/" + "x" * 120))
    with pytest.raises(InstallError, match="a socket's path has at most 107 octets"):
        install(long, plugin="compiled")


def test_no_interpreter_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys, "_base_executable")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InstallError, match=r"/nowhere does not start.*/false is not.*name one with --interpreter"):
        choose_interpreter(preferred="/nowhere")


@pytest.mark.parametrize("interpreter", ["/opt/my python/python3", "/" + "x" * 130])
def test_an_interpreter_line_that_no_kernel_takes(settings: InstallSettings, interpreter: str) -> None:
    with pytest.raises(InstallError, match="an interpreter line"):
        render_plugin(settings, interpreter)


def test_a_directory_that_cannot_be(settings: InstallSettings, tmp_path: Path) -> None:
    (tmp_path / "opt").touch()
    with pytest.raises(InstallError, match="Not a directory"):
        install(settings)


def test_commands(tmp_path: Path) -> None:
    asked: list[str] = []

    def load(config: str) -> InstallSettings:
        asked.append(config)
        return settings_of(
            socket="/run/podroute/cni.sock",
            state_dir=str(tmp_path / "state"),
            bin_dir=str(tmp_path / "bin"),
            conf_dir=str(tmp_path / "net.d"),
        )

    group = cni_commands(load, "/etc/podroute/podroute.yaml")
    installed = CliRunner().invoke(group, ["install"])
    assert installed.exit_code == 0, installed.output
    assert f"wrote {tmp_path}/bin/podroute" in installed.output
    assert (tmp_path / "state" / "cni-deletions").is_dir()
    again = CliRunner().invoke(group, ["install", "--config", "other.yaml", "--chain", "nonsense"])
    assert again.exit_code == 1
    assert again.output.startswith("Error: cannot chain nonsense")
    assert CliRunner().invoke(group, ["uninstall"]).exit_code == 0
    assert asked == ["/etc/podroute/podroute.yaml", "other.yaml", "/etc/podroute/podroute.yaml"]
