"""Processes of labs as /proc shows them: found by a mark in their environment, told apart by their start times."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LAB = "PODROUTE_LAB"
NODE = "PODROUTE_LAB_NODE"
"""Environment variables of everything that runs in a lab; with them a lab is found when its records are lost."""
NETWORK_OWNER = "PODROUTE_LAB_NETWORK_OWNER"
"""Set in the first process of a node whose network is its own: whoever is in there belongs to the lab."""


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    start: int
    """Clock ticks after boot, proc(5) field 22: a process number that is used again has another start."""

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process of that number, None where there is none."""
        try:
            return cls(pid, int(_stat(pid)[19]))
        except (OSError, IndexError):
            return None

    def running(self) -> bool:
        """Tell whether it is there and neither a zombie nor on its way out of its namespaces."""
        try:
            fields = _stat(self.pid)
            # A dying process has no namespaces any more: the link is there, but cannot be read.
            os.readlink(f"/proc/{self.pid}/ns/net")
        except (OSError, IndexError):
            return False
        return int(fields[19]) == self.start and fields[0] not in "ZX"

    def waiting(self) -> bool:
        """Tell whether it waits for something, or is gone: it has nothing left to do by itself."""
        try:
            return _stat(self.pid)[0] in "SZX"
        except (OSError, IndexError):
            return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless the process is gone."""
        if self.running():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on: the second may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def everyone() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            yield int(entry)


def marked(lab: str, *, owners: bool = False) -> list[Process]:
    """Return the running processes that carry a lab's mark and live in a pid namespace of their own.

    ``owners`` leaves out all but the first processes of nodes that have a network of their own.
    """
    marks = {f"{LAB}={lab}".encode()}
    if owners:
        marks.add(f"{NETWORK_OWNER}=yes".encode())
    here = os.readlink("/proc/self/ns/pid")
    found = []
    for pid in everyone():
        with suppress(OSError):
            if not marks <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                continue
            if os.readlink(f"/proc/{pid}/ns/pid") != here and (process := Process.of(pid)):
                found.append(process)
    return [process for process in found if process.running()]


def sharing(namespaces: set[str], kinds: Iterable[str]) -> list[Process]:
    """Return the running processes whose namespace of one of ``kinds`` is among ``namespaces`` (``net:[4026...]``)."""
    found = []
    for pid in everyone():
        for kind in kinds:
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/ns/{kind}") in namespaces and (process := Process.of(pid)):
                    found.append(process)
                    break
    return [process for process in found if process.running()]


def outside_number(holder: int, inside: int) -> int | None:
    """Return the number that a process of a holder's pid namespace has here, None where it is gone."""
    namespace = os.readlink(f"/proc/{holder}/ns/pid")
    for pid in everyone():
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/pid") != namespace:
                continue
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("NSpid:") and int(line.split()[-1]) == inside:
                    return pid
    return None


def await_end(processes: Iterable[Process], timeout: float) -> list[Process]:
    """Wait until processes are gone, seconds at most; return the ones left at the end."""
    deadline = time.monotonic() + timeout
    left = list(processes)
    while True:
        left = [process for process in left if process.running()]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.005)
