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

_MARK = ("blackhole", "192.0.2.255/32", "table", "4242", "proto", "kernel")
"""FRR's zebra makes nothing of routes that claim to be the kernel's own."""


class Watch:
    """``async with Watch(n1, tor) as watch``: afterwards ``lines`` holds each change of a route or next-hop object."""

    def __init__(self, *nodes: Node) -> None:
        self._nodes = nodes
        self.lines: dict[str, list[str]] = {}
        """By name of the node."""
        self._processes: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Watch:
        self._processes = await together(self._listen(node) for node in self._nodes)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for node, process in zip(self._nodes, self._processes, strict=True):
            process.terminate()
            stdout, _ = await off_loop(process.communicate)
            said = [line for line in stdout.decode(errors="replace").splitlines() if line.strip()]
            self.lines[node.name] = [line for line in said if "192.0.2.255" not in line]

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

    async def _listen(self, node: Node) -> subprocess.Popen[bytes]:
        process = node.popen("stdbuf", "-oL", "ip", "monitor", "route", "nexthop", stdout=subprocess.PIPE)
        stream = process.stdout
        # It says nothing when it listens: a route of our own in an unused table shows that it does.
        waiting = asyncio.ensure_future(off_loop(stream.readline if stream else bytes))
        while not waiting.done():
            await node.run("ip", "route", "replace", *_MARK)
            await node.run("ip", "route", "del", *_MARK)
        await waiting
        return process
