"""Compiles ``cni/plugin.c``: the plugin for hosts that have a C compiler. It starts in a twentieth of Python's time.

What it cannot do by itself it leaves to the Python plugin, whose text it holds: there is one file to install, and one
place where errors are worded.
"""

from __future__ import annotations

import os
import shutil
import string
import subprocess
import tempfile
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("plugin.c")
_SUN_PATH = 107
"""Octets of a socket's path (unix(7))."""
_PATIENCE = 120.0
_PLAIN: Final = (string.ascii_letters + string.digits + " !#$%&'()*+,-./:;<=>@[]^_`{|}~").encode()


class CompilerError(Exception):
    """The compiler failed, or cannot make a program that stands by itself; the text is its own first line."""


def find_compiler() -> str | None:
    """Return the path of the host's C compiler."""
    return shutil.which("cc")


def compile_plugin(compiler: str, *, socket: Path, interpreter: str, script: str, mark: str) -> bytes:
    """Return the executable. It is static: a host's C library may be another than the one of this container.

    ``script``: the Python plugin's text. ``mark``: a text by which the file is known again. Raises CompilerError.
    """
    if len(os.fsencode(socket)) > _SUN_PATH:
        raise CompilerError(f"{socket}: a socket's path has at most {_SUN_PATH} octets")
    texts = {"MARK": mark, "SOCKET": str(socket), "INTERPRETER": interpreter, "SCRIPT": script}
    defines = "".join(f"#define {name} {_literal(text)}\n" for name, text in texts.items())
    source = "#define _GNU_SOURCE\n" + defines + f'#line 1 "{SOURCE.name}"\n' + SOURCE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="podroute-") as directory:
        output = Path(directory) / "plugin"
        options = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-s", "-x", "c", "-o", str(output), "-"]
        try:
            run = subprocess.run([compiler, *options], input=source.encode(), capture_output=True, timeout=_PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilerError(str(error)) from None
        said = run.stderr.decode(errors="replace").strip()
        if run.returncode:
            raise CompilerError(said.partition("\n")[0] or f"exit status {run.returncode}")
        return output.read_bytes()


def _literal(text: str) -> str:
    """Return a text as C writes it. An octal escape of three digits never swallows what follows."""
    return '"' + "".join(chr(o) if o in _PLAIN else f"\\{o:03o}" for o in os.fsencode(text)) + '"'
