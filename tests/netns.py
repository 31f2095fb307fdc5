"""Network namespaces for tests: anonymous, so that nothing is left behind even when the run is killed."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TypeVar

from labs.kernel import interface_running

CLONE_NEWNET = 0x40000000
PATIENCE = 60.0
"""Seconds that a carrier may take; it takes milliseconds."""
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
"""Put before a command: it keeps the user, who may own the files that it reads, and can do nothing privileged."""
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class Netns:
    """A namespace that lives as long as its descriptor. ``path`` opens it from any process while this one lives."""

    def __init__(self) -> None:
        self.fd = in_thread(self._create)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        self.indexes = count(1000 * self.fd)
        """Interface indexes that no other namespace has here."""
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
    """Join two namespaces with a veth pair, both ends up and with their carrier.

    The ends have unequal indexes: with equal ones the kernel delays the carrier by up to a second.
    """
    peer = ("peer", "name", b_name, "index", str(next(b.indexes)), "netns", b.path)
    a.run("ip", "link", "add", a_name, "index", str(next(a.indexes)), "type", "veth", *peer)
    a.run("ip", "link", "set", a_name, "up")
    b.run("ip", "link", "set", b_name, "up")
    for ns, name in ((a, a_name), (b, b_name)):
        ns.call(partial(_await_carrier, name))


def _await_carrier(name: str) -> None:
    """What is sent before is lost, and so are the addresses that the kernel has yet to give to the interface."""
    deadline = time.monotonic() + PATIENCE
    while not interface_running(name):
        assert time.monotonic() < deadline, f"{name} has no carrier"
        time.sleep(0.001)


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
