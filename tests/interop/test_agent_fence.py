"""Automatic reclaim and borrowing with whole agents, a real etcd and FRR as their ToR.

Two nodes and the store hang on one router. Node b is cut off from the store, not from the fabric.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.agents import PATIENCE, Agent, agents
from tests.etcd import Etcd, needs_etcd
from tests.frr import Frr
from tests.kernel.test_agent_life import add_pod, call
from tests.netns import Netns, link

pytestmark = [pytest.mark.root, needs_etcd]

TOR = """
log file /var/log/frr/log debugging
debug bgp updates
router bgp 65010
 bgp router-id 10.0.0.1
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 neighbor 10.1.1.11 remote-as 65001
 neighbor 10.1.2.11 remote-as 65002
 neighbor 10.1.1.11 timers 2 6
 neighbor 10.1.2.11 timers 2 6
 address-family ipv4 unicast
  neighbor 10.1.1.11 activate
  neighbor 10.1.2.11 activate
 exit-address-family
"""
RECLAIM = {"lease": 3, "fenceAfter": 3, "reclaimAfter": 12, "quarantine": 1}
# Node a is to be alive, however busy the machine is
STEADY = {"lease": 60, "reclaimAfter": 200, "quarantine": 1}
STORE = "10.9.9.9"


class Rack:
    """Nodes a and b, each on two ports of the ToR, and the store in the ToR's namespace.

    One link has the fabric, the other leads to the store and nowhere else.
    """

    def __init__(self, make: Callable[[], Netns]) -> None:
        self.tor, self.nodes = make(), [make(), make()]
        for number, ns in enumerate(self.nodes, 1):
            link(ns, "eth0", self.tor, f"p{number}")
            ns.run("ip", "addr", "add", f"10.1.{number}.11/24", "dev", "eth0")
            ns.run("ip", "route", "add", "default", "via", f"10.1.{number}.1")
            self.tor.run("ip", "addr", "add", f"10.1.{number}.1/24", "dev", f"p{number}")
            link(ns, "eth1", self.tor, f"m{number}")
            ns.run("ip", "addr", "add", f"10.2.{number}.11/24", "dev", "eth1")
            ns.run("ip", "route", "add", STORE, "via", f"10.2.{number}.1")
            self.tor.run("ip", "addr", "add", f"10.2.{number}.1/24", "dev", f"m{number}")
        self.tor.run("ip", "addr", "add", f"{STORE}/32", "dev", "lo")
        self.tor.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.etcd = Etcd(hosts=[STORE], wrap=self.tor.command())
        self.frr = Frr(self.tor, TOR)

    def close(self) -> None:
        self.frr.close()
        self.etcd.close()

    def store_link(self, number: int, state: str) -> None:
        """Set the ToR's end of a node's link to the store ``up`` or ``down``: the node loses its carrier."""
        self.tor.run("ip", "link", "set", f"m{number}", state)

    def seen(self) -> dict[str, set[str]]:
        """Return by which neighbours the ToR has been told of each prefix."""
        routes: dict[str, Any] = self.frr.show("bgp ipv4 unicast")["routes"]
        return {prefix: {path["peerId"] for path in paths} for prefix, paths in routes.items()}

    def told(self, prefix: str) -> list[str]:
        """Return who announced (+) and withdrew (-) a prefix, in the order in which the ToR heard it."""
        log = self.frr.run("cat", "/var/log/frr/log")
        found: list[str] = []
        for neighbour, rest in re.findall(rf"(10[.]1[.][12][.]11)\S* rcvd (?:UPDATE about )?{prefix} (.*)", log):
            word = ("-" if "withdrawn" in rest else "+") + neighbour
            if found[-1:] != [word]:
                found.append(word)
        return found


@pytest.fixture
async def rack(netns: Callable[[], Netns]) -> AsyncIterator[Rack]:
    made = Rack(netns)
    try:
        await asyncio.to_thread(made.etcd.start)
        yield made
    finally:
        made.close()


@pytest.fixture
async def two(rack: Rack) -> AsyncIterator[Callable[..., Any]]:
    async with agents() as (directory, running):

        async def start(ipam: dict[str, dict[str, Any]], **settings: Any) -> list[Agent]:
            for number, (name, ns) in enumerate(zip("ab", rack.nodes, strict=True), 1):
                peer = {"address": f"10.1.{number}.1", "as": 65010, "import": "accept", "export": "accept"}
                agent = Agent(
                    ns,
                    directory,
                    name,
                    65000 + number,
                    store=rack.etcd.url,
                    peers={"tor": {**peer, "holdTime": 6}},
                    bgp={"connectRetry": 1, "gracefulRestart": {"enabled": False}},
                    ipam=ipam[name],
                    **settings,
                )
                running.append(agent)
                await agent.start()
            for agent in running:
                await agent.converged()
            return running

        yield start


def add_fails(agent: Agent, netns: Callable[[], Netns], name: str) -> str:
    done = call(agent, "ADD", netns(), name)
    assert done.returncode, done.stdout
    return done.stdout


async def logged(agent: Agent, words: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while words not in agent.log:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)


async def answers(source: Netns, address: str) -> bool:
    """Tell whether an answer comes, within two attempts."""
    done = await asyncio.to_thread(source.run, "ping", "-c", "2", "-i", "0.2", "-W", "1", "-q", address, check=False)
    return " 0% packet loss" in done or " 50% packet loss" in done


async def reaches(source: Netns, address: str) -> None:
    """Wait for an answer: the kernels of who is told of a route and of the router that tells of it have it later."""
    async with asyncio.timeout(PATIENCE):
        while not await answers(source, address):
            pass


async def test_a_node_cut_off_from_the_store_never_shares_its_block(
    rack: Rack, two: Callable[..., Any], netns: Callable[[], Netns]
) -> None:
    a, b = await two({"a": STEADY, "b": RECLAIM}, pools={"p": {"cidr": "10.64.0.0/25", "blockSize": 26}})
    pod, (address,) = add_pod(b, netns, "old")
    (block,) = (await b.get("/v1/status"))["blocks"]
    (other,) = (await a.get("/v1/status"))["blocks"]
    pod_a, (address_a,) = add_pod(a, netns, "steady")
    await reaches(pod_a, address)

    rack.store_link(2, "down")
    await logged(b, "NODE FENCED")
    await b.until("'established': 1", "/v1/status")  # the fabric is there
    assert "is fenced: the store" in add_fails(b, netns, "new")
    async with asyncio.timeout(PATIENCE):
        while rack.seen() != {other: {"10.1.1.11"}}:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)

    # The other node takes it once it may
    await logged(a, "DEAD NODE RECLAIMED")
    async with asyncio.timeout(PATIENCE):
        while True:
            taken = call(a, "ADD", netns(), "wants", ips=[address])
            if not taken.returncode:
                break
            call(a, "DEL", netns(), "wants")
            await asyncio.sleep(0.2)
    async with asyncio.timeout(PATIENCE):
        while rack.seen().get(block) != {"10.1.1.11"}:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
    assert (await b.get("/v1/status"))["store"]["fenced"]

    # Back: it finds out, says so, and its old container is cut off both ways
    rack.store_link(2, "up")
    await b.until(f"'lostBlocks': ['{block}']", "/v1/status")
    status = await b.until("'fenced': False", "/v1/status")
    assert status["blocks"] == []
    await logged(b, "BLOCK LOST")
    assert "lost-block" in b.command("ipam", "check").stdout
    async with asyncio.timeout(PATIENCE):
        while f"from {address} iif" not in b.ns.run("ip", "rule"):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
        while f"{address} dev" in b.ns.run("ip", "route"):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
    assert not await answers(pod, address_a)
    # At no moment was the ToR told of the block by both (on a busy machine each may have said it more than once)
    told = rack.told(block)
    takeover = told.index("+10.1.1.11")
    assert told[takeover - 1] == "-10.1.2.11", told
    assert {word[1:] for word in told[:takeover]} == {"10.1.2.11"}
    assert {word[1:] for word in told[takeover:]} == {"10.1.1.11"}
    # The rule goes with the container
    assert call(b, "DEL", pod, "old").returncode == 0
    async with asyncio.timeout(PATIENCE):
        while f"from {address} iif" in b.ns.run("ip", "rule"):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
    await b.until("'lostBlocks': []", "/v1/status")


async def test_a_borrowed_address_has_traffic_and_goes_back(
    rack: Rack, two: Callable[..., Any], netns: Callable[[], Netns]
) -> None:
    pools = {"p": {"cidr": "10.64.0.0/29", "blockSize": 30}}
    lending = {"lease": 30, "borrowing": True}
    a, b = await two({"a": lending, "b": lending}, pools=pools)
    for number in range(4):
        own, _ = add_pod(b, netns, f"own{number}")
    (lent,) = (await a.get("/v1/status"))["blocks"]
    pod_a, (address_a,) = add_pod(a, netns, "lender")
    pod, (address,) = add_pod(b, netns, "borrower")
    async with asyncio.timeout(PATIENCE):
        while rack.seen() | {f"{address}/32": {"10.1.2.11"}, lent: {"10.1.1.11"}} != rack.seen():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    (loan,) = [one for one in json.loads(a.command("ipam", "blocks", "--json").stdout) if one["loans"]]
    assert (loan["prefix"], loan["loans"]) == (lent, {address: "b"})
    # From the fabric, from a neighbour, and from the lender's own containers, both ways
    await a.until(f"{address}/32", "/v1/routes")
    await reaches(rack.tor, address)
    await reaches(own, address)
    await reaches(pod_a, address)
    await reaches(pod, address_a)
    for agent in (a, b):
        assert "agree" in agent.command("ipam", "check").stdout, agent.command("ipam", "check").stdout
    assert call(b, "DEL", pod, "borrower").returncode == 0
    async with asyncio.timeout(PATIENCE):
        while f"{address}/32" in rack.seen():  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
        while any(one["loans"] for one in await a.get("/v1/ipam/blocks")):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
    assert "agree" in a.command("ipam", "check").stdout
