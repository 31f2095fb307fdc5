"""A mesh out of node records: sessions come and go with the nodes, and the others notice nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.agents import PATIENCE, Agent, agents
from tests.netns import Netns, link
from tests.watch import watched

pytestmark = pytest.mark.root


@pytest.fixture
async def three(netns: Callable[[], Netns]) -> AsyncIterator[list[Agent]]:
    """Three agents on one bridge and one store, none started; the third is in another rack."""
    switch = netns()
    switch.run("ip", "link", "add", "br0", "type", "bridge")
    switch.run("ip", "link", "set", "br0", "up")
    async with agents() as (directory, running):
        for number in (1, 2, 3):
            ns = netns()
            link(ns, "eth0", switch, f"p{number}")
            switch.run("ip", "link", "set", f"p{number}", "master", "br0")
            ns.run("ip", "addr", "add", f"10.0.0.{number}/24", "dev", "eth0")
            asn = 65000 if number < 3 else 65003
            policies = {"import": "accept", "export": "accept", "holdTime": 9}
            agent = Agent(
                ns,
                directory,
                f"n{number}",
                asn,
                node={
                    "name": f"n{number}",
                    "as": asn,
                    "routerId": f"192.0.2.{number}",
                    "addresses": [f"10.0.0.{number}"],
                    "labels": {"rack": "r1" if number < 3 else "r2"},
                },
                pools={"p": {"cidr": "10.64.0.0/16"}},
                ipam={"lease": 3},
                mesh={"all": {"select": {}, **policies}},
            )
            running.append(agent)
        yield running


async def established(agent: Agent, *names: str) -> dict[str, Any]:
    """Return an agent's sessions once they are exactly these, all established."""
    async with asyncio.timeout(PATIENCE):
        while True:
            peers = {peer["name"]: peer for peer in await asyncio.to_thread(agent.client.get, "/v1/peers")}
            if set(peers) == set(names) and all(peer["state"] == "Established" for peer in peers.values()):
                return peers
            await asyncio.sleep(0.05)


async def test_sessions_come_and_go_with_node_records(three: list[Agent]) -> None:
    n1, n2, n3 = three
    await n1.start()
    await n2.start()
    before = await established(n1, "all/n2/ipv4")
    await established(n2, "all/n1/ipv4")
    await n3.start()
    await established(n3, "all/n1/ipv4", "all/n2/ipv4")
    after = await established(n1, "all/n2/ipv4", "all/n3/ipv4")
    assert after["all/n2/ipv4"]["for"] >= before["all/n2/ipv4"]["for"]
    async with asyncio.timeout(PATIENCE):
        # Two learned blocks and the own one's cover
        while n1.ns.run("ip", "route").count("proto 201") < 3:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)

    await n3.stop()
    for _ in range(100):
        done = n1.command("ipam", "reclaim", "n3", "--socket", str(n1.socket))
        if done.returncode == 0:
            break
        await asyncio.sleep(0.5)
    assert done.returncode == 0, done.stderr
    left = await established(n1, "all/n2/ipv4")
    assert left["all/n2/ipv4"]["for"] >= after["all/n2/ipv4"]["for"]


async def test_a_restart_in_a_mesh_changes_no_route_anywhere(three: list[Agent]) -> None:
    """RFC 4724: the routes that the kernel keeps are of sessions that no file names."""
    n1, n2, _ = three
    await n1.start()
    await n2.start()
    await routed(n1, n2)
    with watched(n1.ns, n2.ns) as (here, there):
        await n1.stop()
        await n1.start()
        await established(n1, "all/n2/ipv4")
        await n1.converged()
        await routed(n1, n2)
        assert (here.events(), there.events()) == ([], [])


async def routed(*nodes: Agent) -> None:
    """Wait until each node has a learned route and its own block's cover."""
    async with asyncio.timeout(PATIENCE):
        while any(node.ns.run("ip", "route").count("proto 201") < 2 for node in nodes):  # noqa: ASYNC110 (as above)
            await asyncio.sleep(0.05)
