"""`routes.resilient` on a whole agent: what the kernel gets, and what an operator reads where it refuses."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from routes.messages import Resilience, RouteEvent
from tests.agents import Agent, agents
from tests.kernel.routes_lab import nexthops, uplinks, witness
from tests.kernel.test_agent_explain import explained
from tests.kernel.test_agent_reload import reload
from tests.netns import Netns

pytestmark = pytest.mark.root

PREFIX = "203.0.113.0/24"
_NO_BUCKETS = """
import sys, agent.node
from agent.cli import main
made = agent.node.Resilience
agent.node.Resilience = lambda buckets, *timers: made(0, *timers)
sys.argv = ["podroute", *sys.argv[4:]]
main()
"""
"""An agent that asks the kernel for groups without buckets, which it refuses."""


@pytest.fixture
async def pair(netns: Callable[[], Netns]) -> AsyncIterator[tuple[Agent, Agent]]:
    """``a`` learns PREFIX from ``b`` over two sessions; none of them is started."""
    ns_a, ns_b = uplinks(netns)
    accept: dict[str, Any] = {"import": "accept", "export": "accept"}
    async with agents() as (directory, running):
        peers = {f"b{n}": {"address": f"10.0.{n}.2", "as": 65002, **accept} for n in (0, 1)}
        a = Agent(ns_a, directory, "a", 65001, peers=peers, bgp={"connectRetry": 1})
        a.config["routes"] = {"resilient": {"buckets": 64, "idleTimer": 30, "unbalancedTimer": 90}}
        peers = {f"a{n}": {"address": f"10.0.{n}.1", "as": 65001, "passive": True, **accept} for n in (0, 1)}
        b = Agent(ns_b, directory, "b", 65002, advertise=[PREFIX], peers=peers)
        running += [a, b]
        yield a, b


def groups(agent: Agent) -> dict[int, Resilience | None]:
    """Return what kind the agent's groups are of, by id."""
    return {i: nexthop.resilience for i, nexthop in nexthops(agent.ns).items() if nexthop.members}


async def test_groups_are_as_the_file_says(pair: tuple[Agent, Agent]) -> None:
    a, b = pair
    await asyncio.gather(b.start(), a.start())
    await a.converged()
    found = await explained(a, PREFIX, lambda found: "installed" in str(found["fib"]))
    assert found["fib"][0]["kernel"] == ["10.0.0.2 dev up0", "10.0.1.2 dev up1"]
    shown = a.ns.run("ip", "nexthop", "show", "proto", "201")
    assert "type resilient buckets 64 idle_timer 30 unbalanced_timer 90" in shown
    assert not [finding for finding in (await a.get("/v1/status"))["findings"] if "resilient" in finding]
    async with witness(a.ns) as seen:
        for resilient, buckets, timer in (({"buckets": 64, "idleTimer": 31}, 64, 3100), ({}, 128, 12000)):
            before = set(groups(a))
            a.config["routes"]["resilient"] = resilient
            named = f"routes.resilient={{buckets: {buckets}, idleTimer: {timer // 100}, unbalancedTimer: 0}}"
            assert reload(a, "--dry-run")["resilient"] == [named]
            assert f"  {named}: routes move to such next-hop groups" in a.command("reload", "--dry-run").stdout
            assert set(groups(a)) == before
            reload(a)
            wanted = Resilience(buckets, timer, 0)
            await seen.when(lambda wanted=wanted: set(groups(a).values()) == {wanted})  # type: ignore[misc]
            assert (groups(a).keys() == before) is (buckets == 64)  # timers change in place
        del a.config["routes"]["resilient"]
        reload(a)
        await seen.when(lambda: set(groups(a).values()) == {None})
        assert not [event for event in seen.past if isinstance(event, RouteEvent) and event.gone]
    assert {peer["establishedCount"] for peer in await a.get("/v1/peers")} == {1}
    found = await explained(a, PREFIX, lambda found: "installed" in str(found["fib"]))
    assert found["fib"][0]["kernel"] == ["10.0.0.2 dev up0", "10.0.1.2 dev up1"]


async def test_a_refusal_is_told_once_and_shown(pair: tuple[Agent, Agent]) -> None:
    a, b = pair
    await asyncio.gather(b.start(), a.start(wrap=(sys.executable, "-c", _NO_BUCKETS)))
    await a.converged()
    await explained(a, PREFIX, lambda found: "installed" in str(found["fib"]))
    assert "resilient" not in a.ns.run("ip", "nexthop", "show", "proto", "201")
    why = "routes.resilient has no effect, the kernel refuses such groups: Number of buckets needs to be non-0"
    assert why in (await a.get("/v1/status"))["findings"]
    assert why in " ".join(a.command("status").stdout.split())
    assert a.log.count("the kernel refuses resilient next-hop groups") == 1
