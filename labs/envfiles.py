"""Files of environment variables: lines of ``NAME=value``, blank lines and lines that begin with ``#``."""

from __future__ import annotations

from pathlib import Path


class EnvFileError(Exception):
    """A file of variables cannot be used; the text says which, and its line."""


def read_env(path: Path) -> dict[str, str]:
    """Return the variables of a file; one pair of quotes around a value is taken off. Raises EnvFileError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EnvFileError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    env = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        if not separator or not name.strip().isidentifier():
            raise EnvFileError(f"{path}: line {number}: `{line}` is not a variable")
        value = value.strip()
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
        env[name.strip()] = value[1:-1] if quoted else value
    return env
