"""How long it takes until all nodes of a mesh have a session with a new one, from when its record is in the store.

Whole agents, each in a network namespace on one bridge, with one store. The new node is called another name each time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from statistics import median

from benchmarks.report import Row
from config.store import Store as Settings
from ipam import records
from ipam.store import Delete, Store
from ipam.stores import store_of
from tests.agents import PATIENCE, Agent, agents
from tests.bridge import Bridge, established
from tests.netns import Netns

GOAL = 1.0
"""Seconds."""
_STEADY = {"lease": 60}
_LOOK = 0.01


def new_nodes(kind: str, nodes: int, tries: int) -> list[Row]:
    """``kind``: ``sqlite`` or ``etcd``. ``nodes``: how many there are before."""
    took = asyncio.run(_new_nodes(kind, nodes, tries))
    case = f"new node among {nodes}, {kind}: from its record to a session with each"
    return [
        Row(f"{case}, median of {tries}", "s", median(took), goal=GOAL),
        Row(f"{case}, most of {tries}", "s", max(took), goal=GOAL),
    ]


async def _new_nodes(kind: str, nodes: int, tries: int) -> list[float]:
    with ExitStack() as stack:

        def make() -> Netns:
            return stack.enter_context(closing(Netns()))

        async with agents() as (directory, running):
            bridge = stack.enter_context(closing(Bridge(make, directory, running, etcd=kind == "etcd")))
            if bridge.etcd is not None:
                bridge.etcd.start()
            stack.enter_context(bridge.switch.entered())  # where the store is
            store = store_of(Settings(url=bridge.store))
            await store.open()
            numbers = range(100, 100 + nodes)
            there = [bridge.agent(number, ipam=_STEADY) for number in numbers]
            for agent in there:
                await agent.start()
            for agent in there:
                await established(agent, *(f"all/n{n}/ipv4" for n in numbers if agent.name != f"n{n}"))
            # The lower address dials: in turn the new one, and those that are there
            new = [100 + nodes + each if each % 2 else 99 - each for each in range(tries)]
            found = [await _one(store, bridge.agent(number, ipam=_STEADY), there) for number in new]
            await store.close()
            return found


async def _one(store: Store, agent: Agent, there: Sequence[Agent]) -> float:
    """Start a node, measure, and take it and its record away again."""
    peer, key = f"all/{agent.name}/ipv4", records.node_key(agent.name)
    appeared = asyncio.create_task(_recorded(store, key))
    watching = asyncio.gather(*(_accepted(one, peer) for one in there))
    await agent.start()
    accepted = await watching
    await agent.stop()
    await store.transact([], [Delete(key)])
    for one in there:
        async with asyncio.timeout(PATIENCE):
            while peer in [found["name"] for found in await one.get("/v1/peers")]:  # noqa: ASYNC110 (as below)
                await asyncio.sleep(_LOOK)
    return max(accepted) - await appeared


async def _recorded(store: Store, key: str) -> float:
    """Return when a record was in the store, by the monotonic clock."""
    async with asyncio.timeout(PATIENCE):
        while await store.get(key) is None:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(_LOOK)
    return time.monotonic()


async def _accepted(agent: Agent, peer: str) -> float:
    """Return when an agent had a session."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for found in await agent.get("/v1/peers"):
                if found["name"] == peer and found["state"] == "Established":
                    return time.monotonic()
            await asyncio.sleep(_LOOK)
