"""What changes in routing tables while something happens."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.netns import Netns

MARK = "198.51.100.99"
"""A route that comes and goes to see whether a monitor listens."""


class Watch:
    """What changes in the routing tables of a namespace."""

    def __init__(self, ns: Netns) -> None:
        self._ns = ns
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed in close
        self._process = subprocess.Popen(ns.command("ip", "-o", "monitor", "route"), stdout=self._output)

    def ready(self) -> None:
        """Wait until the monitor listens: it reports a route of the test's own."""
        while MARK not in self._lines():
            for verb in ("add", "del"):
                self._ns.run("ip", "route", verb, "unreachable", MARK)

    def events(self) -> list[str]:
        """Return the changes so far.

        Left aside: the test's own, and what the kernel notes in table local for an interface's own addresses (an
        IPv6 address appears there when its duplicate address detection ends, seconds after the interface is up).
        """
        lines = (line for line in self._lines().splitlines() if line.strip())
        return [line for line in lines if MARK not in line and " table local " not in line]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()

    def _lines(self) -> str:
        self._output.seek(0)
        return self._output.read()


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
