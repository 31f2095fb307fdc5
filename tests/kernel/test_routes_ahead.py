"""What changes a few at a time reaches the kernel ahead of a table that is on its way there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from config.prefix import Run, make, parse
from routes.writer import Job
from tests.kernel.routes_lab import gateways, routes, running, uplinks, via, witness
from tests.netns import Netns

pytestmark = pytest.mark.root

A, B = via("a=10.0.0.2"), via("b=10.0.1.2")


class Standstill(Job):
    """The kernel takes its time over what was sent before."""

    def __init__(self) -> None:
        super().__init__(lambda job: None)
        self.over = threading.Event()

    def run(self, sock: socket.socket) -> None:
        self.over.wait()


@pytest.mark.parametrize("objects", [True, False], ids=["objects", "fallback"])
async def test_one_route_goes_ahead(netns: Callable[[], Netns], tmp_path: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    table = [Run(make(4, (20 << 24) + (n << 16) + (third << 8), 24) for third in range(256)) for n in range(40)]
    async with running(ns, tmp_path / "fib.json", objects=objects) as node, witness(ns) as seen:
        node.learn("40.0.0.0/16", A)  # the next hops are known
        node.learn("40.1.0.0/16", B)
        await node.drained()
        standstill = Standstill()
        writer = node.fib._installer._writer
        assert writer is not None
        writer.submit(standstill)
        try:
            node.fib.update(4, [(run, A) for run in table])
            node.fib.update(4, [((parse("40.2.0.0/16")[1],), B)])
            await seen.route("40.2.0.0/16")
            node.fib.update(4, [((parse("40.2.0.0/16")[1], table[0][0]), None), ((parse("40.3.0.0/16")[1],), B)])
            await seen.route("40.2.0.0/16", gone=True)
            await seen.route("40.3.0.0/16")
            assert len(routes(ns, 4)) == 3
        finally:
            standstill.over.set()
        await node.drained()
        assert len(routes(ns, 4)) == 40 * 256 - 1 + 3
        assert gateways(ns, "40.3.0.0/16") == {"10.0.1.2 up1"}
        assert gateways(ns, "20.0.0.0/24") == gateways(ns, "40.2.0.0/16") == set()
        assert node.results == []
