"""Routes of ours that are there and not used, because of somebody else's: reported, and left alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from config.prefix import Family
from routes.compare import Survey
from routes.differences import rows
from routes.messages import RTN_UNICAST, Route
from routes.state import State
from tests.kernel.routes_lab import METRIC, Node, Unheard, gateways, routes, running, uplinks, via, wire
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
P4, P6 = "192.0.2.0/24", "2001:db8::/32"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "fib.json"


def counts(node: Node, family: Family) -> dict[State, int]:
    total: Counter[State] = Counter()
    for some in node.fib.counts(family):
        total.update(some)
    return dict(+total)


async def test_a_better_route_comes_and_goes(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state) as node:
        node.learn(P4, via("a=10.0.0.2"))
        node.learn(P6, via("a=fd00:0::2"))
        await node.drained()
        for family, prefix, gateway in (("-4", P4, "10.0.1.2"), ("-6", P6, "fd00:1::2")):
            foreign = prefix, "via", gateway, "metric", "5", "proto", "static"
            ns.run("ip", family, "route", "add", *foreign)
            told = await node.until(State.SHADOWED, prefix)
            assert told.text == "by a route of protocol static with metric 5"
            assert node.state(prefix) is State.SHADOWED
            assert counts(node, 4 if family == "-4" else 6) == {State.SHADOWED: 1}
            assert gateway in ns.run("ip", family, "route", "get", prefix.replace("/24", "").replace("/32", "1"))
            ns.run("ip", family, "route", "del", *foreign)
            await node.until(State.INSTALLED, prefix)
            assert node.state(prefix) is State.INSTALLED
            assert counts(node, 4 if family == "-4" else 6) == {State.INSTALLED: 1}
        assert node.fib.counters["results shadowed"] == 2
        assert node.fib.counters["requests"] == 2  # and nothing was written for it


async def test_it_was_there_before_ours(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    ns.run("ip", "route", "add", P4, "via", "10.0.1.2", "proto", "static")
    ns.run("ip", "route", "add", "10.64.0.0/26", "via", "10.0.1.2", "proto", "static")
    ns.run("ip", "route", "add", "198.51.100.0/24", "via", "10.0.1.2", "metric", "30", "proto", "static")
    async with running(ns, state) as node:
        node.learn(P4, via("a=10.0.0.2"))
        node.learn("198.51.100.0/24", via("a=10.0.0.2"))
        node.learn("10.0.1.0/24", via("a=10.0.0.2"))  # a connected subnet
        node.fib.add_cover(4, wire("10.64.0.0/26"))
        await node.drained()
        assert {(r.prefix, r.state, r.text) for r in node.results} == {
            (wire(P4), State.SHADOWED, "by a route of protocol static with metric 0"),
            (wire("10.64.0.0/26"), State.SHADOWED, "by a route of protocol static with metric 0"),
            (wire("10.0.1.0/24"), State.SHADOWED, "by a route of protocol kernel with metric 0"),
        }
        assert counts(node, 4) == {State.SHADOWED: 3, State.INSTALLED: 1}
        node.learn(P4, None)
        await node.drained()
        assert counts(node, 4) == {State.SHADOWED: 2, State.INSTALLED: 1}


async def test_one_of_the_same_metric_in_front_of_ours(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state) as node:
        node.learn(P4, via("a=10.0.0.2"))
        await node.drained()
        foreign = P4, "via", "10.0.1.2", "metric", str(METRIC), "proto", "static"
        ns.run("ip", "route", "prepend", *foreign)
        told = await node.until(State.CONFLICT, P4)
        assert told.text == "a route of protocol static with the same metric is beside ours"
        assert "10.0.1.2" in ns.run("ip", "route", "get", "192.0.2.1")
        assert gateways(ns, P4) == {"10.0.0.2 up0"}  # both are there
        ns.run("ip", "route", "del", *foreign)
        await node.until(State.INSTALLED, P4)
        assert "10.0.0.2" in ns.run("ip", "route", "get", "192.0.2.1")


async def test_it_goes_without_a_word(netns: Maker, state: Path) -> None:
    """The kernel tells nobody of IPv4 routes that go along with a device or a next-hop object."""
    ns, _ = uplinks(netns)
    async with running(ns, state) as node:
        node.learn(P4, via("a=10.0.0.2"))
        await node.drained()
        ns.run("ip", "route", "add", P4, "via", "10.0.1.2", "metric", "5", "proto", "static")
        await node.until(State.SHADOWED, P4)
        ns.run("ip", "link", "set", "up1", "down")
        await node.until(State.INSTALLED, P4)
        ns.run("ip", "link", "set", "up1", "up")
        ns.run("ip", "nexthop", "add", "id", "7", "via", "10.0.1.2", "dev", "up1", "proto", "static")
        ns.run("ip", "route", "add", P4, "nhid", "7", "metric", "5", "proto", "static")
        await node.until(State.SHADOWED, P4)
        ns.run("ip", "nexthop", "del", "id", "7")
        await node.until(State.INSTALLED, P4)


async def test_events_are_lost(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state, monitor_buffer=2048) as node:
        for number in range(200):
            node.learn(f"20.0.{number}.0/24", via("a=10.0.0.2"))
        await node.drained()
        route = "route {} 20.0.$i.0/24 via 10.0.1.2 metric 5 proto static"
        batch = f"for i in $(seq 0 199); do echo {route}; done | ip -b -"
        ns.run("sh", "-c", batch.format("add"))
        async with asyncio.timeout(30):
            while counts(node, 4) != {State.SHADOWED: 200}:
                node.told.clear()
                await node.told.wait()
        assert node.monitor.overruns > 0
        ns.run("sh", "-c", batch.format("del"))
        async with asyncio.timeout(30):
            while counts(node, 4) != {State.INSTALLED: 200}:
                node.told.clear()
                await node.told.wait()


async def test_the_kernel_read_now(netns: Maker, state: Path) -> None:
    """What no event has told yet is shown as it is; the monitor does not hear of what one socket does."""
    ns, _ = uplinks(netns)
    async with running(ns, state) as node:
        known = [P4, "198.51.100.0/24", "203.0.113.0/24", "20.0.0.0/24", "20.0.2.0/24"]
        for prefix in known:
            node.learn(prefix, via("a=10.0.0.2", "b=10.0.0.2"))
        node.learn("20.0.1.0/24", via("a=172.16.0.1"))
        await node.drained()
        with Unheard(node) as unheard:
            unheard.delete(P4)
            unheard.write("20.0.2.0/24", "10.0.1.2", "up1")
        ns.run("ip", "route", "add", "198.51.100.0/24", "via", "10.0.1.2", "metric", "5", "proto", "static")
        shown = {}
        with ns.entered():
            async with node.fib.view.whole(4) as table:
                for prefix in [*known, "20.0.1.0/24"]:
                    alone = await node.fib.view.prefix(4, wire(prefix))
                    held = node.fib.route(4, wire(prefix))
                    found = rows(held, table.of(wire(prefix), held), node.fib.protocol)
                    assert found == rows(held, alone, node.fib.protocol)
                    shown[prefix] = [(row.metric, row.state, row.kernel) for row in found]
        assert shown == {
            P4: [(20, "missing", ())],
            "198.51.100.0/24": [(5, "foreign", ("10.0.1.2 dev up1",)), (20, "shadowed", ("10.0.0.2 dev up0",))],
            "203.0.113.0/24": [(20, "installed", ("10.0.0.2 dev up0",))],
            "20.0.0.0/24": [(20, "installed", ("10.0.0.2 dev up0",))],
            "20.0.1.0/24": [(20, "unresolved", ())],
            "20.0.2.0/24": [(20, "altered", ("10.0.1.2 dev up1",))],
        }
        assert table.surplus() == [wire("20.0.2.0/24")]
        ns.run("ip", "route", "add", "10.77.0.0/16", "via", "10.0.0.2", "metric", "77", "proto", "201")
        with ns.entered():
            async with node.fib.view.whole(4) as table:
                assert set(table.surplus()) == {wire("10.77.0.0/16"), wire("20.0.2.0/24")}
        node.fib.resync("a test")
        await node.drained()
        assert P4 in " ".join(routes(ns, 4))
        assert gateways(ns, "20.0.2.0/24") == {"10.0.0.2 up0"}
        assert node.fib.counters["repaired, missing, found by a test"] == 1
        assert node.fib.counters["repaired, altered, found by a test"] == 1


async def test_what_is_written_while_the_kernel_is_read_is_no_drift(
    netns: Maker, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading came by when one route had not been written yet, and one not yet been removed."""
    ns, _ = uplinks(netns)
    comes, goes = "198.51.100.0/24", "203.0.113.0/24"
    gone = Route(4, 254, 201, RTN_UNICAST, wire(goes), METRIC, 0, ())
    monkeypatch.setattr("routes.view.survey", lambda *_: Survey({wire(goes): [gone]}, {(wire(comes), METRIC)}))

    def states(prefix: str) -> list[str]:
        held = node.fib.route(4, wire(prefix))
        return [row.state for row in rows(held, table.of(wire(prefix), held), node.fib.protocol)]

    async with running(ns, state) as node:
        node.learn(goes, via("a=10.0.0.2"))
        await node.drained()
        with ns.entered():
            async with node.fib.view.whole(4) as table:
                node.learn(comes, via("a=10.0.0.2"))
                node.learn(goes, None)
                await node.drained()
                assert (states(comes), states(goes), table.surplus()) == (["installed"], [], [])
            async with node.fib.view.whole(4) as table:
                assert (states(comes), states(goes)) == (["missing"], ["surplus"])
                assert table.surplus() == [wire(goes)]
