"""Many routes withdrawn at once go with their group, and nobody else's with them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from config.prefix import Run, make
from routes import netlink
from routes.messages import match_request
from tests.kernel.routes_lab import nexthops, routes, running, uplinks, via
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
A, B = via("a=10.0.0.2"), via("b=10.0.1.2")


def runs(count: int, *, first: int = 20) -> list[Run]:
    return [Run(make(4, (first << 24) + (n << 16) + (third << 8), 24) for third in range(256)) for n in range(count)]


async def test_a_group_that_nothing_is_to_lead_to(netns: Maker, tmp_path: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, tmp_path / "fib.json") as node:
        going, staying = runs(40), runs(4, first=40)
        node.fib.update(4, [*((run, A) for run in going), *((run, B) for run in staying)])
        await node.drained()
        assert len(routes(ns, 4)) == 44 * 256
        node.fib.counters.clear()
        node.fib.update(4, [(run, None) for run in going])
        await node.drained()
        assert node.fib.counters["requests"] < 20 * 256
        assert len(routes(ns, 4)) == 4 * 256
        assert len(nexthops(ns)) == 2  # B's group and its member
        # And the peer may come again at any time.
        node.fib.update(4, [(run, A) for run in going])
        node.fib.update(4, [(run, None) for run in going])
        node.fib.update(4, [(run, A) for run in going[:20]])
        await node.drained()
        assert len(routes(ns, 4)) == 24 * 256
        assert not node.fib.counters["resyncs"]
        assert node.results == []


async def test_those_that_are_to_lead_elsewhere_are_never_missing(netns: Maker, tmp_path: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, tmp_path / "fib.json") as node:
        all_of_it = runs(64)
        node.fib.update(4, [(run, A) for run in all_of_it])
        await node.drained()
        moving = all_of_it[::4]
        missing: list[bytes] = []
        done = threading.Event()

        def watch(sock: socket.socket) -> None:
            with sock:
                while not done.is_set():
                    for prefix in (run[n] for run in moving for n in (0, 255)):
                        if netlink.ask(sock, netlink.RTM_GETROUTE, match_request(4, prefix)) is None:
                            missing.append(prefix)

        watcher = threading.Thread(target=watch, args=(ns.call(netlink.open_socket),))
        watcher.start()
        try:
            node.fib.update(4, [(run, B if run in moving else None) for run in all_of_it])
            await node.drained()
        finally:
            done.set()
            watcher.join()
        assert missing == []
        assert len(routes(ns, 4)) == 16 * 256
        assert len(nexthops(ns)) == 2


async def test_deletions_that_waited_for_more_of_them(netns: Maker, tmp_path: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, tmp_path / "fib.json") as node:
        table = runs(64)
        node.fib.update(4, [(run, A) for run in table])
        await node.drained()
        for run in table[8:]:
            node.fib.update(4, [(run, None)])
        await node.drained()
        assert len(routes(ns, 4)) == 8 * 256
        assert len(nexthops(ns)) == 2
