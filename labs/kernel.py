"""The system calls that make and enter namespaces, which Python 3.11 lacks."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import TypeVar

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
IFF_RUNNING = 0x40

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own, unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, flags: int) -> None:
    """Put the calling thread into namespaces of the process behind a pidfd, setns(2), Linux >= 5.8."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)), "setns")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Mount a file system, mount(2)."""
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    source_, target_, kind_, data_ = arguments
    _check(_libc.mount(source_, target_, kind_, ctypes.c_ulong(flags), data_), f"mount {kind or source} on {target}")


def interface_up(*names: str) -> None:
    """Set interfaces of the calling thread's network namespace up, netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for name in names:
            request = struct.pack("16sh22x", name.encode(), 0)
            _, flags = struct.unpack("16sh22x", fcntl.ioctl(control, SIOCGIFFLAGS, request))
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh22x", name.encode(), flags | IFF_UP))


def interface_running(name: str) -> bool:
    """Tell whether an interface of the calling thread's network namespace is up and has its carrier."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sh22x", name.encode(), 0))
        return bool(struct.unpack("16sh22x", answer)[1] & IFF_RUNNING)


def in_group(name: str, group: IPv6Address) -> bool:
    """Tell whether an interface of the calling thread's network namespace has joined a multicast group."""
    with open("/proc/thread-self/net/igmp6") as groups:
        return [name, group.packed.hex()] in (line.split()[1:3] for line in groups)


def in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread of its own, which may change its namespaces because it ends afterwards."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
