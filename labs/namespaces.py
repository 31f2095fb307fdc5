"""A node's namespaces (network, mounts, host name, process numbers) and how processes come to run in them.

A sleeping process holds them. It is the first of its pid namespace: when it is killed the kernel kills everything in
the node, and mounts, links and files of the node go with that. Nothing of a node is ever visible in the host's own
network or mounts.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Literal, TypeVar

from labs import filesystem, kernel
from labs.errors import LabError
from labs.processes import LAB, NETWORK_OWNER, NODE, Process, outside_number

EVERYTHING = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWUTS | kernel.CLONE_NEWPID
NETWORK = kernel.CLONE_NEWNET

# The node's own /proc can be mounted only from inside its pid namespace. Ignoring SIGCHLD makes the kernel reap
# whatever daemons leave to the first process.
_HOLDER = "mount -t proc proc /proc && echo ready && exec env --ignore-signal=CHLD sleep infinity >/dev/null 2>&1"
# Prints its number, then becomes the command; the first process of the node adopts it.
_BACKGROUND = 'echo $$; exec "$@" >&2'

Stream = int | IO[bytes] | None
T = TypeVar("T")


class Namespaces:
    """The namespaces of one node, by the process that holds them."""

    def __init__(self, holder: Process) -> None:
        self.holder = holder
        self._reaped = False

    @classmethod
    def create(
        cls,
        lab: str,
        node: str,
        *,
        hostname: str,
        network: Namespaces | Literal["host"] | None = None,
        mounts: Iterable[filesystem.Mount],
        sysctls: Mapping[str, str],
        place: str,
    ) -> Namespaces:
        """Make namespaces, lo up in them. Raises LabError; then nothing is left.

        ``network`` is another node to share its network, or the host's; None makes one.
        """

        def make() -> int:
            kernel.unshare(EVERYTHING if network is None else EVERYTHING & ~NETWORK)
            if isinstance(network, Namespaces):
                network.join(NETWORK)
            filesystem.build(mounts, sysfs=network != "host")
            socket.sethostname(hostname)
            for name, value in sysctls.items():
                _write_sysctl(name, value, f"{place}.sysctls.{name}")
            if network is None:
                kernel.interface_up("lo")
            return _hold(lab, node, owner=network is None)

        try:
            pid = kernel.in_thread(make)
        except OSError as error:
            raise LabError(f"{place}: cannot make namespaces: {error}") from error
        # Asked here: that thread sees the node's own /proc by now.
        holder = Process.of(pid)
        if holder is None:
            raise LabError(f"{place}: the first process was killed")
        return cls(holder)

    def alive(self) -> bool:
        return self.holder.running()

    def path(self, kind: str) -> str:
        """Return the path of a namespace, ``kind`` as in /proc/PID/ns."""
        return f"/proc/{self.holder.pid}/ns/{kind}"

    def identities(self, kinds: Iterable[str] = ("net", "mnt", "uts", "pid")) -> set[str]:
        """Return the identities of the namespaces (``net:[4026532000]``) of this node; empty where it is gone."""
        found = set()
        with suppress(OSError):
            for kind in kinds:
                found.add(os.readlink(self.path(kind)))
        return found

    def call(self, function: Callable[[], T], *, kinds: int = EVERYTHING) -> T:
        """Run a function in a thread inside; sockets opened there stay inside. Processes started there are inside."""

        def body() -> T:
            # Threads share one root and working directory; only a thread with its own may change its mounts.
            kernel.unshare(kernel.CLONE_FS)
            self.join(kinds)
            return function()

        return kernel.in_thread(body)

    def call_in_network(self, function: Callable[[], T]) -> T:
        """Run a function in a thread that is inside by its network only."""
        return self.call(function, kinds=NETWORK)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        kinds: int = EVERYTHING,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program inside; it is a child of this process. Raises OSError where it cannot be executed."""

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(argv, env=env, stdin=stdin, stdout=stdout, stderr=stderr)

        return self.call(start, kinds=kinds)

    def background(self, argv: Sequence[str], *, env: Mapping[str, str], log: IO[bytes]) -> Process | None:
        """Start a program inside that belongs to the node and outlives this process; output goes to a file.

        Returns None where it has ended already.
        """
        process = self.spawn(
            ["setsid", "--fork", "sh", "-c", _BACKGROUND, "sh", *argv], env=env, stdout=subprocess.PIPE, stderr=log
        )
        number = process.communicate()[0]
        outside = outside_number(self.holder.pid, int(number))
        return None if outside is None else Process.of(outside)

    def kill(self) -> None:
        """Kill the holder, and with it everything inside."""
        self.holder.kill(signal.SIGKILL)

    def reap(self) -> None:
        """Collect the exit status of the killed holder where it is a child of this process. Blocks for 5 s at most.

        It ends after all others in its namespace, also those whose parents, elsewhere, have still to collect them.
        """
        deadline = time.monotonic() + 5
        while not self._reaped and time.monotonic() < deadline:
            try:
                self._reaped = os.waitpid(self.holder.pid, os.WNOHANG)[0] != 0
            except ChildProcessError:
                self._reaped = True
            if not self._reaped:
                time.sleep(0.005)

    def join(self, kinds: int) -> None:
        """Put the calling thread inside. Raises LabError."""
        try:
            descriptor = os.pidfd_open(self.holder.pid)
        except ProcessLookupError:
            raise LabError("the node is gone") from None
        try:
            if not self.alive():
                raise LabError("the node is gone")
            kernel.setns(descriptor, kinds)
        finally:
            os.close(descriptor)


def _hold(lab: str, node: str, *, owner: bool) -> int:
    marks = {LAB: lab, NODE: node, **({NETWORK_OWNER: "yes"} if owner else {})}
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        try:
            pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", _HOLDER],
                {"PATH": os.defpath, **marks},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, writer, 1),
                    (os.POSIX_SPAWN_DUP2, writer, 2),
                ],
                setsid=True,
                setsigmask=[],
            )
        finally:
            os.close(writer)
        said = pipe.readline()
    if said != b"ready\n":
        os.waitpid(pid, 0)
        raise LabError(f"{node}: the first process ended: {said.decode(errors='replace').strip()}")
    return pid


def _write_sysctl(name: str, value: str, place: str) -> None:
    try:
        with open(f"/proc/sys/{name.replace('.', '/')}", "w") as file:
            file.write(value)
    except OSError as error:
        raise LabError(f"{place}: {value}: {error.strerror}, `sysctl -a` lists what this kernel has") from None
