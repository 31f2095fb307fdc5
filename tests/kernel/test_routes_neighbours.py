"""Gateways on an Ethernet segment that fall silent while every link keeps its carrier."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from config.nexthop import Gateway, Resolution
from config.prefix import Family
from routes.messages import NUD_FAILED, NUD_VALID, NeighbourEvent, Resilience, RouteEvent
from routes.writer import NexthopJob
from tests.kernel.routes_lab import Witness, gateways, nexthops, packed, routes, running, via, wire, witness
from tests.kernel.segment import Segment
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
BOTH, LEFT, RIGHT = {"10.0.0.2 eth0", "10.0.0.3 eth0"}, {"10.0.0.2 eth0"}, {"10.0.0.3 eth0"}
A, B = "a=10.0.0.2", "b=10.0.0.3"


@asynccontextmanager
async def learned(lab: Segment, state: Path, *, keep: bool = False, **options: object) -> AsyncIterator[Witness]:
    """Run a node that has learned 192.0.2.0/24 from two peers, and 198.51.100.0/24 and 203.0.113.0/24 from one each."""
    async with witness(lab.node) as seen, running(lab.node, state, keep=keep, **options) as node:
        node.learn("192.0.2.0/24", via(A, B))
        node.learn("198.51.100.0/24", via(A))
        node.learn("203.0.113.0/24", via(B))
        node.learn("2001:db8::/32", via("a=fd00::2", "b=fd00::3"))
        await node.drained()
        yield seen


async def leads(seen: Witness, lab: Segment, *, both: set[str], left: set[str] = LEFT, right: set[str] = RIGHT) -> None:
    wanted = {"192.0.2.0/24": both, "198.51.100.0/24": left, "203.0.113.0/24": right}
    await seen.when(lambda: all(gateways(lab.node, prefix) == ways for prefix, ways in wanted.items()))


async def failed(seen: Witness, address: str) -> None:
    await seen.until(lambda e: isinstance(e, NeighbourEvent) and _entry(e, address) and e.neighbour.state == NUD_FAILED)


async def valid(seen: Witness, address: str) -> None:
    await seen.until(
        lambda e: isinstance(e, NeighbourEvent) and _entry(e, address) and bool(e.neighbour.state & NUD_VALID)
    )


def _entry(event: NeighbourEvent, address: str) -> bool:
    return event.neighbour.address == packed(address)


def deleted(seen: Witness) -> list[bytes]:
    return [event.route.prefix for event in seen.past if isinstance(event, RouteEvent) and event.gone]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "fib.json"


@pytest.mark.parametrize("objects", [True, False], ids=["objects", "fallback"])
async def test_a_gateway_falls_silent_and_answers_again(netns: Maker, state: Path, objects: bool) -> None:
    lab = Segment(netns)
    async with learned(lab, state, check_neighbours=True, objects=objects) as seen:
        assert gateways(lab.node, "192.0.2.0/24") == BOTH
        lab.reach_all()
        assert lab.used() == {"10.0.0.2", "10.0.0.3"}
        before = routes(lab.node, 4)
        lab.silence(2)  # no traffic notices: podroute has the entry confirmed
        await leads(seen, lab, both=RIGHT)
        assert lab.used() == {"10.0.0.3"}
        lab.reach_all()
        await seen.when(lambda: gateways(lab.node, "2001:db8::/32") == {"fd00::3 eth0"})
        lab.speak(2)
        await leads(seen, lab, both=BOTH)
        await seen.when(lambda: gateways(lab.node, "2001:db8::/32") == {"fd00::2 eth0", "fd00::3 eth0"})
        lab.reach_all()
        assert deleted(seen) == []  # 198.51.100.0/24 keeps its only way
        if objects:
            ids = {name: route.nexthop for name, route in routes(lab.node, 4).items()}
            assert ids == {name: route.nexthop for name, route in before.items()}  # the same groups
            assert len(nexthops(lab.node)) == 4 + 4


async def test_the_last_ways_out_stay(netns: Maker, state: Path) -> None:
    lab = Segment(netns)
    async with learned(lab, state, check_neighbours=True) as seen:
        lab.silence(2)
        await leads(seen, lab, both=RIGHT)
        lab.silence(3)
        await leads(seen, lab, both=BOTH)  # whoever is back first
        lab.speak(2)
        await leads(seen, lab, both=LEFT)
        lab.reach_all()
        assert deleted(seen) == []


async def test_nothing_is_done_unless_asked_for(netns: Maker, state: Path) -> None:
    lab = Segment(netns)
    async with learned(lab, state) as seen:
        lab.reach_all()
        lab.silence(2)
        lab.use(2)
        await failed(seen, "10.0.0.2")
        lab.node.run("ip", "address", "add", "10.9.0.1/24", "dev", "eth0")  # next hops are looked at again
        await seen.route("10.9.0.0/24", protocol=2)
        await leads(seen, lab, both=BOTH)


@pytest.mark.parametrize("resilience", [None, Resilience(64, 60000, 0)], ids=["plain", "resilient"])
async def test_silent_at_the_start(netns: Maker, state: Path, resilience: Resilience | None) -> None:
    """What an earlier run left goes on with the gateways that answer, and nothing is deleted."""
    lab = Segment(netns)
    async with learned(lab, state, keep=True, check_neighbours=True, resilience=resilience) as seen:
        lab.reach_all()
    ids = {name: route.nexthop for name, route in routes(lab.node, 4).items()}
    lab.silence(2)
    async with witness(lab.node) as seen:
        lab.use(2)
        await failed(seen, "10.0.0.2")
    async with (
        witness(lab.node) as seen,
        running(lab.node, state, keep=True, check_neighbours=True, resilience=resilience) as node,
    ):
        await leads(seen, lab, both=RIGHT)
        assert deleted(seen) == []
        for prefix, hops in (("192.0.2.0/24", via(A, B)), ("198.51.100.0/24", via(A)), ("203.0.113.0/24", via(B))):
            node.learn(prefix, hops)
        await node.drained()
        await leads(seen, lab, both=RIGHT)
    async with witness(lab.node) as seen:
        lab.speak(2)
        lab.node.run("ping", "-c1", "-W5", "10.0.0.2")
        await valid(seen, "10.0.0.2")
    async with learned(
        lab, state, check_neighbours=True, resilience=resilience
    ) as seen:  # the run before had left it out
        await leads(seen, lab, both=BOTH)
        assert ids == {name: route.nexthop for name, route in routes(lab.node, 4).items()}
        assert deleted(seen) == []


async def test_silence_ends_with_the_link(netns: Maker, state: Path) -> None:
    """Entries go with the carrier, and gateways have to fail anew: nobody is out for what was before."""
    lab = Segment(netns)
    async with witness(lab.node) as seen, running(lab.node, state, check_neighbours=True) as node:
        node.learn("192.0.2.0/24", via(A, B))
        await node.drained()
        lab.silence(2)
        await seen.when(lambda: gateways(lab.node, "192.0.2.0/24") == RIGHT)
        lab.switch.run("ip", "link", "set", "p1", "down")
        await seen.when(lambda: wire("192.0.2.0/24") not in {route.prefix for route in routes(lab.node, 4).values()})
        lab.speak(2)
        lab.switch.run("ip", "link", "set", "p1", "up")
        await seen.when(lambda: gateways(lab.node, "192.0.2.0/24") == BOTH)


class Steered:
    """Each next hop is its own gateway, silent or not as it pleases the test."""

    def __init__(self) -> None:
        self.silent: set[bytes] = set()

    def lookup(self, address: bytes, device: str = "") -> Resolution | None:
        return Resolution((Gateway(address, "eth0"),), 0, address not in self.silent)

    def local(self, session_address: bytes, family: Family) -> bytes | None:
        return None


async def test_back_before_the_kernel_was_told_of_silence(
    netns: Maker, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes traffic leave goes past the routes that wait, but no request for next-hop objects past another one."""
    lab, resolver, told = Segment(netns), Steered(), threading.Event()
    run = NexthopJob.run

    def held(job: NexthopJob, sock: socket.socket) -> None:
        if threading.current_thread().name == "podroute-urgent":
            told.wait(30)
        run(job, sock)

    monkeypatch.setattr(NexthopJob, "run", held)
    async with running(lab.node, state, resolver=resolver) as node:
        node.learn("192.0.2.0/24", via(A, B))
        node.learn("198.51.100.0/24", via(A))
        await node.drained()
        for silent in ({packed("10.0.0.2")}, set()):
            resolver.silent = silent
            node.fib.next_hops_changed()
            for _ in range(10):
                await asyncio.sleep(0)
        told.set()
        await node.drained()
        assert gateways(lab.node, "192.0.2.0/24") == BOTH
        assert gateways(lab.node, "198.51.100.0/24") == LEFT
