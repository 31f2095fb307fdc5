"""The speaker against FRR over a veth pair: sessions both ways of connecting, IPv4 and IPv6 unicast both ways."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import pytest

from bgp.messages import Notification
from bgp.notifications import shutdown_text
from bgp.settings import PeerSettings
from config import prefix
from config.prefix import Family
from tests.bgp_speakers import PATIENCE, Node, TableResolver, peer, running
from tests.frr import Frr
from tests.netns import Netns, link

pytestmark = pytest.mark.root

TOR4, NODE4, TOR6, NODE6 = "10.1.1.1", "10.1.1.11", "fd00:1::1", "fd00:1::11"
TOR_AS, NODE_AS = 65010, 4200000001
LEARNED4, LEARNED6 = "192.0.2.0/24", "2001:db8:1::/48"
OWN4, OWN6 = "10.64.0.64/26", "fd00:64::40/122"

CONFIG = f"""
router bgp {TOR_AS}
 bgp router-id 10.0.0.1
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
 neighbor {NODE4} remote-as {NODE_AS}
 neighbor {NODE6} remote-as {NODE_AS}
 address-family ipv4 unicast
  network {LEARNED4}
  neighbor {NODE4} activate
 exit-address-family
 address-family ipv6 unicast
  network {LEARNED6}
  neighbor {NODE4} activate
  neighbor {NODE6} activate
 exit-address-family
"""


@dataclass
class Rack:
    node: Netns
    tor: Netns
    frr: Frr

    def speaker(self, *peers: PeerSettings, **options: Any) -> AbstractAsyncContextManager[Node]:
        options = {"resolver": TableResolver(own={4: packed(NODE4), 6: packed(NODE6)})} | options
        return running(self.node, NODE_AS, "10.0.0.11", peers, **options)

    async def ask(self, command: str) -> Any:
        return await asyncio.to_thread(self.frr.show, command)

    async def tell(self, *lines: str) -> None:
        await asyncio.to_thread(self.frr.configure, *lines)

    async def neighbor(self, address: str) -> Any:
        return (await self.ask(f"bgp neighbors {address}"))[address]

    async def frr_has(self, text: str, family: Family, *, present: bool = True, via: str = "") -> Any:
        """Wait until FRR's table has (or has not) a prefix, by a path with this next hop, and return its paths."""
        name = "ipv4" if family == 4 else "ipv6"
        try:
            async with asyncio.timeout(PATIENCE):
                while True:  # FRR tells nobody when it has taken an UPDATE that TCP has acknowledged
                    paths = (await self.ask(f"bgp {name} unicast"))["routes"].get(text)
                    if bool(paths) is present and (not via or paths[0]["nexthops"][0]["ip"] == via):
                        return paths
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"FRR: {text} {'missing' if present else 'still there'}") from None


@pytest.fixture
def rack(netns: Callable[[], Netns]) -> Iterator[Rack]:
    node, tor = netns(), netns()
    link(node, "eth0", tor, "eth1")
    for ns, device, addresses in ((node, "eth0", (NODE4, NODE6)), (tor, "eth1", (TOR4, TOR6))):
        ns.run("ip", "addr", "add", f"{addresses[0]}/24", "dev", device)
        ns.run("ip", "addr", "add", f"{addresses[1]}/64", "dev", device, "nodad")
    frr = Frr(tor, CONFIG)
    yield Rack(node, tor, frr)
    frr.close()


def tor4(asn: int = TOR_AS, **settings: Any) -> PeerSettings:
    return peer("tor-v4", TOR4, asn, **{"connect_retry": 1, "local_address": NODE4, **settings})


def tor6(**settings: Any) -> PeerSettings:
    return peer("tor-v6", TOR6, TOR_AS, **{"connect_retry": 1, "families": frozenset((6,)), **settings})


def packed(address: str) -> bytes:
    return prefix.of_address(address)[1][1:]


def entry(text: str) -> tuple[Family, bytes]:
    return prefix.parse(text)


async def test_we_connect_and_routes_go_both_ways(rack: Rack) -> None:
    await rack.tell(f"router bgp {TOR_AS}", f"neighbor {NODE4} passive", f"neighbor {NODE6} passive")
    async with rack.speaker(tor4(), tor6(), listen=()) as node:
        await exchange(rack, node)
        assert not node.status("tor-v4").incoming
        assert not node.status("tor-v6").incoming


async def test_frr_connects_and_routes_go_both_ways(rack: Rack) -> None:
    async with rack.speaker(tor4(passive=True), tor6(passive=True)) as node:
        await exchange(rack, node)
        assert node.status("tor-v4").incoming
        assert node.status("tor-v6").incoming


async def test_both_connect_at_once(rack: Rack) -> None:
    """Collisions or not: one session each in the end, and no error on either side's record."""
    async with rack.speaker(tor4(), tor6()) as node:
        await exchange(rack, node)
        for name, address in (("tor-v4", NODE4), ("tor-v6", NODE6)):
            assert node.status(name).established_count == 1
            assert node.status(name).last_sent is None
            assert (await rack.neighbor(address))["connectionsEstablished"] == 1


