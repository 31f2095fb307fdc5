"""Graceful restart against FRR (RFC 4724, RFC 8538): whole agents restart, and the speaker helps a router that does."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from typing import IO, Any

import pytest

from tests.agents import Agent, agents
from tests.frr import Frr
from tests.netns import Netns, link
from tests.watch import watched

pytestmark = pytest.mark.root

NODE_AS, TOR_AS = 4200000001, 65010
POOLS = {"pods4": {"cidr": "10.64.0.0/16", "blockSize": 26}, "pods6": {"cidr": "fd00:64::/48", "blockSize": 122}}
FAR4, FAR6 = "192.0.2.1", "2001:db8:1::1"
PATIENCE = 60.0
IN_FLIGHT = 10
"""Requests that ping, one every 20 ms, may have sent since it printed the last answer: more than there can be."""


CONFIG = f"""
router bgp {TOR_AS}
 bgp router-id 10.0.0.1
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 bgp graceful-restart restart-time 60
 neighbor 10.1.1.11 remote-as {NODE_AS}
 neighbor fd00:1::11 remote-as {NODE_AS}
 address-family ipv4 unicast
  network 192.0.2.0/24
  neighbor 10.1.1.11 activate
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:1::/48
  neighbor fd00:1::11 activate
 exit-address-family
