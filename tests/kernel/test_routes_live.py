"""Groups of another kind, and gateways that are checked or no more, while packets flow: none is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from routes.messages import Resilience, RouteEvent
from tests.kernel.routes_lab import gateways, nexthops, running, witness
from tests.kernel.segment import Segment
from tests.kernel.test_routes_silent_flows import ALL, ALL_SIX, PREFIX, SIX, Flows, flowing, over
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
KINDS = (Resilience(64, 60000, 0), Resilience(32, 60000, 0), Resilience(32, 500, 0), None)


def kinds(ns: Netns) -> set[Resilience | None]:
    return {nexthop.resilience for nexthop in nexthops(ns).values() if nexthop.members}


def send_until(done: threading.Event, flows: Flows) -> int:
    """Send packets of each flow over and over, each of which must arrive somewhere; return how many rounds it were."""
    rounds = 0
    while not done.is_set():
        flows.once()
        rounds += 1
    return rounds


async def test_no_packet_is_lost_when_groups_become_of_another_kind(netns: Maker, tmp_path: Path) -> None:
    lab = Segment(netns, gateways=3)
    async with witness(lab.node) as seen, running(lab.node, tmp_path / "fib.json") as node:
        node.learn(PREFIX, ALL)
        node.learn(SIX, ALL_SIX)
        await node.drained()
        done = threading.Event()
        with flowing(lab) as flows:
            flows.once()
            sending = asyncio.create_task(asyncio.to_thread(send_until, done, flows))
            try:
                for kind in KINDS:
                    node.fib.set_resilience(kind)
                    await seen.when(lambda kind=kind: kinds(lab.node) == {kind})  # type: ignore[misc]
                    await node.drained()
                    assert gateways(lab.node, PREFIX) == over(2, 3, 4)
                    assert gateways(lab.node, SIX) == {f"fd00::{number} eth0" for number in (2, 3, 4)}
            finally:
                done.set()
                rounds = await sending
        assert rounds
        assert not [event for event in seen.past if isinstance(event, RouteEvent) and event.gone]
        assert node.fib.findings == []


@pytest.mark.parametrize("resilience", [None, KINDS[0]], ids=["plain", "resilient"])
async def test_gateways_are_checked_from_now_on_and_no_more(
    netns: Maker, tmp_path: Path, resilience: Resilience | None
) -> None:
    lab = Segment(netns, gateways=3)
    async with witness(lab.node) as seen, running(lab.node, tmp_path / "fib.json", resilience=resilience) as node:
        node.learn(PREFIX, ALL)
        await node.drained()
        for _ in range(2):
            lab.silence(2)
            with lab.node.entered():
                await node.neighbours.start()
            await seen.when(lambda: gateways(lab.node, PREFIX) == over(3, 4))
            assert node.neighbours.all_silent() == ["10.0.0.2 dev eth0"]
            node.neighbours.give_up()
            await seen.when(lambda: gateways(lab.node, PREFIX) == over(2, 3, 4))
            assert (node.neighbours.all_silent(), node.neighbours.active) == ([], False)
            lab.speak(2)
        await node.drained()
        assert not [event for event in seen.past if isinstance(event, RouteEvent) and event.gone]
