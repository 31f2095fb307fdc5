"""What kernels say of their routes while something happens: ``ip monitor route`` in nodes and routers."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Collection
from types import TracebackType
from typing import TYPE_CHECKING

from labs.node import Node
from labs.waiting import off_loop, together

if TYPE_CHECKING:
    from labs.scenarios.story import Story

_TABLE = "4242"
_FIRST, _LAST = "192.0.2.254", "192.0.2.255"
"""Routes to them come and go to see what a monitor has heard: in a table that nobody uses, and as the kernel's own, of
which FRR's zebra makes nothing."""


class Watch:
    """``async with Watch(n1, tor) as watch``: afterwards ``lines`` holds each change of a route or next-hop object."""

    def __init__(self, *nodes: Node) -> None:
        self._nodes = nodes
        self.lines: dict[str, list[str]] = {}
        """By name of the node."""
        self._monitors: list[_Monitor] = []

    async def __aenter__(self) -> Watch:
        self._monitors = [_Monitor(node) for node in self._nodes]
        await together(monitor.has_heard(_FIRST) for monitor in self._monitors)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for node, monitor in zip(self._nodes, self._monitors, strict=True):
            self.lines[node.name] = await monitor.end()

    def judge(self, story: Story, what: str) -> None:
        """Check that nothing changed anywhere."""
        for name, lines in self.lines.items():
            text = f"{what}: routes that changed in the kernel of {name}: {len(lines)}"
            story.check(not lines, text + "".join(f"; {line}" for line in lines[:3]))

    def judge_kept(self, story: Story, prefixes: Collection[str]) -> None:
        """Check that no route to any of the prefixes was deleted anywhere, not even for a moment."""
        for name, lines in self.lines.items():
            # "Deleted PREFIX ..." or "Deleted unreachable PREFIX ..."
            deleted = [
                line for line in lines if line.startswith("Deleted") and not set(line.split()[1:3]).isdisjoint(prefixes)
            ]
            text = f"routes to {', '.join(prefixes)} that the kernel of {name} was without: {len(deleted)}"
            story.check(not deleted, text + "".join(f"; {line}" for line in deleted[:3]))


class _Monitor:
    """``ip monitor`` in a node, read as it speaks."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._said: list[str] = []
        self._process = node.popen("stdbuf", "-oL", "ip", "monitor", "route", "nexthop", stdout=subprocess.PIPE)
        self._reading = asyncio.ensure_future(off_loop(self._read))

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._said.append(line.decode(errors="replace").rstrip())

    async def has_heard(self, mark: str) -> None:
        """Return when it has told what there was so far: it does not say when it begins to listen, nor when it has."""
        route = ("blackhole", mark, "table", _TABLE, "proto", "kernel")
        while not self._reading.done() and not any(mark in line.split() for line in self._said):
            await self._node.run("ip", "route", "replace", *route)
            await self._node.run("ip", "route", "del", *route)

    async def end(self) -> list[str]:
        """Return the changes, once all of them are told."""
        await self.has_heard(_LAST)
        self._process.terminate()
        await self._reading
        await off_loop(self._process.communicate)
        return [line for line in self._said if line and f" table {_TABLE} " not in f"{line} "]
