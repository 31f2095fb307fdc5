"""A kernel that has no memory for next-hop objects, which is played, and what people are told of it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from routes import guard
from routes.state import State
from tests.kernel.routes_lab import gateways, routes, running, uplinks, via, wire
from tests.netns import Netns

pytestmark = pytest.mark.root

PREFIX = "192.0.2.0/24"
REFUSED = "the kernel refuses 1 next-hop groups: no memory; asked again at the next change and every minute"


@pytest.fixture
def out_of_memory(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list: while it holds anything the kernel makes and changes no object."""
    short: list[bool] = []
    send = guard.send

    def refusing(sock: socket.socket, requests: Sequence[bytes], protocol: int) -> tuple[guard.Refused, bool]:
        if not short:
            return send(sock, requests, protocol)
        return dict.fromkeys(range(len(requests)), (errno.ENOMEM, "no memory")), True

    monkeypatch.setattr(guard, "send", refusing)
    return short


async def test_a_new_group(netns: Callable[[], Netns], tmp_path: Path, out_of_memory: list[bool]) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, tmp_path / "fib.json") as node:
        out_of_memory.append(True)
        node.learn(PREFIX, via("a=10.0.0.2"))
        await node.drained()
        (route,) = node.fib.route(4, wire(PREFIX))
        assert (route.state, route.text, route.kernel) == (State.UNRESOLVED, "no memory", ())
        assert node.fib.findings == [REFUSED]
        assert routes(ns, 4) == {}
        out_of_memory.clear()
        node.fib.resync("a test")  # as every minute
        await node.drained()
        assert gateways(ns, PREFIX) == {"10.0.0.2 up0"}
        assert node.fib.findings == []


async def test_a_group_that_is_to_change(netns: Callable[[], Netns], tmp_path: Path, out_of_memory: list[bool]) -> None:
    ns, _ = uplinks(netns)
    ns.run("ip", "address", "del", "10.0.1.1/24", "dev", "up1")
    async with running(ns, tmp_path / "fib.json") as node:
        node.learn(PREFIX, via("a=10.0.0.2", "b=10.0.1.2"))
        await node.drained()
        out_of_memory.append(True)
        ns.run("ip", "address", "add", "10.0.1.1/24", "dev", "up1")
        while not node.changed:
            await node.told.wait()
            node.told.clear()
        await node.drained()
        assert node.fib.findings == [REFUSED]
        (route,) = node.fib.route(4, wire(PREFIX))
        assert (route.state, route.text) == (State.INSTALLED, "no memory")
        assert gateways(ns, PREFIX) == {"10.0.0.2 up0"}
        out_of_memory.clear()
        node.fib.resync("a test")
        await node.drained()
        assert node.fib.findings == []
        assert gateways(ns, PREFIX) == {"10.0.0.2 up0", "10.0.1.2 up1"}
