"""Entering network namespaces. ``setns`` moves one thread, so only worker threads call what is here."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cni.errors import CniError, Code

CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_libc = ctypes.CDLL(None, use_errno=True)


def open_own() -> int:
    """Return a descriptor of the calling thread's network namespace; the caller closes it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def entered(namespace: int, home: int) -> Iterator[None]:
    """Put the calling thread into a namespace for the duration, then into ``home``. Raises OSError."""
    setns(namespace)
    try:
        yield
    finally:
        setns(home)


def check_pod(namespace: int, host: int, named: str) -> None:
    """Raise CniError (code 8) unless the descriptor is of a network namespace that is not the host's."""
    try:
        kind = fcntl.ioctl(namespace, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != CLONE_NEWNET:
        raise CniError(Code.INVALID_NETNS, f"CNI_NETNS {named} is not a network namespace")
    pod, own = os.fstat(namespace), os.fstat(host)
    if (pod.st_dev, pod.st_ino) == (own.st_dev, own.st_ino):
        raise CniError(Code.INVALID_NETNS, f"CNI_NETNS {named} is the host's own network namespace")


def set_sysctl(path: str, value: int, *, below: int | None = None) -> None:
    """Set a sysctl below /proc/sys/net of the calling thread's namespace, unless it has the value already.

    ``below``: a descriptor of the directory that holds the last two parts of ``path``, whatever the thread's namespace.
    Raises CniError, code 5. Not writing what is right lets the agent run where /proc/sys is read-only.
    """
    wanted = b"%d" % value
    name = f"/proc/sys/net/{path}" if below is None else "/".join(path.split("/")[-2:])
    try:
        if _content(name, below) == wanted:
            return
        file = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=below)
        try:
            os.write(file, wanted)
        finally:
            os.close(file)
    except OSError as error:
        raise CniError(Code.IO_FAILURE, f"cannot set net.{path.replace('/', '.')} to {value}", str(error)) from error


def _content(name: str, below: int | None) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=below)
    try:
        return os.read(file, 32).strip()
    finally:
        os.close(file)


def setns(namespace: int) -> None:
    """Move the calling thread into a network namespace. Raises OSError."""
    if _libc.setns(namespace, CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")
