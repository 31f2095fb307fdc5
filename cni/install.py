"""Puts the plugin where runtimes look for it, and takes it away again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from cni.compiled import CompilerError, fill, program
from cni.request import LATEST

NETWORK: Final = "podroute"
_STAMP = "podroute.io/written"
_MARK = '# Written by "podroute cni install"; changes are lost at the next one.\n'
_ELF = b"\x7fELF"
_SOURCE_LINE = "#: "
_STUB = """\
import marshal, sys
if sys.hexversion == {0}:
    code = marshal.loads({1})
else:
    with open(__file__) as file:
        lines = [line[len("{source}"):] for line in file if line.startswith("{source}")]
    code = compile("".join(lines), __file__, "exec", optimize=2)
exec(code)
"""
_COMPILE = """\
import marshal, sys
code = compile(sys.stdin.read(), "podroute", "exec", optimize=2, dont_inherit=True)
print(sys.hexversion)
print(marshal.dumps(code))
"""
Kind = Literal["auto", "compiled", "python"]
_SHEBANG_LIMIT = 127
"""Octets of an interpreter line that every supported kernel takes (fs/binfmt_script.c before Linux 5.1)."""

CHAINABLE: Final[Mapping[str, Mapping[str, Any]]] = {
    "portmap": {"capabilities": {"portMappings": True}, "snat": False},
    "bandwidth": {"capabilities": {"bandwidth": True}},
    "tuning": {},
    "firewall": {},
}
"""Plugins of other makers that can stand behind podroute, and what a configuration needs to say of them."""


class InstallError(Exception):
    """Nothing was changed, or not all; the text says why and what would help."""


@dataclass(frozen=True, slots=True)
class InstallSettings:
    socket: Path
    """The agent's."""
    notes: Path
    """Directory for deletions while the agent is away; persistent."""
    bin_dir: Path = Path("/opt/cni/bin")
    conf_dir: Path = Path("/etc/cni/net.d")
    chain: Sequence[str] = field(default=())

    @property
    def binary(self) -> Path:
        return self.bin_dir / "podroute"

    @property
    def conflist(self) -> Path:
        return self.conf_dir / "10-podroute.conflist"


def install(
    settings: InstallSettings, *, force: bool = False, interpreter: str | None = None, plugin: Kind = "auto"
) -> list[str]:
    """Write the plugin and its network configuration list; return lines that say what was done.

    ``plugin``: the one in Python, the one that is compiled, or that one where there is a C compiler, or was.

    The plugin comes first, so that no runtime reads of a plugin that is not there. Both are replaced by renaming: a
    plugin that runs meanwhile keeps its old file. Raises InstallError.
    """
    executable, kind = _render(settings, choose_interpreter(interpreter), plugin)
    conflist = render_conflist(settings)
    if not force:
        for path, ours in ((settings.binary, _is_our_plugin), (settings.conflist, _is_our_conflist)):
            _refuse_foreign(path, ours(path), "overwrite")
    done = [f"{_write(settings.binary, executable, 0o755)} ({kind})", _write(settings.conflist, conflist, 0o644)]
    try:
        settings.notes.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InstallError(f"{settings.notes}: {error.strerror}") from None
    names = sorted(path.name for path in settings.conf_dir.iterdir() if path.suffix in (".conflist", ".conf", ".json"))
    if names[0] != settings.conflist.name:
        done.append(
            f"note: {settings.conf_dir / names[0]} comes before {settings.conflist.name}, "
            "and containerd takes the first network only"
        )
    return done


def uninstall(settings: InstallSettings, *, force: bool = False) -> list[str]:
    """Remove what install wrote, the configuration first; what is not there is fine. Raises InstallError.

    Containers that run keep their network, and lose the plugin that could delete it: stop them first.
    """
    files = ((settings.conflist, _is_our_conflist), (settings.binary, _is_our_plugin))
    if not force:
        for path, ours in files:
            _refuse_foreign(path, ours(path), "remove")
    done = []
    for path, _ in files:
        try:
            path.unlink()
        except FileNotFoundError:
            done.append(f"{path} was not there")
        except OSError as error:
            raise InstallError(f"{path}: {error.strerror}") from None
        else:
            done.append(f"removed {path}")
    return done


def render_plugin(settings: InstallSettings, interpreter: str) -> bytes:
    """Return the executable: ``cni/plugin.py`` with an interpreter line and this node's paths.

    Compiling it at every call would take a tenth of its time, so it carries its code compiled, for the very version of
    the interpreter that is there now, and its source as comments, for people and for a later version. Raises
    InstallError.
    """
    shebang = f"#!{interpreter} -IS\n"
    if len(os.fsencode(shebang)) > _SHEBANG_LIMIT or any(blank in interpreter for blank in " \t\n"):
        raise InstallError(f"{interpreter}: an interpreter line holds no blanks and at most {_SHEBANG_LIMIT} octets")
    source = _script(settings)
    return (
        shebang + _MARK + _STUB.format(*_compiled(source, interpreter), source=_SOURCE_LINE) + _quoted(source)
    ).encode()


def _script(settings: InstallSettings) -> str:
    """Return the Python plugin's text with this node's paths."""
    source = Path(__file__).with_name("plugin.py").read_text(encoding="utf-8")
    for name, path in (("SOCKET", settings.socket), ("NOTES", settings.notes)):
        (line,) = (line for line in source.splitlines() if line.startswith(f"{name} = "))
        source = source.replace(line, f"{name} = {str(path)!r}")
    return source


