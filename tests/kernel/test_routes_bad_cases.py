"""Bad company and bad times for the Fib: crowds of foreign routes, lost events without end, no permission, flaps.

FLAP_SECONDS=20 makes the flaps as long as the promise says.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from config.prefix import make
from routes import bulk, netlink
from routes.messages import RouteEvent
from routes.state import State
from tests.kernel import hindered
from tests.kernel.routes_lab import Node, gateways, nexthops, routes, running, uplinks, via, wire, witness
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
both = pytest.mark.parametrize("objects", [True, False], ids=["objects", "fallback"])
FLAP_SECONDS = int(os.environ.get("FLAP_SECONDS", "3"))
A, B, AB = via("a=10.0.0.2"), via("b=10.0.1.2"), via("a=10.0.0.2", "b=10.0.1.2")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "fib.json"


def some(count: int, first: int = 20) -> list[bytes]:
    """Return ``count`` /24s from ``first``.0.0.0 on."""
    return [make(4, (first << 24) + (number << 8), 24) for number in range(count)]


def resident() -> int:
    """Return this process's resident memory in octets."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def batch(file: Path, lines: list[str]) -> str:
    """Write a file of commands for `ip -batch`, and return its path."""
    file.write_text("".join(f"{line}\n" for line in lines))
    return str(file)


def foreign(ns: Netns) -> str:
    return ns.run("ip", "route", "show", "proto", "static") + ns.run("ip", "-6", "route", "show", "proto", "static")


