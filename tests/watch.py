"""What changes in routing tables while something happens."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.netns import Netns

MARKS = "198.18."
"""Begins the addresses to which routes come and go, each once, to see what a monitor has heard."""


class Watch:
    """What changes in the routing tables of a namespace."""

    def __init__(self, ns: Netns) -> None:
        self._ns = ns
        self._marks = 0
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 closed in close
        self._process = subprocess.Popen(ns.command("ip", "-o", "monitor", "route"), stdout=self._output)

    def ready(self) -> None:
        """Wait until the monitor listens and has told what there was so far: it reports a route of the test's own."""
        self._marks += 1
        mark = f"{MARKS}{self._marks >> 8}.{self._marks & 255}"
        while not any(mark in line.split() for line in self._lines()):
            for verb in ("add", "del"):
                self._ns.run("ip", "route", verb, "unreachable", mark)

    def events(self) -> list[str]:
        """Return the changes so far.

        Left aside: the test's own, and what the kernel notes in table local for an interface's own addresses (an
        IPv6 address appears there when its duplicate address detection ends, seconds after the interface is up).
        """
        self.ready()
        lines = (line for line in self._lines() if line.strip())
        return [line for line in lines if MARKS not in line and " table local " not in line]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()

    def _lines(self) -> list[str]:
        """Return what the monitor has written, in whole lines; it goes on at the descriptor's offset, which stays."""
        descriptor = self._output.fileno()
        text = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
        return text.split("\n")[:-1]


@contextmanager
def watched(*namespaces: Netns) -> Iterator[list[Watch]]:
    watches = [Watch(ns) for ns in namespaces]
    try:
        for watch in watches:
            watch.ready()
        yield watches
    finally:
        for watch in watches:
            watch.close()
