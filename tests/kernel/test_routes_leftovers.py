"""A run takes over what another left, keeps what is confirmed without a gap, and sweeps the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from config.prefix import make
from routes.messages import NexthopEvent, RouteEvent
from routes.state import State
from tests.kernel.routes_lab import Node, gateways, nexthops, routes, running, uplinks, via, wire, witness
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
both = pytest.mark.parametrize("objects", [True, False], ids=["objects", "fallback"])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "fib.json"


def teach(node: Node) -> None:
    node.learn("192.0.2.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
    node.learn("198.51.100.0/24", via("a=10.0.0.2"))
    node.learn("203.0.113.0/24", via("b=10.0.1.2"))
    node.learn("2001:db8::/32", via("a=fd00:0::2"))
    node.fib.add_cover(4, wire("10.64.0.0/26"))


@both
async def test_taken_over_without_a_gap(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, keep=True, objects=objects) as node:
        teach(node)
        await node.drained()
    before = routes(ns, 4) | routes(ns, 6)
    before_objects = nexthops(ns)
    assert len(before) == 5
    async with witness(ns) as seen, running(ns, state, objects=objects) as node:
        assert node.state("198.51.100.0/24") is State.STALE
        teach(node)
        node.fib.expectations_complete()
        for peer in ("a", "b"):
            for family in (4, 6):
                node.fib.end_of_rib(peer, family)
        await node.drained()
        assert routes(ns, 4) | routes(ns, 6) == before
        assert nexthops(ns) == before_objects
        assert [e for e in seen.events if isinstance(e, RouteEvent)] == []  # neither deleted nor written again
        assert node.fib.counters["requests"] == 0
        assert node.state("198.51.100.0/24") is State.INSTALLED
        # They are ours as if we had made them.
        node.fib.peer_lost("a")
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.1.2 up1"}
        assert gateways(ns, "198.51.100.0/24") == gateways(ns, "2001:db8::/32") == set()


@pytest.mark.parametrize("metric", [10, 30])
async def test_another_metric_is_written_before_the_former_goes(netns: Maker, state: Path, metric: int) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, keep=True) as node:
        teach(node)
        await node.drained()
    async with running(ns, state, metric=metric) as node:
        assert "198.51.100.0/24 metric 20" in routes(ns, 4)
        async with witness(ns) as seen:
            teach(node)
            node.fib.expectations_complete()
            for peer in ("a", "b"):
                for family in (4, 6):
                    node.fib.end_of_rib(peer, family)
            await seen.route("198.51.100.0/24", gone=True)
        await node.drained()
        learned = {f"{prefix} metric {metric}" for prefix in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")}
        assert set(routes(ns, 4)) == learned | {"10.64.0.0/26 metric 1"}
        assert set(routes(ns, 6)) == {f"2001:db8::/32 metric {metric}"}
        order = [(e.route.metric, e.gone) for e in seen.past if isinstance(e, RouteEvent)]
        assert order.index((20, True)) > len(order) - 1 - order[::-1].index((metric, False))


@both
async def test_swept_per_peer_and_family(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, keep=True, objects=objects) as node:
        teach(node)
        await node.drained()
    async with running(ns, state, objects=objects) as node:
        node.learn("203.0.113.0/24", via("b=10.0.1.2"))
        node.fib.end_of_rib("a", 4)
        await node.drained()
        assert gateways(ns, "198.51.100.0/24") == set()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}  # b may yet confirm it
        assert gateways(ns, "2001:db8::/32") == {"fd00::2 up0"}
        node.fib.sweep("b")  # the agent's timer
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == set()
        assert gateways(ns, "203.0.113.0/24") == {"10.0.1.2 up1"}
        node.fib.end_of_rib("a", 6)
        await node.drained()
        assert routes(ns, 6) == {}
        assert set(routes(ns, 4)) == {"203.0.113.0/24 metric 20", "10.64.0.0/26 metric 1"}
        node.fib.expectations_complete()
        await node.drained()
        assert set(routes(ns, 4)) == {"203.0.113.0/24 metric 20"}


async def test_confirmed_differently(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, keep=True) as node:
        teach(node)
        await node.drained()
    async with running(ns, state) as node, witness(ns) as seen:
        node.learn("192.0.2.0/24", via("b=10.0.1.2"))
        node.learn("198.51.100.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.1.2 up1"}
        assert gateways(ns, "198.51.100.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert [e for e in seen.deletions() if isinstance(e, RouteEvent)] == []


async def test_unknown_peers_and_objects_go_at_once(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, keep=True) as node:
        teach(node)
        await node.drained()
    ns.run("ip", "nexthop", "add", "id", "210770000", "via", "10.0.0.9", "dev", "up0", "proto", "201")
    ns.run("ip", "nexthop", "add", "id", "77", "via", "10.0.0.9", "dev", "up0", "proto", "static")
    ns.run("ip", "route", "add", "10.5.0.0/16", "nhid", "210770000", "proto", "201", "metric", "20")
    ns.run("ip", "route", "add", "10.6.0.0/16", "via", "10.0.0.9", "proto", "201", "metric", "20")
    ns.run("ip", "route", "add", "10.7.0.0/16", "via", "10.0.0.9", "proto", "201", "metric", "50")
    ns.run("ip", "route", "add", "10.8.0.0/16", "nhid", "77", "proto", "static")
    node = Node(ns, state)
    await node.start(peers=["b"])
    try:
        await node.drained()
        assert set(routes(ns, 4)) == {"192.0.2.0/24 metric 20", "203.0.113.0/24 metric 20", "10.64.0.0/26 metric 1"}
        assert gateways(ns, "192.0.2.0/24") == {"10.0.1.2 up1"}
        assert routes(ns, 6) == {}
        assert set(routes(ns, 4, protocol=4)) == {"10.8.0.0/16 metric 0"}
        node.fib.end_of_rib("b", 4)
        node.fib.expectations_complete()
        await node.drained()
        assert routes(ns, 4) == {}
        assert nexthops(ns) == {}
    finally:
        await node.stop()


def _overwrite(state: Path, content: str | None) -> None:
    if content is None:
        state.unlink()
    else:
        state.write_text(content)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 9}', '{"version": 1, "targets": [[1]]}', None])
async def test_bad_state_file(netns: Maker, state: Path, content: str | None) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, keep=True) as node:
        teach(node)
        await node.drained()
    _overwrite(state, content)
    async with running(ns, state) as node:
        await node.drained()
        assert set(routes(ns, 4)) == {"10.64.0.0/26 metric 1"}
        assert routes(ns, 6) == {}
        assert nexthops(ns) == {}
        teach(node)
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}


def _falsify(state: Path) -> None:
    saved = json.loads(state.read_text())
    for target in saved["targets"]:
        for member in target[2]:
            member[1] = "0a000063"
    state.write_text(json.dumps(saved))


async def test_state_file_that_lies(netns: Maker, state: Path) -> None:
    """Ids in it name other objects than the kernel has, as after somebody else's work."""
    ns, _ = uplinks(netns)
    async with running(ns, state, keep=True) as node:
        teach(node)
        await node.drained()
    _falsify(state)
    async with running(ns, state) as node:
        await node.drained()
        assert nexthops(ns) == {}
        assert set(routes(ns, 4)) == {"10.64.0.0/26 metric 1"}


