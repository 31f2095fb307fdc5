"""What the kernel says of its routes while something happens: ``ip monitor route`` in a node."""

from __future__ import annotations

import asyncio
import subprocess
from types import TracebackType

from labs.node import Node
from labs.waiting import off_loop

_MARK = ("blackhole", "192.0.2.255/32", "table", "4242")


class Watch:
    """``async with Watch(node) as watch``; afterwards ``lines`` holds each change of a route or a next-hop object."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.lines: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Watch:
        self._process = self.node.popen("stdbuf", "-oL", "ip", "monitor", "route", "nexthop", stdout=subprocess.PIPE)
        stream = self._process.stdout
        # It says nothing when it listens: a route of our own in an unused table shows that it does.
        waiting = asyncio.ensure_future(off_loop(stream.readline if stream else bytes))
        while not waiting.done():
            await self.node.run("ip", "route", "replace", *_MARK)
            await self.node.run("ip", "route", "del", *_MARK)
        await waiting
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        stdout, _ = await off_loop(self._process.communicate)
        said = [line for line in stdout.decode(errors="replace").splitlines() if line.strip()]
        self.lines = [line for line in said if "192.0.2.255" not in line]