async def test_a_table_full_of_foreign_routes(netns: Maker, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of ours, 3,000 find a foreign route in their way, 2,000 one that is better, 3,000 none; 3,000 are elsewhere."""
    ns, _ = uplinks(netns)
    caplog.set_level(logging.INFO, "podroute.routes")
    theirs = [f"route add 20.{n >> 8}.{n & 255}.0/24 via 10.0.1.2 metric 20 proto static" for n in range(3000)]
    theirs += [f"route add 20.{n >> 8}.{n & 255}.0/24 via 10.0.1.2 metric 5 proto static" for n in range(3000, 5000)]
    theirs += [f"route add 30.{n >> 8}.{n & 255}.0/24 via 10.0.1.2 metric 20 proto static" for n in range(2500)]
    theirs.append(
        "route add 20.0.9.0/32 via 10.0.1.2 metric 20 proto static"
    )  # hides what is in the way of 20.0.9.0/24
    theirs6 = [f"route add 2001:db8:{n:x}::/48 via fd00:1::2 metric 20 proto static" for n in range(500)]
    ns.run("ip", "-batch", batch(state.with_name("v4"), theirs))
    ns.run("ip", "-6", "-batch", batch(state.with_name("v6"), theirs6))
    before = foreign(ns)
    assert before.count("\n") == len(theirs) + len(theirs6)
    async with running(ns, state, compare_interval=0.05) as node:
        node.fib.update(4, [(some(8000), A)])
        sixes = [make(6, (0x20010DB8 << 96) + (n << 80), 48) for n in range(700)]
        node.fib.update(6, [(sixes, via("a=fd00:0::2"))])
        await node.drained()
        held = routes(ns, 4)
        assert {route.prefix for route in held.values()} == set(some(8000)[3000:])
        assert len(routes(ns, 6)) == 200
        told = Counter((result.family, result.state) for result in node.results)
        assert told == {(4, State.CONFLICT): 3000, (4, State.SHADOWED): 2000, (6, State.CONFLICT): 500}
        assert Counter(route.state for route in node.fib.routes(4)) == {
            State.CONFLICT: 3000,
            State.SHADOWED: 2000,
            State.INSTALLED: 3000,
        }
        # Each comparison tries again what was in conflict: nothing is told twice, nothing piles up.
        await compared(node, 2)
        at_rest, said = resident(), len(caplog.records)
        await compared(node, 8)
        assert resident() - at_rest < 4 << 20
        assert len(caplog.records) == said < 5
        assert sum(told.values()) == len(node.results)
        # Ours come, change and go among them.
        node.fib.update(4, [(some(4000), B), (some(8000)[4000:6000], None)])
        node.fib.peer_lost("a")
        await node.drained()
        assert {route.prefix for route in routes(ns, 4).values()} == set(some(4000)[3000:])
        node.fib.update(4, [(some(8000), None)])
        await node.drained()
        assert routes(ns, 4) == {}
        assert foreign(ns) == before
    assert foreign(ns) == before


async def compared(node: Node, times: int) -> None:
    """Wait for so many comparisons to end."""
    until = node.fib.counters["comparisons"] + times + 1
    async with asyncio.timeout(60):
        while node.fib.counters["comparisons"] < until:  # noqa: ASYNC110 -- no event tells
            await asyncio.sleep(0.01)


@both
async def test_events_and_answers_are_lost_all_the_time(netns: Maker, state: Path, objects: bool) -> None:
    """Receive buffers of 2 kB, while others delete, replace and flush and links flap, and what is desired changes."""
    ns, _ = uplinks(netns)
    prefixes = some(3000)
    script = f"""
    for round in 1 2 3 4 5 6; do
        ip -force -batch {state.with_name("batch")}
        ip link set up0 down
        ip nexthop flush proto 201
        ip link set up0 up
        ip route flush 20.5.0.0/16 proto 201
    done >/dev/null 2>&1
    """
    lines = [f"route del 20.0.{n}.0/24" for n in range(250)]
    lines += [f"route replace 20.1.{n}.0/24 via 10.0.1.99 metric 20 proto 201" for n in range(250)]
    lines += [f"route replace 20.2.{n}.0/24 via 10.0.1.99 metric 20 proto static" for n in range(250)]
    lines += [f"route del 20.2.{n}.0/24 proto static" for n in range(250)]
    batch(state.with_name("batch"), lines)
    async with running(ns, state, objects=objects, monitor_buffer=2048, receive_buffer=2048) as node:
        churn = asyncio.create_task(asyncio.to_thread(ns.run, "sh", "-c", script, check=False))
        turn = 0
        while not churn.done():
            turn += 1
            node.fib.update(4, [(prefixes[turn % 3 :: 3], (A, None, AB, B)[turn % 4])])
            await asyncio.sleep(0.02)
        node.fib.update(4, [(prefixes[:2000], AB), (prefixes[2000:], None)])
        await heard(node, ns)
        await node.drained()
        assert node.monitor.overruns > 5
        assert {route.prefix for route in routes(ns, 4).values()} == set(prefixes[:2000])
        for prefix in ("20.0.0.0/24", "20.1.9.0/24", "20.2.249.0/24", "20.5.0.0/24", "20.7.207.0/24"):
            assert gateways(ns, prefix) == {"10.0.0.2 up0", "10.0.1.2 up1"}
        assert len({route.nexthop for route in routes(ns, 4).values()}) == 1
        assert len(nexthops(ns)) == (3 if objects else 0)
        assert Counter(route.state for route in node.fib.routes(4)) == {State.INSTALLED: 2000}


async def heard(node: Node, ns: Netns) -> None:
    """Wait until a node knows of all that has happened, or knows that it has missed something since."""
    done = asyncio.Event()
    last = wire("100.64.0.0/24")
    node.monitor.subscribe(
        lambda event: done.set() if isinstance(event, RouteEvent) and event.route.prefix == last else None, done.set
    )
    ns.run("ip", "route", "add", "100.64.0.0/24", "dev", "up1")
    async with asyncio.timeout(30):
        await done.wait()


@pytest.fixture
def deprivable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(netlink, "open_socket", hindered.deprivable())
    monkeypatch.setattr(bulk, "send", hindered.deprived_bulk())
    yield
    hindered.taken.clear()


@both
@pytest.mark.usefixtures("deprivable")
async def test_permission_lost_and_given_back(
    netns: Maker, state: Path, objects: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ns, _ = uplinks(netns)
    kept, changed, going, new, late = some(500), some(50, 21), some(50, 22), some(100, 23), some(10, 24)
    async with running(ns, state, objects=objects, compare_interval=0.05) as node, witness(ns) as seen:
        node.fib.update(4, [(kept, AB), (changed, A), (going, A)])
        await node.drained()
        hindered.taken.set()
        node.fib.update(4, [(changed, AB), (going, None), (new, A), (late, B)])
        ns.run("ip", "route", "del", "20.0.7.0/24")
        await seen.route("20.0.7.0/24", gone=True)
        await node.drained()
        refused = {result.prefix: result.errno for result in node.results if result.state is not State.INSTALLED}
        assert set(refused) >= {*changed, *going, *late, wire("20.0.7.0/24")}
        assert set(refused.values()) == {errno.EPERM}
        assert node.state("24.0.0.0/24") not in (State.INSTALLED, State.PENDING, None)
        # Tried again with each comparison, and only then; said once.
        requests, told, comparisons = node.fib.counters["requests"], len(node.results), node.fib.counters["comparisons"]
        await compared(node, 5)
        rounds = node.fib.counters["comparisons"] - comparisons + 1
        assert 0 < node.fib.counters["requests"] - requests <= rounds * 2 * len(refused)
        assert len(node.results) == told
        assert [record.levelname for record in caplog.records].count("ERROR") == 1
        assert "permission denied" in caplog.text
        hindered.taken.clear()
        back = {*changed, *new, *late, wire("20.0.7.0/24")}
        async with asyncio.timeout(30):
            while not back <= {result.prefix for result in node.results if result.state is State.INSTALLED}:
                node.told.clear()
                await node.told.wait()
        await compared(node, 2)
        await node.drained()
        held = {route.prefix for route in routes(ns, 4).values()}
        assert held == {*kept, *changed, *new, *late}
        for prefix, ways in (("20.0.7.0/24", 2), ("21.0.0.0/24", 2), ("23.0.0.0/24", 1), ("24.0.0.0/24", 1)):
            assert len(gateways(ns, prefix)) == ways
        assert len(nexthops(ns)) == (5 if objects else 0)
    assert routes(ns, 4) == {}
    assert nexthops(ns) == {}


async def test_ten_thousand_routes_flap_every_second(netns: Maker, state: Path) -> None:
    """Memory flat, the loop free, changes coalesced, in the end the kernel as desired."""
    ns, _ = uplinks(netns)
    loop = asyncio.get_running_loop()
    prefixes = some(10_000)
    backlog, memory = [], []
    async with running(ns, state) as node:
        async with holding() as held:
            begin = loop.time()
            for turn in range(FLAP_SECONDS * 10):
                node.fib.update(4, [(prefixes[turn % 10 :: 10], (A, None, AB, B)[turn // 10 % 4])])
                await asyncio.sleep(max(0.0, begin + turn / 10 - loop.time()))
                backlog.append(node.fib.backlog)
                if turn % 10 == 9:
                    memory.append(resident())
            node.fib.update(4, [(prefixes[:5000], AB), (prefixes[5000:], None)])
            await node.drained()
        there = routes(ns, 4)
        assert {route.prefix for route in there.values()} == set(prefixes[:5000])
        assert len({route.nexthop for route in there.values()}) == 1
        assert len(nexthops(ns)) == 3
        assert max(backlog) <= len(prefixes)  # changes coalesce: no prefix waits twice
        assert memory[-1] - memory[0] < 8 << 20
        assert node.results == []
        print(f"{FLAP_SECONDS} s: loop held for {max(held) * 1000:.1f} ms, {memory[-1] - memory[0] >> 10} KiB more")
        assert max(held) < 0.05


@asynccontextmanager
async def holding() -> AsyncIterator[list[float]]:
    """Yield a list that fills with CPU seconds of this thread between two turns: how long the loop is held at most.

    Of the CPU, not of the clock: what else the machine does is not the loop's fault.
    """
    held: list[float] = []

    async def measure() -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0.005)
            now = time.thread_time()
            held.append(now - before)
            before = now

    gc.collect()
    gc.freeze()  # what other tests have left is not the loop's to look through
    task = asyncio.create_task(measure())
    try:
        yield held
    finally:
        gc.unfreeze()
        task.cancel()
        await asyncio.wait([task])
