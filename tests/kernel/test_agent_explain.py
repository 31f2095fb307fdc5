"""`podroute explain`: paths, policy, decision, next hops and the kernel of one prefix, on whole agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.agents import PATIENCE, Agent, agents
from tests.kernel.routes_lab import uplinks
from tests.netns import Netns

pytestmark = pytest.mark.root


@pytest.fixture
async def pair(netns: Callable[[], Netns]) -> AsyncIterator[tuple[Agent, Agent]]:
    """``a`` learns from ``b`` over two sessions; b originates 203.0.113.0/24 and 198.51.100.0/24."""
    node, fabric = uplinks(netns)
    match, change = {"prefixes": ["203.0.113.0/24"]}, {"localPref": 200}
    rules = [{"name": "prefer-left", "match": match, "action": "accept", "set": change}]
    left = {"address": "10.0.0.2", "as": 65002, "passive": True, "export": "reject"}
    right = {"address": "10.0.1.2", "as": 65002, "passive": True, "export": "reject", "import": "accept"}
    async with agents() as (directory, running):
        a = Agent(
            node,
            directory,
            "a",
            65001,
            pools={"p": {"cidr": "10.64.0.0/16"}},
            peers={"left": {**left, "import": {"default": "accept", "rules": rules}}, "right": right},
        )
        peers = {
            f"a{n}": {"address": f"10.0.{n}.1", "as": 65001, "import": "accept", "export": "accept"} for n in (0, 1)
        }
        prefixes = ["203.0.113.0/24", "198.51.100.0/24"]
        b = Agent(fabric, directory, "b", 65002, advertise=prefixes, peers=peers)
        running += [a, b]
        await a.start()
        await b.start()
        await a.converged()
        yield a, b


async def explained(agent: Agent, prefix: str, wanted: Callable[[Any], bool] = lambda _: True) -> Any:
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await agent.get("/v1/explain", prefix=prefix)
            if wanted(found):
                return found
            await asyncio.sleep(0.02)


async def test_a_learned_prefix(pair: tuple[Agent, Agent]) -> None:
    a, _ = pair
    found = await explained(a, "203.0.113.0/24")
    assert found["summary"] == ["decided by local pref among 2 paths"]
    best, other = sorted(found["paths"], key=lambda path: not path["best"])
    assert (best["peer"], best["rule"], best["localPref"]) == ("left", "prefer-left", 200)
    assert best["reached"] == "on-link at up0, by route 10.0.0.0/24 (protocol 2, metric 0)"
    assert (other["peer"], other["used"], other["reason"]) == ("right", False, "not best: local pref")
    (route,) = found["fib"]
    assert (route["metric"], route["owner"], route["state"]) == (20, "podroute, learned", "installed")
    assert route["kernel"] == ["10.0.0.2 dev up0"]
    assert {export["peer"] for export in found["exports"]} == {"left", "right"}
    shown = await asyncio.to_thread(a.command, "explain", "203.0.113.7")
    assert "203.0.113.0/24, which answers for 203.0.113.7/32" in shown.stdout, shown.stderr

    equal = await explained(a, "198.51.100.0/24")
    assert equal["summary"][0].startswith("2 of 2 paths are equal and share the traffic; ")
    assert equal["fib"][0]["kernel"] == ["10.0.0.2 dev up0", "10.0.1.2 dev up1"]


async def test_a_foreign_route_in_front_and_in_the_way(pair: tuple[Agent, Agent]) -> None:
    a, _ = pair
    a.ns.run("ip", "route", "add", "203.0.113.0/24", "via", "10.0.1.2", "metric", "5", "proto", "static")
    await a.until("'results shadowed': 1", "/v1/status")
    found = await explained(a, "203.0.113.0/24")
    assert "metric 20: shadowed by a route of protocol static with metric 5" in found["summary"]
    assert [(route["metric"], route["state"]) for route in found["fib"]] == [(5, "foreign"), (20, "shadowed")]
    listed = (await a.routes())["203.0.113.0/24"]
    assert (listed["kernel"], listed["installed"]) == ("shadowed", ["10.0.0.2 dev up0"])
    assert listed["problem"] == "by a route of protocol static with metric 5"
    assert (await a.get("/v1/status"))["fib"]["ipv4"]["shadowed"] == 1
    shown = (await asyncio.to_thread(a.command, "routes", "203.0.113.0/24")).stdout.splitlines()
    assert shown[-2].split()[:3] == ["5", "protocol", "static"], shown
    assert shown[-1].endswith("shadowed  by a route of protocol static with metric 5"), shown
    assert "routes shadowed" in a.log
    a.ns.run("ip", "route", "replace", "198.51.100.0/24", "via", "10.0.1.2", "metric", "20", "proto", "static")
    taken = await explained(a, "198.51.100.0/24", lambda found: "conflict" in " ".join(found["summary"]))
    assert [route["owner"] for route in taken["fib"]] == ["podroute, learned", "protocol static"]
    listed = (await a.routes())["198.51.100.0/24"]
    assert (listed["kernel"], listed["installed"]) == ("conflict", [])
    assert [row["kernel"] for row in listed["fib"]] == [[], ["10.0.1.2 dev up1"]]


async def test_addresses_of_our_own_and_of_nobody(pair: tuple[Agent, Agent]) -> None:
    a, b = pair
    (block,) = (await a.get("/v1/status"))["blocks"]
    found = await explained(a, block.replace("/26", "/32"))
    assert found["prefix"] == block
    assert found["summary"][0] == f"in block {block} of pool p, which this node owns"
    assert found["fib"][0]["kernel"] == ["unreachable"]
    nobody = await explained(b, "192.0.2.200")
    assert nobody["summary"] == ["no peer announces it, and neither do we"]
    assert nobody["paths"] == nobody["fib"] == []
    wrong = await asyncio.to_thread(a.command, "explain", "10.0.0.1/8")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("podroute: prefix: ")