async def converged(node: Node) -> None:
    async with asyncio.timeout(PATIENCE):
        await node.speaker.wait_converged()


async def advertised(node: Node, text: str, *peers: str) -> None:
    """Wait until a prefix is advertised to these peers; it counts as such while nothing is on its way to them."""
    async with asyncio.timeout(PATIENCE):
        while node.speaker.advertised(*entry(text)) != [*peers]:  # noqa: ASYNC110 (no event tells of acknowledgements)
            await asyncio.sleep(0.01)


async def exchange(rack: Rack, node: Node) -> None:
    """Walk through announcement and withdrawal in both directions, over an established session each."""
    for text in (OWN4, OWN6):
        node.speaker.originate(*entry(text), owner="test", source="block")
    await converged(node)
    await advertised(node, OWN4, "tor-v4")
    await advertised(node, OWN6, "tor-v4", "tor-v6")
    status = node.status("tor-v4")
    assert (status.expected_as, status.received_as, status.identifier) == (TOR_AS, TOR_AS, "10.0.0.1")
    assert status.hold_time == 9
    assert {family: f.end_of_rib for family, f in status.families.items()} == {4: "received", 6: "received"}
    assert {family: f.advertised for family, f in status.families.items()} == {4: 1, 6: 1}

    await node.until(lambda: {entry(LEARNED4), entry(LEARNED6)} <= node.fib.keys(), "FRR's prefixes in our FIB")
    assert {hop.peer for hop in node.fib[entry(LEARNED6)]} == {"tor-v4", "tor-v6"}
    assert {hop.peer for hop in node.fib[entry(LEARNED4)]} == {"tor-v4"}
    assert node.fib[entry(LEARNED4)][0].address == packed(TOR4)

    (path,) = await rack.frr_has(OWN4, 4)
    assert path["path"] == str(NODE_AS)
    assert path["nexthops"][0]["ip"] == NODE4
    paths = await rack.frr_has(OWN6, 6)
    assert {path["nexthops"][0]["ip"] for path in paths} == {NODE6}
    assert len(paths) == 2

    for text in (OWN4, OWN6):
        node.speaker.retract(*entry(text), "test")
    await rack.frr_has(OWN4, 4, present=False)
    await rack.frr_has(OWN6, 6, present=False)

    await rack.tell(f"router bgp {TOR_AS}", "address-family ipv4 unicast", f"no network {LEARNED4}")
    await node.until(lambda: entry(LEARNED4) not in node.fib, "withdrawal by FRR")


async def test_our_next_hop_follows_the_addresses_of_the_node(rack: Rack) -> None:
    resolver = TableResolver()
    async with rack.speaker(tor4(), resolver=resolver) as node:
        node.speaker.originate(*entry(OWN6), owner="test", source="block")
        await converged(node)
        assert node.status("tor-v4").families[6].problem == "ipv6 not advertised: no IPv6 address on the link"
        assert node.speaker.advertised(*entry(OWN6)) == []
        assert not (await rack.ask("bgp ipv6 unicast"))["routes"].get(OWN6)

        resolver.own = {6: packed(NODE6)}
        node.speaker.next_hops_changed(())
        await rack.frr_has(OWN6, 6, via=NODE6)
        assert node.status("tor-v4").families[6].problem is None
        assert len(node.sessions) == 1

        resolver.own = {6: packed("fd00:1::12")}
        node.speaker.next_hops_changed(())
        await rack.frr_has(OWN6, 6, via="fd00:1::12")

        resolver.own = {}
        node.speaker.next_hops_changed(())
        assert node.sessions[-1].reason == "ipv6 not advertised: no IPv6 address on the link"
        await rack.frr_has(OWN6, 6, present=False)
        await node.established("tor-v4")


async def test_a_reset_by_frr_is_told_and_the_routes_come_back(rack: Rack) -> None:
    async with rack.speaker(tor4()) as node:
        await node.until(lambda: entry(LEARNED4) in node.fib, "FRR's prefix")
        await asyncio.to_thread(rack.frr.vtysh, "-c", "clear bgp *")
        await node.until(lambda: not node.sessions[-1].up or len(node.sessions) > 1, "loss of the session")
        assert node.sessions[1].reason == "received Cease/Hard Reset: Cease/Administrative Reset"
        await node.until(lambda: entry(LEARNED4) not in node.fib or len(node.sessions) > 2, "routes gone")
        await node.until(lambda: node.status("tor-v4").established_count == 2, "a second session")
        await node.until(lambda: entry(LEARNED4) in node.fib, "FRR's prefix again")


