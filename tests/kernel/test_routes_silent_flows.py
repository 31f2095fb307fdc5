"""Gateways that fall silent and resilient groups together: whose gateway answers stays, whoever else comes and goes."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from routes.messages import Resilience, RouteEvent
from tests.kernel.routes_lab import gateways, nexthops, routes, running, via, wire, witness
from tests.kernel.segment import DESTINATIONS, Segment
from tests.kernel.test_routes_neighbours import failed
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
PREFIX, SIX = "192.0.2.0/24", "2001:db8::/32"
ALL, ALL_SIX = via("a=10.0.0.2", "b=10.0.0.3", "c=10.0.0.4"), via("a=fd00::2", "b=fd00::3", "c=fd00::4")
KEEP = Resilience(64, 60000, 0)
"""No bucket is idle for so long in a test: none moves that need not."""
_JIFFIES = 0.025
"""Seconds: to the kernel a bucket is in use if it was used in a later jiffy (1 to 10 ms) than it was moved."""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "fib.json"


def over(*numbers: int) -> set[str]:
    return {f"10.0.0.{number} eth0" for number in numbers}


def group(ns: Netns) -> int:
    (found,) = {route.nexthop for route in routes(ns, 4).values() if route.prefix == wire(PREFIX)}
    return found


def buckets(ns: Netns) -> list[int]:
    """Return the last octet of the gateway of each bucket of the route's group, in order."""
    objects = nexthops(ns)
    shown = json.loads(ns.run("ip", "-json", "nexthop", "bucket", "show", "id", str(group(ns))))
    found = {entry["bucket"]["index"]: objects[entry["bucket"]["nhid"]].gateway[3] for entry in shown}
    return [found[index] for index in sorted(found)]


class Flows:
    """UDP flows from the node to one of the DESTINATIONS, and at which gateway each arrives."""

    def __init__(self, lab: Segment, stack: ExitStack, count: int = 120) -> None:
        lab.node.run("sysctl", "-qw", "net.ipv4.fib_multipath_hash_policy=1")

        def udp(ns: Netns) -> socket.socket:
            return stack.enter_context(ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))

        self._sinks = {udp(ns): number for number, ns in lab.gateways.items()}
        for sink in self._sinks:
            sink.bind((DESTINATIONS[0], 9))
        self._sources = [udp(lab.node) for _ in range(count)]

    def seen(self) -> list[int]:
        """Send packets of each flow, and return the gateways at which they came, flow by flow."""
        first, began = self.once(), time.monotonic()
        while time.monotonic() - began < _JIFFIES:
            assert self.once() == first
        return first

    def once(self) -> list[int]:
        found = []
        for flow, source in enumerate(self._sources):
            source.sendto(flow.to_bytes(2, "big"), (DESTINATIONS[0], 9))
            (sink, *_), _, _ = select.select(list(self._sinks), [], [], 10)
            assert int.from_bytes(sink.recv(2), "big") == flow
            found.append(self._sinks[sink])
        return found


@contextmanager
def flowing(lab: Segment) -> Iterator[Flows]:
    with ExitStack() as stack:
        yield Flows(lab, stack)


