"""A mesh out of node records: sessions come and go with the nodes, and the others notice nothing."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tests.agents import PATIENCE, Agent, agents
from tests.bridge import Bridge, established
from tests.frr import Frr
from tests.kernel.test_agent_life import add_pod
from tests.netns import Netns
from tests.watch import watched

pytestmark = pytest.mark.root


@pytest.fixture
async def bridge(netns: Callable[[], Netns]) -> AsyncIterator[Bridge]:
    async with agents() as (directory, running):
        yield Bridge(netns, directory, running)


async def test_sessions_come_and_go_with_node_records(bridge: Bridge) -> None:
    n1, n2, n3 = bridge.agent(1), bridge.agent(2), bridge.agent(3, asn=65003)
    await n1.start()
    await n2.start()
    before = await established(n1, "all/n2/ipv4")
    await established(n2, "all/n1/ipv4")
    await n3.start()
    after = await established(n1, "all/n2/ipv4", "all/n3/ipv4")
    await established(n2, "all/n1/ipv4", "all/n3/ipv4")
    await established(n3, "all/n1/ipv4", "all/n2/ipv4")
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


async def block_of(agent: Agent) -> str:
    (block,) = await agent.get("/v1/blocks")
    return str(block["prefix"])


async def until_route(ns: Netns, text: str, *, there: bool) -> None:
    async with asyncio.timeout(PATIENCE):
        while (text in ns.run("ip", "route", "show", "proto", "201")) is not there:  # noqa: ASYNC110 (the kernel)
            await asyncio.sleep(0.05)


async def test_a_restart_keeps_what_the_mesh_had_announced_for_its_time(bridge: Bridge) -> None:
    """Its peers come back after us, or never: until then, but no longer than the restart time, their routes stay."""
    restart = {"gracefulRestart": {"restartTime": 6, "deferralTime": 2}}
    n1, n2, n3 = (bridge.agent(number, bgp=restart) for number in (1, 2, 3))
    for agent in (n1, n2, n3):
        await agent.start()
    await established(n1, "all/n2/ipv4", "all/n3/ipv4")
    two, three = await block_of(n2), await block_of(n3)
    for block in (two, three):
        await until_route(n1.ns, block, there=True)
    await n1.stop(signal.SIGKILL)
    await n2.stop(signal.SIGKILL)
    assert n3.process is not None
    n3.process.send_signal(signal.SIGSTOP)
    with watched(n1.ns) as (watch,):
        began = time.monotonic()
        try:
            await n1.start()
        finally:
            n3.process.send_signal(signal.SIGCONT)
        await until_route(n1.ns, two, there=False)  # when the patience with n2 has ended
        assert time.monotonic() - began >= restart["gracefulRestart"]["restartTime"]
        await n1.until("'endOfRib': 'received'", "", "all/n3/ipv4")
        assert not [event for event in watch.events() if event.startswith(f"Deleted {three} ")]
    await until_route(n1.ns, three, there=True)


async def test_pods_have_the_mtu_of_the_way_to_the_mesh(bridge: Bridge, netns: Callable[[], Netns]) -> None:
    n1, n2 = bridge.agent(1), bridge.agent(2)
    n1.ns.run("ip", "link", "set", "eth0", "mtu", "1400")
    await n1.start()
    await n2.start()
    await established(n1, "all/n2/ipv4")
    pod, _ = add_pod(n1, netns, "one")
    assert " mtu 1400 " in pod.run("ip", "link", "show", "eth0")


async def test_reflectors_pass_on_between_nodes_that_know_only_them(bridge: Bridge) -> None:
    mesh = {"reflectors": True}
    clients = [bridge.agent(number, mesh=mesh) for number in (1, 2)]
    watching = {"address": "10.0.0.9", "as": 65000, "routeReflectorClient": True, "import": "accept"}
    watching["export"] = {"rules": [{"name": "all", "match": {"source": ["learned", "block"]}, "action": "accept"}]}
    reflectors = [
        bridge.agent(3, mesh=mesh, bgp={"clusterId": "203.0.113.3"}, peers={"frr": watching}),
        bridge.agent(4, mesh=mesh, bgp={"clusterId": "203.0.113.4"}),
    ]
    frr = Frr(bridge.plug(9), "router bgp 65000\n bgp router-id 192.0.2.9\n neighbor 10.0.0.3 remote-as 65000")
    try:
        for agent in (*clients, *reflectors):
            await agent.start()
        for agent in clients:
            await established(agent, "all/n3/ipv4", "all/n4/ipv4")
        await established(reflectors[1], "all/n1/ipv4", "all/n2/ipv4", "all/n3/ipv4")
        block = await block_of(clients[1])
        await until_route(clients[0].ns, f"{block} ", there=True)
        async with asyncio.timeout(PATIENCE):  # the one reflector passes it on before the other
            while len(passed_on := (await clients[0].routes())[block]["paths"]) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert {path["peer"] for path in passed_on} == {"all/n3/ipv4", "all/n4/ipv4"}
        assert {path["nextHop"] for path in passed_on} == {"10.0.0.2"}
        async with asyncio.timeout(PATIENCE):
            while not (paths := frr.show(f"bgp ipv4 unicast {block}").get("paths")):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert paths[0]["clusterList"]["list"] == ["203.0.113.3"]
        assert paths[0]["originatorId"] == "192.0.2.2"
    finally:
        frr.close()


async def test_a_restart_in_a_mesh_changes_no_route_anywhere(bridge: Bridge) -> None:
    """RFC 4724: the routes that the kernel keeps are of sessions that no file names."""
    n1, n2 = bridge.agent(1), bridge.agent(2)
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