async def test_the_shutdown_text_of_frr_is_shown(rack: Rack) -> None:
    async with rack.speaker(tor4()) as node:
        await converged(node)  # FRR's End-of-RIB says that it too holds the session for established
        await rack.tell(f"router bgp {TOR_AS}", f"neighbor {NODE4} shutdown message rack work until nine")
        status = await node.lost("tor-v4")
        reason = 'received Cease/Hard Reset: Cease/Administrative Shutdown: "rack work until nine"'
        assert node.sessions[-1].reason == reason
        assert status.last_received is not None
        assert (status.last_received.code, status.last_received.subcode) == (6, 9)


async def test_our_shutdown_text_is_shown_by_frr(rack: Rack) -> None:
    text = "draining this node"
    async with rack.speaker(tor4(), farewell=Notification(6, 2, shutdown_text(text))) as node:
        await converged(node)
    async with asyncio.timeout(PATIENCE):  # FRR reads our last words when it comes to it
        while (neighbor := await rack.neighbor(NODE4))["bgpState"] == "Established":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert neighbor["lastErrorCodeSubcode"] == "0602"
    assert neighbor["lastShutdownDescription"] == text


async def test_a_crash_of_frr_is_a_lost_connection_and_the_routes_go(rack: Rack) -> None:
    async with rack.speaker(tor4()) as node:
        await node.until(lambda: entry(LEARNED4) in node.fib, "FRR's prefix")
        await asyncio.to_thread(rack.frr.end, "bgpd", signal.SIGKILL)
        await node.lost("tor-v4")
        ends = "the peer closed the connection", "connection lost: Connection reset by peer"
        assert node.sessions[-1].reason in ends
        await node.until(lambda: entry(LEARNED4) not in node.fib, "routes gone")
        await node.until(
            lambda: node.status("tor-v4").reason == f"connect to {TOR4}:179: Connection refused", "the reason"
        )
        await asyncio.to_thread(rack.frr.start, "bgpd")
        await asyncio.to_thread(rack.frr.vtysh, "-b")
        await node.until(lambda: entry(LEARNED4) in node.fib, "FRR's prefix again")


async def test_a_wrong_as_is_named_on_both_sides(rack: Rack) -> None:
    async with rack.speaker(tor4(asn=65099)) as node:
        reason = "expected AS 65099, received AS 65010"
        await node.until(lambda: node.status("tor-v4").reason == reason, "the reason")
        status = node.status("tor-v4")
        assert (status.expected_as, status.received_as) == (65099, TOR_AS)


async def test_md5(rack: Rack) -> None:
    await rack.tell(f"router bgp {TOR_AS}", f"neighbor {NODE4} password s3cret", f"neighbor {NODE6} password s3cret")
    async with rack.speaker(tor4(password=b"s3cret"), tor6(password=b"s3cret", passive=True)) as node:
        await converged(node)


async def test_route_refresh_both_ways(rack: Rack, caplog: pytest.LogCaptureFixture) -> None:
    """RFC 2918, and RFC 7313 where FRR has it: it marks the ends of its answer, and takes ours."""
    caplog.set_level("INFO", logger="podroute.bgp")
    async with rack.speaker(tor4()) as node:
        node.speaker.originate(*entry(OWN4), owner="test", source="block")
        await converged(node)
        assert "enhanced route refresh" in node.status("tor-v4").capabilities
        assert node.speaker.ask_refresh("tor-v4")
        await node.until(lambda: caplog.text.count("route refresh received") == 2, "the ends of FRR's answers")
        assert entry(LEARNED4) in node.fib
        before = node.status("tor-v4").messages_out
        await asyncio.to_thread(rack.frr.vtysh, "-c", "clear bgp ipv4 unicast * soft in")
        # BoRR, the route, EoRR
        await node.until(lambda: node.status("tor-v4").messages_out >= before + 3, "our answer")
        await rack.frr_has(OWN4, 4)
        assert len(node.sessions) == 1


async def test_ipv4_with_ipv6_next_hops_both_ways(rack: Rack) -> None:
    """RFC 8950 on an IPv6 session, and extended messages (RFC 8654) where FRR offers them."""
    await rack.tell(f"router bgp {TOR_AS}", f"neighbor {NODE6} capability extended-nexthop")
    await rack.tell(f"router bgp {TOR_AS}", "address-family ipv4 unicast", f"neighbor {NODE6} activate")
    async with rack.speaker(tor6(families=frozenset((4, 6)))) as node:
        node.speaker.originate(*entry(OWN4), owner="test", source="block")
        await converged(node)
        assert "extended next hop ipv4 via ipv6" in node.status("tor-v6").capabilities
        assert "extended message" in node.status("tor-v6").capabilities
        await node.until(lambda: entry(LEARNED4) in node.fib, "FRR's prefix")
        (hop,) = node.fib[entry(LEARNED4)]
        assert hop.address == packed(TOR6)
        (path,) = await rack.frr_has(OWN4, 4)
        assert path["nexthops"][0]["ip"] == NODE6
