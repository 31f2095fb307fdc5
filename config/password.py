"""TCP-MD5 passwords (RFC 2385): kept in files of their own, never in the configuration."""

from __future__ import annotations

import os
import stat

MAX_LENGTH = 80
"""Octets that the kernel takes (TCP_MD5SIG_MAXKEYLEN)."""


def read_password(path: str) -> bytes:
    """Return the password in a file: its text less one newline at the end.

    Raises ValueError with a text that says what is wrong and what would be right.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f'is "{path}", which is no file, must be a file that holds the password')
            if status.st_mode & 0o007:
                mode = stat.S_IMODE(status.st_mode)
                raise ValueError(
                    f'is "{path}", which everybody on this machine may use (mode {mode:04o}), '
                    f"must be protected: chmod 600 {path}"
                )
            text = file.read(MAX_LENGTH + 3)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f'is "{path}", which cannot be read ({reason}), must be a file that holds the password') from (
            error
        )
    password = text.removesuffix(b"\n").removesuffix(b"\r")
    if not 1 <= len(password) <= MAX_LENGTH:
        size = "empty" if not password else f"longer than {MAX_LENGTH} octets"
        raise ValueError(f'is "{path}", which is {size}, must hold a password of 1 to {MAX_LENGTH} octets')
    return password