"""


class Rack:
    """An agent on ``node``, and FRR on ``tor`` behind which is a network."""

    def __init__(self, node: Netns, tor: Netns, frr: Frr, agent: Agent) -> None:
        self.node, self.tor, self.frr, self.agent = node, tor, frr, agent

    async def converged(self) -> None:
        await self.agent.converged()
        for family in ("-4", "-6"):
            await become(lambda: self.tor.run("ip", family, "route", "show", "proto", "bgp") != "")  # noqa: B023


@pytest.fixture
async def rack(netns: Callable[[], Netns]) -> AsyncIterator[Rack]:
    node, tor = netns(), netns()
    link(node, "eth0", tor, "eth1")
    for ns, device, last in ((node, "eth0", "11"), (tor, "eth1", "1")):
        ns.run("ip", "addr", "add", f"10.1.1.{last}/24", "dev", device)
        ns.run("ip", "addr", "add", f"fd00:1::{last}/64", "dev", device, "nodad")
        ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    for far in (f"{FAR4}/24", f"{FAR6}/48"):
        tor.run("ip", "addr", "add", far, "dev", "lo")
    frr = Frr(tor, CONFIG)
    common = {"as": TOR_AS, "import": "accept", "export": "accept", "holdTime": 9}
    peers = {"tor-v4": {"address": "10.1.1.1", **common}, "tor-v6": {"address": "fd00:1::1", **common}}
    try:
        async with agents() as (directory, running):
            agent = Agent(node, directory, "n1", NODE_AS, pools=POOLS, peers=peers, bgp={"connectRetry": 1})
            running.append(agent)
            await agent.start()
            rack = Rack(node, tor, frr, agent)
            await rack.converged()
            yield rack
    finally:
        frr.close()


@contextmanager
def pinging(ns: Netns, *addresses: str) -> Iterator[list[set[int]]]:
    """Ping while the block runs; afterwards the list holds, for each address, which requests had no answer.

    It ends with an answer to a request of after the block: what ping has yet to read then is not lost.
    """
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in addresses]
        pings = [
            subprocess.Popen(ns.command("ping", "-n", "-i0.02", address), stdout=output)
            for address, output in zip(addresses, outputs, strict=True)
        ]
        lost: list[set[int]] = []
        try:
            yield lost
            for output in outputs:
                answered = _answered(output)
                last = _await_more(output, max(answered, default=0) + IN_FLIGHT)
                lost.append(set(range(1, last)) - _answered(output))
        finally:
            for ping in pings:
                ping.kill()
                ping.wait()


def _answered(output: IO[str]) -> set[int]:
    """Return the numbers of the requests to which ping has printed an answer so far."""
    text = os.pread(output.fileno(), 1 << 24, 0).decode()  # ping writes on at the descriptor's offset
    return {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=.*\n", text)}


def _await_more(output: IO[str], number: int) -> int:
    """Wait for the answer to a request of at least this number, and return its number."""
    deadline = time.monotonic() + PATIENCE
    while True:
        if (last := max(_answered(output), default=0)) >= number:
            return last
        assert time.monotonic() < deadline, f"no answer to request {number} or a later one"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_of_the_agent_changes_no_route_anywhere(rack: Rack, how: signal.Signals) -> None:
    """RFC 4724 section 4: three restarts in a row, IPv4 and IPv6, node and ToR, and no packet is lost."""
    with pinging(rack.node, FAR4, FAR6) as losses, watched(rack.node, rack.tor) as (node, tor):
        for _ in range(3):
            await rack.agent.stop(how)
            await rack.agent.start()
            await rack.converged()
        assert node.events() == []
        assert tor.events() == []
    assert losses == [set(), set()]


async def test_without_graceful_restart_the_tor_does_see_it(rack: Rack) -> None:
    """The control: the same watch shows the changes when there are any."""
    await rack.agent.stop()
    rack.agent.config["bgp"]["gracefulRestart"] = {"enabled": False}
    await rack.agent.start()
    await rack.converged()
    with watched(rack.tor) as (tor,):
        await rack.agent.stop()
        await become(lambda: rack.tor.run("ip", "-4", "route", "show", "proto", "bgp") == "")
        assert tor.events()


async def test_a_restart_of_the_tor_changes_no_route_on_the_node(rack: Rack) -> None:
    """RFC 4724 section 4.2: we keep what FRR announced while its bgpd is away, and a second time in a row."""
    with watched(rack.node) as (node,):
        for _ in range(2):
            await asyncio.to_thread(rack.frr.end, "bgpd", signal.SIGKILL)
            peer = await until(rack.agent, "tor-v4", lambda peer: peer["state"] != "Established")
            assert peer["families"]["ipv4"]["stale"] > 0
            await asyncio.to_thread(rack.frr.start, "bgpd")
            await asyncio.to_thread(rack.frr.vtysh, "-b")
            await rack.converged()
        assert node.events() == []
    for name, family in (("tor-v4", "ipv4"), ("tor-v6", "ipv6")):
        assert (await rack.agent.peer(name))["families"][family]["stale"] == 0


async def test_what_the_tor_does_not_announce_again_goes_at_its_end_of_rib(rack: Rack) -> None:
    await asyncio.to_thread(rack.frr.end, "bgpd", signal.SIGKILL)
    await until(rack.agent, "tor-v4", lambda peer: peer["state"] != "Established")
    assert "192.0.2.0/24" in rack.node.run("ip", "route")
    await asyncio.to_thread(rack.frr.run, "sed", "-i", "/network 192.0.2.0/d", "/etc/frr/frr.conf")
    await asyncio.to_thread(rack.frr.start, "bgpd")
    await asyncio.to_thread(rack.frr.vtysh, "-b")
    await rack.agent.converged()
    assert "192.0.2.0/24" not in rack.node.run("ip", "route")
    assert "2001:db8:1::/48" in rack.node.run("ip", "-6", "route")


async def test_a_tor_that_does_not_come_back_loses_its_routes_after_its_restart_time(rack: Rack) -> None:
    await asyncio.to_thread(rack.frr.configure, f"router bgp {TOR_AS}", "bgp graceful-restart restart-time 2")
    await asyncio.to_thread(rack.frr.vtysh, "-c", "clear bgp *")
    for name in ("tor-v4", "tor-v6"):  # FRR's last words come after vtysh's
        await until(rack.agent, name, lambda peer: peer["establishedCount"] > 1)
    await rack.converged()
    await asyncio.to_thread(rack.frr.end, "bgpd", signal.SIGKILL)
    await become(lambda: "192.0.2.0/24" not in rack.node.run("ip", "route"))
    # Who looks at the kernel meanwhile may come late; the log tells when it was
    lost = [line for line in rack.agent.log.splitlines() if "session lost" in line and "tor-v4" in line][-1]
    assert "kept=ipv4" in lost
    (removed,) = [line for line in rack.agent.log.splitlines() if "stale paths removed" in line and "tor-v4" in line]
    assert "it did not come back in time" in removed
    assert logged_at(removed) - logged_at(lost) >= timedelta(seconds=2)


async def test_a_shutdown_by_the_tor_is_no_restart(rack: Rack) -> None:
    """RFC 4724 section 4.2: a NOTIFICATION ends it, unless both ends agreed otherwise (RFC 8538)."""
    await asyncio.to_thread(rack.frr.configure, f"router bgp {TOR_AS}", "neighbor 10.1.1.11 shutdown")
    await until(rack.agent, "tor-v4", lambda peer: peer["state"] != "Established")
    await become(lambda: "192.0.2.0/24" not in rack.node.run("ip", "route"))


def logged_at(line: str) -> datetime:
    return datetime.fromisoformat(line.split()[0])


async def until(agent: Agent, name: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return what the API says of a peer once that ``holds``."""
    async with asyncio.timeout(PATIENCE):
        while True:
            peer = await agent.peer(name)
            if holds(peer):
                return peer
            await asyncio.sleep(0.02)


async def become(holds: Callable[[], bool]) -> None:
    """Wait until something is so that neither the kernel nor zebra tells of to those who wait."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if await asyncio.to_thread(holds):
                return
            await asyncio.sleep(0.05)
