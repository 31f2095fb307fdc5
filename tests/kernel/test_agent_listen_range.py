"""Dynamic neighbours of a whole agent: what an operator sees of them, and what reload and restart do to them."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.agents import PATIENCE, Agent, agents
from tests.kernel.test_agent_life import Pair
from tests.kernel.test_agent_reload import refused, reload
from tests.netns import Netns
from tests.watch import Watch, watched

pytestmark = pytest.mark.root

ANYCAST = "192.0.2.53/32"


@pytest.fixture
async def pair(netns: Callable[[], Netns]) -> AsyncIterator[Pair]:
    """``b`` has listen ranges that the addresses of ``a`` are in."""
    async with agents() as (directory, running):
        made = Pair(directory, running, netns)
        common: dict[str, Any] = {"as": "external", "import": "accept", "export": "accept", "holdTime": 9}
        made.b.config["peers"] = {
            "rack": {"listenRange": "10.0.0.0/24", "listenLimit": 5, **common},
            "rack6": {"listenRange": "fd00::/64", **common},
        }
        yield made


async def counts(agent: Agent) -> dict[str, int]:
    """Return how often the sessions that there are were established."""
    return {peer["name"]: peer["establishedCount"] for peer in await agent.get("/v1/peers")}


async def both(pair: Pair) -> None:
    """Start ``a`` and wait until both know each other; the ranges of ``b`` alone are nothing to wait for."""
    await pair.b.start()
    await pair.b.converged()
    await pair.a.start()
    await pair.a.converged()
    await pair.b.until("Established", "", "rack/10.0.0.1")
    await pair.b.until("Established", "", "rack6/fd00::1")
    await pair.b.converged()


async def test_they_are_shown_with_their_range_and_shut_down_by_name(pair: Pair) -> None:
    await both(pair)
    peer = await pair.b.peer("rack6/fd00::1")
    assert (peer["dynamic"], peer["listenRange"], peer["as"]) == (True, "fd00::/64", 4200000001)
    assert not (await pair.a.peer("v4"))["dynamic"]
    assert "10.0.0.1 (in 10.0.0.0/24)" in pair.b.command("peers").stdout
    (rack, _) = (await pair.b.get("/v1/status"))["listenRanges"]
    assert rack == {
        "name": "rack",
        "prefix": "10.0.0.0/24",
        "as": "external",
        "peers": 1,
        "limit": 5,
        "refusedConnections": 0,
    }
    assert "rack (10.0.0.0/24): 1 of at most 5 dynamic neighbours" in pair.b.command("status").stdout
    blocks = {block["family"]: block["advertisedTo"] for block in await pair.b.get("/v1/blocks")}
    assert blocks == {"ipv4": ["rack/10.0.0.1"], "ipv6": ["rack6/fd00::1"]}
    done = pair.b.command("peer", "rack/10.0.0.1", "shutdown", "--text", "cable work")
    assert (done.returncode, done.stdout) == (0, "rack/10.0.0.1: shut down by the operator: cable work\n")
    assert '"cable work"' in (await pair.a.until("cable work", "", "v4"))["problem"]
    done = pair.b.command("peer", "rack/10.0.0.1", "start")
    assert done.returncode == 0, done.stderr
    await pair.b.until("'establishedCount': 1", "", "rack/10.0.0.1")
    await pair.a.converged()
    assert await pair.a.stop() == 0
    pair.b.command("peer", "rack/10.0.0.1", "shutdown")


async def test_reload_touches_only_the_sessions_of_what_changed(pair: Pair, tmp_path: Path) -> None:
    await both(pair)
    peers = pair.b.config["peers"]
    peers["rack6"] |= {"import": "reject", "listenLimit": 7}
    answer = reload(pair.b)
    assert (answer["policies"], answer["limits"], answer["resets"]) == (["rack6"], ["rack6"], [])
    peers["rack6"]["holdTime"] = 6
    assert reload(pair.b, "--dry-run")["resets"] == ["rack6"]
    assert reload(pair.b)["resets"] == ["rack6"]
    await pair.a.until("'establishedCount': 2", "", "v6")
    await pair.a.converged()
    assert (await pair.b.peer("rack6/fd00::1"))["holdTime"] == 6
    assert await counts(pair.a) == {"v4": 1, "v6": 2}
    # A peer of its own for an address inside the range, and back.
    peers["a"] = {"address": "10.0.0.1", "passive": True, **peers["rack"], "as": 4200000001}
    del peers["a"]["listenRange"], peers["a"]["listenLimit"]
    assert reload(pair.b)["added"] == ["a"]
    await pair.b.until("Established", "", "a")
    assert await counts(pair.b) == {"a": 1, "rack6/fd00::1": 1}
    del peers["a"], peers["rack6"]
    assert reload(pair.b)["removed"] == ["a", "rack6"]
    await pair.b.until("Established", "", "rack/10.0.0.1")
    assert await counts(pair.b) == {"rack/10.0.0.1": 1}
    peers["rack"]["as"] = 4200000009
    key = tmp_path / "key"
    peers["rack"]["passwordFile"] = str(key)
    assert "peers.rack.passwordFile" in refused(pair.b)
    assert await counts(pair.b) == {"rack/10.0.0.1": 1}


async def test_a_restart_of_the_agent_leaves_the_routes_of_its_neighbours(pair: Pair) -> None:
    """RFC 4724: they are known by the names that they had, and waited for."""
    pair.a.config["advertise"] = [ANYCAST]
    await both(pair)
    await pair.b.until(ANYCAST, "/v1/routes")
    await pair.b.converged()
    with watched(pair.ns_b) as (watch,):
        await pair.b.stop(signal.SIGKILL)
        await pair.b.start()
        await pair.b.until("Established", "", "rack/10.0.0.1")
        await pair.b.until("Established", "", "rack6/fd00::1")
        await pair.b.converged()
        assert deleted(watch) == []
    assert f"{ANYCAST.partition('/')[0]} " in pair.ns_b.run("ip", "route")


def deleted(watch: Watch) -> list[str]:
    return [event for event in watch.events() if event.startswith("Deleted ")]


async def test_without_its_neighbour_the_routes_go_when_its_time_is_over(pair: Pair) -> None:
    pair.a.config["advertise"] = [ANYCAST]
    pair.b.config["bgp"] = {"gracefulRestart": {"restartTime": 1, "deferralTime": 1}}
    await both(pair)
    await pair.b.until(ANYCAST, "/v1/routes")
    await pair.b.converged()
    await pair.b.stop(signal.SIGKILL)
    await pair.a.stop(signal.SIGKILL)
    assert json.loads(pair.ns_b.run("ip", "-json", "route", "show", ANYCAST))
    with watched(pair.ns_b) as (watch,):
        await pair.b.start()
        async with asyncio.timeout(PATIENCE):
            while not any(ANYCAST.partition("/")[0] in event for event in deleted(watch)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
