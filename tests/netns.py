"""Network namespaces for tests: anonymous, so that nothing is left behind even when the run is killed."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

CLONE_NEWNET = 0x40000000
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
"""Put before a command: it keeps the user, who may own the files that it reads, and can do nothing privileged."""
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class Netns:
    """A namespace that lives as long as its descriptor. ``path`` opens it from any process while this one lives."""

    def __init__(self) -> None:
        self.fd = in_thread(self._create)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        self.run("ip", "link", "set", "lo", "up")

    @staticmethod
    def _create() -> int:
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net={self.path}", *argv]

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command inside and return its output; a failure shows what it printed."""
        return output(*self.command(*argv), check=check)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread inside; sockets opened here stay inside for good."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self.fd)
            yield
        finally:
            _setns(home)
            os.close(home)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in a thread inside, and return its result."""

        def enter() -> T:
            _setns(self.fd)
            return function()

        return in_thread(enter)


def link(a: Netns, a_name: str, b: Netns, b_name: str) -> None:
    """Join two namespaces with a veth pair, both ends up."""
    a.run("ip", "link", "add", a_name, "type", "veth", "peer", "name", b_name, "netns", b.path)
    a.run("ip", "link", "set", a_name, "up")
    b.run("ip", "link", "set", b_name, "up")


def output(*argv: str, check: bool = True) -> str:
    """Run a command and return its output; a failure shows what it printed."""
    done = subprocess.run(argv, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread of its own, which takes its namespace with it when it ends."""
    box: list[T] = []
    fault: list[BaseException] = []

    def body() -> None:
        try:
            box.append(function())
        except BaseException as error:
            fault.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if fault:
        raise fault[0]
    return box[0]


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