async def test_unwritable_state_file(netns: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ns, _ = uplinks(netns)
    blocked = tmp_path / "file"
    blocked.write_text("")
    async with running(ns, blocked / "fib.json", keep=True) as node:
        teach(node)
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
    assert "cannot write the state file" in caplog.text


@both
async def test_purged(netns: Maker, state: Path, objects: bool) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, objects=objects) as node:
        teach(node)
        node.fib.expect_pod(4, wire("10.64.0.5/32"), "up0")
        await node.drained()
        assert len(routes(ns, 4)) == 5
    assert routes(ns, 4) == routes(ns, 6) == {}
    assert nexthops(ns) == {}
    assert list(state.parent.iterdir()) == []


async def test_link_changed_while_nobody_ran(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, keep=True) as node:
        teach(node)
        await node.drained()
    ns.run("ip", "link", "del", "up0")
    ns.run("ip", "route", "add", "10.0.0.0/24", "via", "10.0.1.2")
    async with running(ns, state) as node:
        teach(node)
        await node.drained()
        assert gateways(ns, "192.0.2.0/24") == {"10.0.1.2 up1"}
        assert gateways(ns, "198.51.100.0/24") == {"10.0.1.2 up1"}
        assert gateways(ns, "203.0.113.0/24") == {"10.0.1.2 up1"}
        assert routes(ns, 6) == {}