def _render(settings: InstallSettings, interpreter: str, wanted: Kind) -> tuple[bytes, str]:
    """Return the executable, and of what kind it is, in words."""
    why = "not asked for"
    if wanted != "python":
        try:
            code, how = program()
            executable = fill(
                code, mark=_MARK, socket=settings.socket, interpreter=interpreter, script=_script(settings)
            )
        except CompilerError as error:
            why = str(error)
            if wanted == "compiled":
                raise InstallError(f"the plugin cannot be compiled: {why}") from None
        else:
            return executable, how
    return render_plugin(settings, interpreter), f"Python, run by {interpreter}; compiled: {why}"


def _compiled(source: str, interpreter: str) -> tuple[str, str]:
    """Return version and code as an interpreter sees them, in Python's notation."""
    run = subprocess.run([interpreter, "-ISc", _COMPILE], input=source.encode(), capture_output=True, timeout=30)
    if run.returncode:
        raise InstallError(f"{interpreter} cannot compile the plugin: {run.stderr.decode(errors='replace')}")
    version, _, code = run.stdout.decode().partition("\n")
    return version, code.strip()


def _quoted(source: str) -> str:
    return "".join(f"{_SOURCE_LINE}{line}\n" for line in source.splitlines())


def render_conflist(settings: InstallSettings) -> bytes:
    """Return the network configuration list.

    An older libcni reads ``cniVersion`` and may know nothing newer than 1.0.0; one of 1.1.0 takes the best of
    ``cniVersions``. In a chain all plugins must know the version, and those of Debian 12 stop at 1.0.0.
    """
    unknown = [name for name in settings.chain if name not in CHAINABLE]
    if unknown:
        raise InstallError(f"cannot chain {', '.join(unknown)}: known are {', '.join(CHAINABLE)}")
    missing = [name for name in settings.chain if not (settings.bin_dir / name).exists()]
    if missing:
        raise InstallError(f"cannot chain {', '.join(missing)}: not in {settings.bin_dir}")
    first = {"type": "podroute", "capabilities": {"ips": True, "mac": True, "dns": True}}
    conflist: dict[str, Any] = {"cniVersion": "1.0.0"}
    if not settings.chain:
        conflist["cniVersions"] = ["1.0.0", LATEST]
    conflist["name"] = NETWORK
    conflist["plugins"] = [first, *({"type": name, **CHAINABLE[name]} for name in settings.chain)]
    conflist[_STAMP] = _digest(conflist)
    return (json.dumps(conflist, indent=2) + "\n").encode()


def choose_interpreter(wanted: str | None = None, *, preferred: str = "/usr/bin/python3") -> str:
    """Return the path of a Python that the kernel can start by itself: a binary, not a script that looks for one.

    The system's comes first: it outlives virtual environments, and the runtime starts the plugin without ours; then the
    one that runs this. Raises InstallError.
    """
    if wanted:
        if trouble := _unfit(wanted):
            raise InstallError(f"{wanted} {trouble}")
        return wanted
    base = getattr(sys, "_base_executable", "") or sys.executable
    candidates = [preferred, os.path.realpath(base)]
    troubles = []
    for candidate in candidates:
        trouble = _unfit(candidate)
        if not trouble:
            return candidate
        troubles.append(f"{candidate} {trouble}")
    raise InstallError(f"no interpreter for the plugin: {'; '.join(troubles)}; name one with --interpreter")


def _unfit(interpreter: str) -> str:
    """Return why an interpreter will not do, or nothing."""
    if not os.path.isabs(interpreter):
        return "is not an absolute path"
    try:
        with open(interpreter, "rb") as file:
            if file.read(4) != _ELF:
                return "is a script that starts another program, not an interpreter"
        run = subprocess.run(
            [interpreter, "-IS", "-c", "import _socket, posix, sys; sys.exit(sys.version_info < (3, 9))"],
            capture_output=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not start: {error}"
    return "" if run.returncode == 0 else "is not Python 3.9 or later"


def _write(path: Path, data: bytes, mode: int) -> str:
    """Replace a file's content as a whole, durably."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        file = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fchmod(file, mode)
                os.fsync(file)
            os.replace(hidden, path)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise InstallError(f"{path}: {error.strerror}") from None
    return f"wrote {path}"


def _refuse_foreign(path: Path, ours: bool | None, what: str) -> None:
    if ours is False:
        raise InstallError(f"{path} was not written by podroute, or changed since: --force would {what} it")


def _is_our_plugin(path: Path) -> bool | None:
    """None: there is no file."""
    data = _read(path)
    if data is None:
        return None
    if data.startswith(_ELF):
        return _MARK.encode() in data
    lines = data.split(b"\n", 2)
    return data.startswith(b"#!") and len(lines) > 1 and lines[1] + b"\n" == _MARK.encode()


def _is_our_conflist(path: Path) -> bool | None:
    """None: there is no file. An operator's change makes it the operator's."""
    data = _read(path)
    if data is None:
        return None
    try:
        conflist = json.loads(data)
        stamp = conflist.pop(_STAMP)
    except (ValueError, KeyError, AttributeError):
        return False
    return bool(stamp == _digest(conflist))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InstallError(f"{path}: {error.strerror}") from None


def _digest(conflist: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(conflist, sort_keys=True).encode()).hexdigest()[:16]
