"""Makes the plugin out of ``cni/plugin.c`` where there is a C compiler: it starts in a twentieth of Python's time.

What it cannot do by itself it leaves to the Python plugin, whose text it holds: there is one file to install, and one
place where errors are worded.

A host's paths are written into the program once it is compiled, so that a container image, which has no compiler, can
hold one that was compiled when the image was built:

    python -m cni.compiled
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("plugin.c")
READY: Final = SOURCE.with_suffix(".elf")
"""The program, where it was compiled beforehand."""
_PLACE: Final = b"podroute cni install writes here.\n"
"""What ``texts`` of the program hold until they are filled in."""
_ROOM: Final = 32768
"""Octets for them: ``TEXTS`` of the program."""
_SUN_PATH = 107
"""Octets of a socket's path (unix(7))."""
_PATIENCE = 120.0


class CompilerError(Exception):
    """There is no compiler, or it cannot make a program that stands by itself; the text is its own first line."""


def program() -> tuple[bytes, str]:
    """Return the program for ``fill``, and how it was made: here, or beforehand. Raises CompilerError."""
    compiler = shutil.which("cc")
    if compiler:
        try:
            return compile_program(compiler), f"compiled by {compiler}"
        except CompilerError:
            if not READY.exists():
                raise
    if not READY.exists():
        raise CompilerError("there is no `cc`")
    return READY.read_bytes(), "compiled beforehand"


def compile_program(compiler: str, source: Path = SOURCE) -> bytes:
    """Compile the program. It is static: a host's C library may be another than this one's. Raises CompilerError."""
    with tempfile.TemporaryDirectory(prefix="podroute-") as directory:
        output = Path(directory) / "plugin"
        options = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-s", "-o", str(output), str(source)]
        try:
            run = subprocess.run([compiler, *options], capture_output=True, timeout=_PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilerError(str(error)) from None
        said = run.stderr.decode(errors="replace").strip()
        if run.returncode:
            raise CompilerError(said.partition("\n")[0] or f"exit status {run.returncode}")
        return output.read_bytes()


def fill(code: bytes, *, mark: str, socket: Path, interpreter: str, script: str) -> bytes:
    """Return a program as the executable for one host.

    ``mark``: a text by which the file is known again. ``script``: the Python plugin's text. Raises CompilerError.
    """
    if len(os.fsencode(socket)) > _SUN_PATH:
        raise CompilerError(f"{socket}: a socket's path has at most {_SUN_PATH} octets")
    texts = b"".join(os.fsencode(text) + b"\0" for text in (mark, str(socket), interpreter, script))
    before, found, after = code.partition(_PLACE)
    if not found or len(texts) > _ROOM:
        raise CompilerError("the program has no room for this host's paths")
    return before + texts + after[len(texts) - len(_PLACE) :]


def main() -> None:
    """Compile the program beforehand."""
    try:
        READY.write_bytes(compile_program("cc"))
    except (CompilerError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