CHILD = """
import asyncio, sys
from pathlib import Path
from config.nexthop import NextHop
from config.prefix import make
from routes.fib import Fib
from routes.monitor import Monitor
from routes.resolver import Resolver

async def main():
    monitor = Monitor()
    await monitor.start()
    resolver = Resolver(monitor, on_changed=lambda changed: None)
    await resolver.start()
    fib = Fib(monitor=monitor, resolver=resolver, state_file=Path(sys.argv[1]), on_results=lambda results: None)
    await fib.start()
    a, b = NextHop("a", bytes([10, 0, 0, 2])), NextHop("b", bytes([10, 0, 1, 2]))
    for start in range(0, int(sys.argv[2]) * 3 // 4, 500):  # the load cannot be over before the signal
        prefixes = [make(4, (20 << 24) + (n << 8), 24) for n in range(start, start + 500)]
        fib.update(4, [([prefix], ((a,), (a, b))[n & 1]) for n, prefix in enumerate(prefixes)])
        await asyncio.sleep(0)
        print(fib.counters["requests"], flush=True)
    while True:
        await asyncio.sleep(0.001)
        print(fib.counters["requests"], flush=True)

asyncio.run(main())
"""


ROUTES = int(os.environ.get("KILL_ROUTES", "20000"))


def _load_and_kill(ns: Netns, state: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = ns.command(sys.executable, "-c", CHILD, str(state), str(ROUTES))
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= ROUTES // 3:
                child.send_signal(signal.SIGKILL)
                break
        child.wait()


async def test_killed_in_the_middle_of_a_load(netns: Maker, state: Path) -> None:
    """KILL_ROUTES=500000 makes it as large as the promise says."""
    ns, _ = uplinks(netns)
    _load_and_kill(ns, state)
    left = routes(ns, 4)
    assert ROUTES // 3 <= len(left) < ROUTES
    objects = nexthops(ns)
    async with running(ns, state) as node, witness(ns) as seen:
        kept = [make(4, (20 << 24) + (n << 8), 24) for n in range(0, ROUTES, 5)]
        for number, prefix in zip(range(0, ROUTES, 5), kept, strict=True):
            hops = via("a=10.0.0.2", "b=10.0.1.2") if number & 1 else via("a=10.0.0.2")
            node.fib.update(4, [([prefix], hops)])
        await node.drained()
        node.fib.end_of_rib("a", 4)
        node.fib.end_of_rib("b", 4)
        await node.drained()
        now = routes(ns, 4)
        assert {route.prefix for route in now.values()} == set(kept)
        assert gateways(ns, "20.0.0.0/24") == {"10.0.0.2 up0"}
        assert gateways(ns, "20.0.5.0/24") == {"10.0.0.2 up0", "10.0.1.2 up1"}
        # No gap for what stayed valid: neither routes went nor, with which they would go silently, objects or groups.
        ns.run("ip", "route", "add", "100.64.0.0/24", "dev", "up0")
        await seen.route("100.64.0.0/24", protocol=3)
        assert seen.monitor.overruns == 0
        touched = {e.route.prefix for e in seen.past if isinstance(e, RouteEvent) and (e.gone or e.replaced)}
        assert touched.isdisjoint({route.prefix for route in left.values()} & set(kept))
        assert len(touched) > len(left) // 2  # those that did not stay: events were heard
        assert [e for e in seen.past if isinstance(e, NexthopEvent)] == []
        assert nexthops(ns) == objects
    assert routes(ns, 4) == {}
    assert nexthops(ns) == {}
