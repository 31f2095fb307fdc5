"""Metrics of a whole agent beside FRR and etcd: each moves when what it counts happens, and no sooner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.agents import Agent, agents
from tests.etcd import Etcd, needs_etcd
from tests.frr import Frr
from tests.kernel.test_agent_life import add_pod, call
from tests.netns import Netns, link

pytestmark = [pytest.mark.root, needs_etcd]

TOR = """
ip prefix-list own permit 192.0.2.0/24 le 32
router bgp 65010
 bgp router-id 10.0.0.1
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 10.1.1.11 remote-as 65001
 neighbor 10.1.1.11 timers 3 9
 neighbor 10.1.1.11 timers connect 1
 address-family ipv4 unicast
  network 192.0.2.0/25
  network 192.0.2.128/25
  neighbor 10.1.1.11 prefix-list own out
 exit-address-family
"""
NEIGHBOR = ("router bgp 65010", "neighbor 10.1.1.11 {}")


class Rack:
    def __init__(self, make: Callable[[], Netns]) -> None:
        self.tor, self.node = make(), make()
        link(self.node, "eth0", self.tor, "p1")
        self.node.run("ip", "addr", "add", "10.1.1.11/24", "dev", "eth0")
        self.tor.run("ip", "addr", "add", "10.1.1.1/24", "dev", "p1")
        self.etcd = Etcd(wrap=self.node.command())
        self.frr = Frr(self.tor, TOR)

    def close(self) -> None:
        self.frr.close()
        self.etcd.close()


@pytest.fixture
def rack(netns: Callable[[], Netns]) -> Iterator[Rack]:
    made = Rack(netns)
    yield made
    made.close()


@pytest.fixture
async def agent(rack: Rack) -> AsyncIterator[Agent]:
    await asyncio.to_thread(rack.etcd.start)
    async with agents() as (directory, running):
        peers = {"tor": {"address": "10.1.1.1", "as": 65010, "import": "accept", "export": "accept"}}
        pools = {"p": {"cidr": "10.64.0.0/16"}}
        # Without graceful restart, so that what a lost peer announced goes with it
        bgp = {"connectRetry": 1, "gracefulRestart": {"enabled": False}}
        made = Agent(rack.node, directory, "a", 65001, store=rack.etcd.url, pools=pools, peers=peers, bgp=bgp)
        running.append(made)
        await made.start()
        await made.converged()
        yield made


async def test_sessions_and_routes(rack: Rack, agent: Agent) -> None:
    await agent.metrics_when("fib_routes", 3, family="ipv4", state="installed")  # and the block's cover
    now = await agent.metrics()
    assert now("bgp_session_established", peer="tor") == 1
    assert now("bgp_session_state", peer="tor", state="Established") == 1
    assert sum(now("bgp_session_state", peer="tor", state=s) for s in ("Idle", "Connect", "Active", "OpenSent")) == 0
    assert now("bgp_peer_info", peer="tor", address="10.1.1.1", range="", **{"as": "65010"}) == 1
    assert now("bgp_prefixes_received", peer="tor", family="ipv4") == 2
    assert now("bgp_prefixes_accepted", peer="tor", family="ipv4") == 2
    assert now("bgp_prefixes_advertised", peer="tor", family="ipv4") == 1
    assert now("bgp_end_of_rib_received", peer="tor", family="ipv4") == 1
    assert (now("bgp_loc_rib_prefixes", family="ipv4"), now("bgp_originated_prefixes", family="ipv4")) == (3, 1)
    assert (now("fib_next_hop_objects"), now("fib_next_hop_groups")) == (1, 1)
    opened = now("bgp_messages_total", peer="tor", direction="sent", type="OPEN")
    assert opened >= 1
    assert now("bgp_sessions_lost_total", peer="tor", reason="notification_received") == 0

    # A prefix is withdrawn
    rack.frr.configure("router bgp 65010", "address-family ipv4 unicast", "no network 192.0.2.128/25")
    await agent.metrics_when("bgp_prefixes_received", 1, peer="tor", family="ipv4")
    await agent.metrics_when("fib_routes", 2, family="ipv4", state="installed")
    now = await agent.metrics()
    assert now("bgp_loc_rib_prefixes", family="ipv4") == 2

    # Somebody deletes the other in the kernel
    assert now("fib_repaired_routes_total", cause="route deleted by another program") == 0
    rack.node.run("ip", "route", "del", "192.0.2.0/25")
    await agent.metrics_when("fib_repaired_routes_total", 1, cause="route deleted by another program")

    # The ToR's operator ends the session
    rack.frr.configure(*(line.format("shutdown") for line in NEIGHBOR))
    now = await agent.metrics_when("bgp_session_established", 0, peer="tor")
    assert now("bgp_sessions_lost_total", peer="tor", reason="notification_received") == 1
    assert now("bgp_last_notification_timestamp_seconds", peer="tor", direction="received", code="6", subcode="2")
    assert now("bgp_prefixes_received", peer="tor", family="ipv4") == 0
    await agent.metrics_when("fib_routes", 1, family="ipv4", state="installed")
    rack.frr.configure(*(line.format("shutdown").replace("neighbor", "no neighbor") for line in NEIGHBOR))
    now = await agent.metrics_when("bgp_session_established", 1, peer="tor")
    assert now("bgp_sessions_established_total", peer="tor") == 2
    assert now("bgp_messages_total", peer="tor", direction="sent", type="OPEN") > opened

    # Its daemon dies
    rack.frr.end("bgpd")
    now = await agent.metrics_when("bgp_session_established", 0, peer="tor")
    reasons = ("connection", "hold_timer", "notification_received")
    assert sum(now("bgp_sessions_lost_total", peer="tor", reason=reason) for reason in reasons) == 2


async def test_addresses_and_containers(rack: Rack, agent: Agent, netns: Callable[[], Netns]) -> None:
    now = await agent.metrics()
    assert (now("ready"), now("converged"), now("cni_pods")) == (1, 1, 0)
    assert (now("ipam_blocks", pool="p"), now("ipam_claims_total", result="granted")) == (1, 1)
    assert now("ipam_addresses", pool="p", state="used") == 0
    assert now("cni_requests_total", verb="ADD", code="0") == 0
    pod, _ = await asyncio.to_thread(add_pod, agent, netns, "one")
    now = await agent.metrics()
    assert (now("cni_pods"), now("ipam_addresses", pool="p", state="used")) == (1, 1)
    assert now("ipam_addresses", pool="p", state="free") == 63
    assert now("cni_requests_total", verb="ADD", code="0") == 1
    assert now("cni_request_duration_seconds_count", verb="ADD") == 1
    assert now("cni_request_duration_seconds_bucket", verb="ADD", le="+Inf") == 1
    assert now("cni_request_duration_seconds_sum", verb="ADD") > 0
    again = await asyncio.to_thread(call, agent, "ADD", pod, "one")
    assert again.returncode
    assert (await agent.metrics())("cni_requests_total", verb="ADD", code="101") == 1
    assert (await asyncio.to_thread(call, agent, "DEL", pod, "one")).returncode == 0
    now = await agent.metrics_when("ipam_addresses", 0, pool="p", state="used")
    assert (now("cni_pods"), now("cni_requests_total", verb="DEL", code="0")) == (0, 1)

    # The store goes
    assert now("ipam_store_reachable") == 1
    contact = now("ipam_store_last_contact_timestamp_seconds")
    rack.etcd.kill(0)
    now = await agent.metrics_when("ipam_store_reachable", 0)
    assert now("ready") == 1  # what it has, it has
    # The machine's own clock is converted at each scrape
    assert now("ipam_store_last_contact_timestamp_seconds") > contact - 1 > now("process_start_time_seconds") - 1

    # All the same in both formats
    status, content_type, text = await agent.read("/metrics")
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "\npodroute_converged 1.0\n" in text
    status, content_type, text = await agent.read("/metrics", "application/openmetrics-text; version=1.0.0")
    assert (status, content_type.partition(";")[0]) == (200, "application/openmetrics-text")
    assert text.endswith("# EOF\n")
