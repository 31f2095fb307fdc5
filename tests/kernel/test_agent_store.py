"""A whole agent and etcd: there, not there yet, and gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.agents import PATIENCE, Agent, agents
from tests.etcd import Etcd, needs_etcd
from tests.netns import Netns

pytestmark = [pytest.mark.root, needs_etcd]


@pytest.fixture
def ns(netns: Callable[[], Netns]) -> Netns:
    return netns()


@pytest.fixture
def etcd(ns: Netns) -> Iterator[Etcd]:
    cluster = Etcd(wrap=ns.command())
    yield cluster
    cluster.close()


@pytest.fixture
async def agent(ns: Netns, etcd: Etcd) -> AsyncIterator[Agent]:
    async with agents() as (directory, running):
        pools = {"p": {"cidr": "10.64.0.0/16"}}
        running.append(Agent(ns, directory, "a", 65001, store=etcd.url, pools=pools))
        yield running[0]


async def status(agent: Agent, wanted: Callable[[Any], bool]) -> Any:
    """Return the agent's status once it is as wanted."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await asyncio.to_thread(agent.client.get, "/v1/status")
            if wanted(found):
                return found
            await asyncio.sleep(0.05)


async def test_an_agent_starts_without_its_store_and_joins_when_it_comes(agent: Agent, etcd: Etcd) -> None:
    await agent.start()
    found = await status(agent, lambda _: True)
    assert found["store"]["state"] == "away"
    assert f"store {etcd.url} does not answer" in found["store"]["problem"]
    assert found["blocks"] == []
    etcd.start_member(0)
    joined = await status(agent, lambda found: found["store"]["state"] == "connected" and found["blocks"])
    assert "store is back" in agent.log

    # Started again without the store, it goes on with what it has
    await agent.stop()
    etcd.kill(0)
    await agent.start()
    again = await status(agent, lambda _: True)
    assert again["store"]["state"] == "away"
    assert again["blocks"] == joined["blocks"]
