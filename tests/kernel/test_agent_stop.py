"""The three ways in which an agent ends, and what is left of it (`podroute stop`, `onStop`)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.agents import PATIENCE, agents
from tests.kernel.test_agent_life import Pair
from tests.netns import Netns

pytestmark = pytest.mark.root


@pytest.fixture
async def pair(netns: Callable[[], Netns]) -> AsyncIterator[Pair]:
    async with agents() as (directory, running):
        yield Pair(directory, running, netns)


async def stopped(pair: Pair, *argv: str) -> str:
    """Stop ``a`` by its command; return what the command said."""
    done = pair.a.command("stop", *argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert pair.a.process is not None
    assert pair.a.process.wait(PATIENCE) == 0, pair.a.log
    return done.stdout.strip()


async def block_of(pair: Pair) -> str:
    (block,) = [b["prefix"] for b in await pair.a.get("/v1/blocks") if b["family"] == "ipv4"]
    return str(block)


def routes(ns: Netns) -> str:
    return ns.run("ip", "route", "show", "proto", "201") + ns.run("ip", "-6", "route", "show", "proto", "201")


async def lost(pair: Pair) -> dict[str, Any]:
    return await pair.b.until("Shutdown", "", "v4")


async def test_graceful_leaves_routes_on_both_sides(pair: Pair) -> None:
    await pair.start()
    before = routes(pair.ns_a), routes(pair.ns_b)
    assert await stopped(pair) == "stopping, mode graceful"
    assert (routes(pair.ns_a), routes(pair.ns_b)) == before
    peer = await pair.b.until("the peer closed the connection", "", "v4")
    assert peer["lastReceived"] is None


async def test_drain_leads_traffic_away_and_says_goodbye(pair: Pair) -> None:
    """RFC 8326: seen as to be avoided first, then withdrawn, and the session ends with a reason."""
    pair.a.config["onStop"] = {"mode": "drain", "drainTime": 600}
    await pair.start()
    block, kept = await block_of(pair), routes(pair.ns_a)
    assert pair.a.process is not None
    pair.a.process.terminate()
    async with asyncio.timeout(PATIENCE):
        while "graceful-shutdown" not in str(shown := await pair.b.routes(prefix=block)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert [path["localPref"] for path in shown[block]["paths"]] == [0]
    assert (await pair.a.get("/v1/status"))["state"] == "draining"
    await pair.a.stop(signal.SIGKILL)
    pair.a.config["onStop"]["drainTime"] = 0
    await pair.a.start()
    await pair.a.converged()
    pair.a.process.terminate()
    peer = await lost(pair)
    assert peer["lastReceived"]["text"] == 'Cease/Hard Reset: Cease/Administrative Shutdown: "node drained"'
    await pair.b.without(block)
    assert pair.a.process.wait(PATIENCE) == 0
    assert routes(pair.ns_a) == kept, "pods go on talking"


async def test_purge_removes_everything(pair: Pair) -> None:
    pair.a.config["cni"]["masquerade"] = True
    await pair.start()
    block = await block_of(pair)
    assert "podroute" in pair.ns_a.run("nft", "list", "tables")
    assert await stopped(pair, "--mode", "purge") == "stopping, mode purge"
    assert routes(pair.ns_a) == pair.ns_a.run("nft", "list", "tables") == ""
    assert block not in [one["prefix"] for one in await pair.b.get("/v1/ipam/blocks")], "it is free again"
    peer = await lost(pair)
    assert peer["lastReceived"]["text"] == 'Cease/Hard Reset: Cease/Administrative Shutdown: "node removed"'
    await pair.b.without(block)


async def test_an_unknown_mode_is_refused(pair: Pair) -> None:
    await pair.a.start()
    assert pair.a.command("stop", "--mode", "now").returncode == 2
