"""`podroute reload`: what a changed file does to a running agent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import yaml

from tests.agents import Agent, agents
from tests.kernel.test_agent_life import Pair
from tests.netns import Netns

pytestmark = pytest.mark.root

ANYCAST = "192.0.2.53/32"


@pytest.fixture
async def pair(netns: Callable[[], Netns]) -> AsyncIterator[Pair]:
    async with agents() as (directory, running):
        yield Pair(directory, running, netns)


def reload(agent: Agent, *argv: str) -> dict[str, Any]:
    """Write the agent's file and have it reloaded; return the answer."""
    agent.file.write_text(yaml.safe_dump(agent.config, sort_keys=False))
    done = agent.command("reload", "--json", *argv)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(agent: Agent) -> str:
    agent.file.write_text(yaml.safe_dump(agent.config, sort_keys=False))
    done = agent.command("reload")
    assert done.returncode == 1
    return done.stderr


async def sessions(agent: Agent) -> dict[str, int]:
    return {peer["name"]: peer["establishedCount"] for peer in await agent.get("/v1/peers")}


async def test_policies_and_prefixes_change_without_a_reset(pair: Pair) -> None:
    await pair.start()
    (block,) = [b["prefix"] for b in await pair.b.get("/v1/blocks") if b["family"] == "ipv4"]
    pair.a.config["advertise"] = [ANYCAST]
    pair.a.config["peers"]["v4"]["import"] = "reject"
    assert reload(pair.a)["policies"] == ["v4"]
    await pair.a.converged()
    assert await sessions(pair.a) == {"v4": 1, "v6": 1}
    assert block not in pair.ns_a.run("ip", "route")
    await pair.b.until(ANYCAST, "/v1/routes")


async def test_a_dry_run_names_what_would_reset_and_does_nothing(pair: Pair) -> None:
    await pair.start()
    pair.a.config["peers"]["v4"]["holdTime"] = 30
    answer = reload(pair.a, "--dry-run")
    assert (answer["applied"], answer["resets"]) == (False, ["v4"])
    assert "v4: session resets" in pair.a.command("reload", "--dry-run").stdout
    assert await sessions(pair.a) == {"v4": 1, "v6": 1}
    assert (await pair.a.peer("v4"))["holdTime"] == 9


async def test_only_the_peer_that_changed_is_reset(pair: Pair) -> None:
    await pair.start()
    pair.a.config["peers"]["v4"]["holdTime"] = 6
    assert reload(pair.a)["resets"] == ["v4"]
    await pair.a.converged()
    assert (await pair.a.peer("v4"))["holdTime"] == 6
    assert await sessions(pair.b) == {"v4": 2, "v6": 1}


async def test_peers_come_and_go(pair: Pair) -> None:
    await pair.start()
    gone = pair.a.config["peers"].pop("v6")
    assert reload(pair.a)["removed"] == ["v6"]
    peer = await pair.b.until("De-configured", "", "v6")
    assert "Peer De-configured" in peer["problem"]
    pair.a.config["peers"]["v6"] = gone
    assert reload(pair.a)["added"] == ["v6"]
    await pair.a.converged()


async def test_the_last_good_configuration_survives_a_bad_one(pair: Pair) -> None:
    await pair.start()
    pair.a.config["peers"]["v4"]["as"] = 0
    pair.a.config["advertise"] = [ANYCAST]
    assert "peers.v4.as: is 0, must be an AS number" in refused(pair.a)
    assert await sessions(pair.a) == {"v4": 1, "v6": 1}
    assert ANYCAST not in await pair.a.routes()


async def test_what_needs_a_restart_is_named_and_nothing_is_done(pair: Pair) -> None:
    await pair.start()
    pair.a.config["node"]["as"] = 4200000009
    pair.a.config["routes"] = {"metric": 21}
    pair.a.config["advertise"] = [ANYCAST]
    assert refused(pair.a) == (
        "podroute: node.as, routes.metric: a change needs a restart of the agent (which interrupts nothing)\n"
    )
    assert ANYCAST not in await pair.a.routes()


async def test_nothing_changed_changes_nothing(pair: Pair) -> None:
    await pair.start()
    assert not any(value for value in reload(pair.a).values() if isinstance(value, list))


async def test_a_peer_is_shut_down_and_started_by_its_command(pair: Pair) -> None:
    await pair.start()
    done = pair.a.command("peer", "v4", "shutdown", "--text", "cable work")
    assert (done.returncode, done.stdout) == (0, "v4: shut down by the operator: cable work\n")
    assert '"cable work"' in (await pair.b.until("cable work", "", "v4"))["problem"]
    assert pair.a.command("peer", "v4", "start").returncode == 0
    await pair.a.converged()
    done = pair.a.command("peer", "v5", "start")
    assert (done.returncode, done.stderr) == (1, "podroute: no peer is called v5\n")