async def test_flows_stay_when_a_gateway_falls_silent_and_when_it_answers_again(netns: Maker, state: Path) -> None:
    lab = Segment(netns, gateways=3)
    async with (
        witness(lab.node) as seen,
        running(lab.node, state, check_neighbours=True, resilience=KEEP) as node,
    ):
        node.learn(PREFIX, ALL)
        node.learn(SIX, ALL_SIX)
        await node.drained()
        made = group(lab.node)
        with flowing(lab) as flows:
            before, spread = flows.seen(), buckets(lab.node)
            assert {number: before.count(number) > 10 for number in (2, 3, 4)} == {2: True, 3: True, 4: True}
            lab.silence(2)
            await seen.when(lambda: gateways(lab.node, PREFIX) == over(3, 4))
            after, left = flows.seen(), buckets(lab.node)
            assert set(after) == {3, 4}
            assert [flow for flow, at in enumerate(before) if at != 2 and after[flow] != at] == []
            assert [index for index, at in enumerate(spread) if at != 2 and left[index] != at] == []
            await seen.when(lambda: gateways(lab.node, SIX) == {"fd00::3 eth0", "fd00::4 eth0"})
            # It gets what is idle or new: nothing here that flows use.
            lab.speak(2)
            await seen.when(lambda: gateways(lab.node, PREFIX) == over(2, 3, 4))
            await seen.when(lambda: len(gateways(lab.node, SIX)) == 3)
            assert flows.seen() == after
            assert [index for index, at in enumerate(left) if buckets(lab.node)[index] not in (at, 2)] == []
        await node.drained()
        objects = nexthops(lab.node)
        assert group(lab.node) == made
        assert objects[made].resilience == KEEP
        assert len(objects) == 3 + 3 + 2
        assert not [event for event in seen.past if isinstance(event, RouteEvent) and event.gone]
        assert not [cause for cause in node.fib.counters if "repaired" in cause]


async def test_unless_asked_for_flows_stay_with_a_silent_gateway(netns: Maker, state: Path) -> None:
    """The kernel leaves failed gateways out of plain groups by itself, out of resilient ones it does not."""
    lab = Segment(netns, gateways=3)
    async with witness(lab.node) as seen, running(lab.node, state, resilience=KEEP) as node:
        node.learn(PREFIX, ALL)
        await node.drained()
        with flowing(lab) as flows:
            before = flows.seen()
        lab.silence(2)
        lab.use(2)
        await failed(seen, "10.0.0.2")
        assert before.count(2) > 10
        assert buckets(lab.node).count(2) > 10
        assert "10.0.0.2" in lab.used()


async def test_the_last_ways_out_stay_in_their_group(netns: Maker, state: Path) -> None:
    lab = Segment(netns, gateways=3)
    async with (
        witness(lab.node) as seen,
        running(lab.node, state, check_neighbours=True, resilience=KEEP) as node,
    ):
        node.learn(PREFIX, ALL)
        await node.drained()
        before = group(lab.node)
        lab.reach_all()
        for silent, ways in ((2, over(3, 4)), (3, over(4)), (4, over(2, 3, 4))):
            lab.silence(silent)
            await seen.when(lambda ways=ways: gateways(lab.node, PREFIX) == ways)  # type: ignore[misc]
        lab.speak(3)  # all flows are with 4, and must not stay there
        await seen.when(lambda: gateways(lab.node, PREFIX) == over(3))
        assert set(buckets(lab.node)) == {3}
        lab.reach_all()
        await node.drained()
        assert group(lab.node) == before
        assert not [event for event in seen.past if isinstance(event, RouteEvent) and event.gone]


async def test_a_peer_is_lost_while_its_gateway_is_silent(netns: Maker, state: Path) -> None:
    lab = Segment(netns, gateways=3)
    async with (
        witness(lab.node) as seen,
        running(lab.node, state, check_neighbours=True, resilience=KEEP) as node,
    ):
        node.learn(PREFIX, ALL)
        await node.drained()
        with flowing(lab) as flows:
            before = flows.seen()
            lab.silence(2)
            await seen.when(lambda: gateways(lab.node, PREFIX) == over(3, 4))
            after = flows.seen()
            node.fib.peer_lost("a")  # its hold time has passed
            node.learn(PREFIX, via("b=10.0.0.3", "c=10.0.0.4"))
            await node.drained()
            assert flows.seen() == after
            lab.speak(2)
            node.learn(PREFIX, ALL)
            node.fib.end_of_rib("a", 4)
            await seen.when(lambda: gateways(lab.node, PREFIX) == over(2, 3, 4))
            assert flows.seen() == after
            assert [flow for flow, at in enumerate(before) if at != 2 and after[flow] != at] == []
        await node.drained()
        assert len(nexthops(lab.node)) == 3 + 1
        assert not [event for event in seen.past if isinstance(event, RouteEvent) and event.gone]
