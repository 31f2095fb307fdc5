"""`routes.onlink` on a whole agent: a next hop that an internal peer passes on, outside every subnet of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.agents import Agent, agents
from tests.kernel.routes_lab import uplinks
from tests.kernel.test_agent_explain import explained
from tests.kernel.test_agent_reload import refused, reload
from tests.netns import Netns, link

pytestmark = pytest.mark.root

PREFIX = "203.0.113.0/24"


@pytest.fixture
async def node(netns: Callable[[], Netns]) -> AsyncIterator[Agent]:
    """``a`` learns PREFIX from its internal peer ``b``, with the next hop ``c`` behind b, which answers ARP for it."""
    ns_a, ns_b = uplinks(netns, 1)
    ns_c = netns()
    link(ns_b, "far", ns_c, "near")
    ns_b.run("ip", "address", "add", "10.9.0.1/24", "dev", "far")
    ns_b.run("sysctl", "-qw", "net.ipv4.conf.down0.proxy_arp=1")
    ns_c.run("ip", "address", "add", "10.9.0.2/24", "dev", "near")
    ns_c.run("ip", "address", "add", "203.0.113.1/32", "dev", "lo")
    ns_c.run("ip", "route", "add", "10.0.0.0/24", "via", "10.9.0.1")
    passed_on = {"name": "learned", "match": {"source": ["learned"]}, "action": "accept"}
    accept = {"import": "accept", "export": "accept"}
    async with agents() as (directory, running):
        soon = {"connectRetry": 1}
        a = Agent(ns_a, directory, "a", 65001, peers={"b": {"address": "10.0.0.2", "as": 65001}}, bgp=soon)
        peers = {
            "a": {"address": "10.0.0.1", "as": 65001, "passive": True, "export": {"rules": [passed_on]}},
            "c": {"address": "10.9.0.2", "as": 65003, "passive": True, **accept},
        }
        b = Agent(ns_b, directory, "b", 65001, peers=peers)
        b.config["node"]["routerId"] = "192.0.2.99"
        peers = {"b": {"address": "10.9.0.1", "as": 65001, **accept}}
        c = Agent(ns_c, directory, "c", 65003, advertise=[PREFIX], peers=peers, bgp=soon)
        running += [a, b, c]
        await asyncio.gather(*(agent.start() for agent in running))
        await asyncio.gather(*(agent.converged() for agent in running))
        yield a


async def test_reached_as_soon_as_the_file_says_so(node: Agent) -> None:
    def known(found: Any) -> bool:
        return bool(found["paths"])

    (path,) = (await explained(node, PREFIX, known))["paths"]
    assert (path["nextHop"], path["used"]) == ("10.9.0.2", False)
    assert path["reached"] == "no route leads there"
    node.config["routes"] = {"onlink": {"10.9.0.0/24": "up0"}}
    assert reload(node, "--dry-run")["onlink"] == ["10.9.0.0/24"]
    assert (await explained(node, PREFIX))["fib"] == []
    assert reload(node)["onlink"] == ["10.9.0.0/24"]
    found = await explained(node, PREFIX, lambda found: "installed" in str(found["fib"]))
    assert found["paths"][0]["reached"] == "on-link at up0, by routes.onlink 10.9.0.0/24"
    (route,) = found["fib"]
    assert (route["desired"], route["kernel"]) == (["10.9.0.2 dev up0 onlink peer b"], ["10.9.0.2 dev up0 onlink"])
    assert (route["state"], found["summary"]) == ("installed", [])
    node.ns.run("ping", "-c", "1", "-W", "5", "203.0.113.1")
    shown = node.command("explain", PREFIX).stdout
    assert "on-link at up0, by routes.onlink 10.9.0.0/24" in shown
    assert (await node.routes())[PREFIX]["kernel"] == "installed"

    node.config["routes"] = {"onlink": {"10.9.0.0/24": "up9"}}
    assert reload(node)["onlink"] == ["10.9.0.0/24"]
    found = await explained(node, PREFIX, lambda found: not found["paths"][0]["used"])
    why = "no route leads there; routes.onlink 10.9.0.0/24: interface up9 does not exist"
    assert found["paths"][0]["reached"] == why
    assert (await node.peer("b"))["establishedCount"] == 1
    node.config["routes"]["metric"] = 30
    assert (
        refused(node) == "podroute: routes.metric: a change needs a restart of the agent (which interrupts nothing)\n"
    )
