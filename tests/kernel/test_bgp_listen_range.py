"""Dynamic neighbours: peers made for connections from inside a listen range, over TCP inside one network namespace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from bgp import settings
from bgp.graceful_restart import RestartSettings
from bgp.policy import ACCEPT, REJECT
from bgp.settings import ListenRange, PrefixLimit
from bgp.status import PeerStatus, SpeakerError
from config.nexthop import NextHop
from config.prefix import of_address, parse
from config.remote_as import RemoteAs
from tests.bgp_speakers import Node, peer, running
from tests.kernel.test_bgp_session_tcp import RawPeer
from tests.netns import Netns, link

pytestmark = pytest.mark.root

A = "10.1.0.1"
NAME = "rack/10.1.0.7"
OWN, THEIRS, MORE = parse("10.64.0.0/26"), parse("10.65.0.0/26"), parse("10.65.1.0/26")
EXTERNAL = RemoteAs(kind="external")
Maker = Callable[[], Netns]


def host(netns: Maker) -> Netns:
    """Return a namespace that has all the addresses of these tests."""
    ns = netns()
    for number in (1, 7, 8, 9, 10, 98, 99):
        ns.run("ip", "addr", "add", f"10.1.0.{number}/24", "dev", "lo")
    return ns


def listen(name: str, prefix: str, remote_as: RemoteAs = EXTERNAL, **more: Any) -> ListenRange:
    family, wire = parse(prefix)
    options: dict[str, Any] = {"import_policy": ACCEPT, "export_policy": ACCEPT, "limit": 100, "hold_time": 9} | more
    return ListenRange(name=name, family=family, prefix=wire, remote_as=remote_as, **options)


def node(ns: Netns, *ranges: ListenRange, **options: Any) -> AbstractAsyncContextManager[Node]:
    """Return what runs the speaker under test, in AS 65001, with these ranges."""
    return running(ns, 65001, "10.0.0.1", options.pop("peers", ()), ranges=ranges, listen=((A, 179),), **options)


def neighbour(
    ns: Netns, number: int, asn: int = 0, *, password: bytes | None = None, **options: Any
) -> AbstractAsyncContextManager[Node]:
    """Return what runs a speaker at 10.1.0.NUMBER that connects to A."""
    to_a = peer("a", A, 65001, local_address=f"10.1.0.{number}", connect_retry=0.2, hold_time=9, password=password)
    return running(ns, asn or 65000 + number, f"10.0.0.{number}", [to_a], listen=(), **options)


def names(of: Node) -> set[str]:
    return {status.name for status in of.speaker.peers()}


def refused(of: Node) -> dict[str, int]:
    return {status.name: status.refused for status in of.speaker.ranges()}


async def up(of: Node, name: str) -> PeerStatus:
    """Wait until a neighbour is there and established."""
    await of.until(lambda: name in names(of) and of.status(name).uptime is not None, f"session with {name}")
    return of.status(name)


async def unanswered(of: Node) -> None:
    """Wait until an attempt to connect was given up."""
    await of.until(lambda: "no answer" in of.status("a").reason, "an attempt without an answer")


async def vanished(of: Node, name: str) -> None:
    await of.until(lambda: name not in names(of), f"{name} to vanish")


async def test_a_neighbour_comes_and_goes_with_its_session(netns: Maker) -> None:
    ns = host(netns)
    async with node(ns, listen("rack", "10.1.0.0/24")) as a:
        a.speaker.originate(*OWN, owner="test", source="block")
        await a.speaker.wait_converged()  # a range without sessions is nothing to wait for
        assert names(a) == set()
        async with neighbour(ns, 7) as b:
            b.speaker.originate(*THEIRS, owner="test", source="block")
            await b.until(lambda: OWN in b.fib, "our prefix")
            await a.until(lambda: THEIRS in a.fib, "its prefix")
            await a.speaker.wait_converged()
            status = a.status("rack/10.1.0.7")
            assert (status.state, status.listen_range, status.expected_as) == ("Established", "10.1.0.0/24", 65007)
            assert (status.passive, status.incoming, status.external) == (True, True, True)
            assert a.fib[THEIRS] == (NextHop("rack/10.1.0.7", of_address("10.1.0.7")[1][1:], ""),)
            assert [r.peers for r in a.speaker.ranges()] == [1]
        await vanished(a, "rack/10.1.0.7")
        assert a.fib == {}
        assert [(change.peer, change.up) for change in a.sessions] == [
            ("rack/10.1.0.7", True),
            ("rack/10.1.0.7", False),
        ]
        assert (a.speaker.rib.peers, a.speaker.converged().ok) == ({}, True)
        assert [r.peers for r in a.speaker.ranges()] == [0]


@pytest.mark.parametrize(
    ("remote_as", "asn", "told"),
    [
        (RemoteAs.of(65007), 65007, ""),
        (RemoteAs.of(65008), 65007, "expected AS 65008, received AS 65007"),
        (RemoteAs(((65001, 65004), (65006, 65009))), 65007, ""),
        (RemoteAs(((65008, 65009), (65011, 65011))), 65007, "expected AS 65008-65009, 65011, received AS 65007"),
        (RemoteAs(kind="internal"), 65001, ""),
        (RemoteAs(kind="internal"), 65007, "expected AS internal, received AS 65007"),
        (EXTERNAL, 65007, ""),
        (EXTERNAL, 65001, "expected AS external, received AS 65001"),
    ],
)
async def test_its_as_must_be_one_of_those_allowed(
    netns: Maker, caplog: pytest.LogCaptureFixture, remote_as: RemoteAs, asn: int, told: str
) -> None:
    """RFC 4271 section 6.2: OPEN Message Error/Bad Peer AS."""
    ns = host(netns)
    async with node(ns, listen("rack", "10.1.0.0/24", remote_as)) as a, neighbour(ns, 7, asn) as b:
        if not told:
            status = await up(a, "rack/10.1.0.7")
            assert (status.expected_as, status.external) == (asn, asn != 65001)
            return
        await b.until(lambda: b.status("a").last_received, "the answer")
        received = b.status("a").last_received
        assert received is not None
        assert received.text.startswith("OPEN Message Error/Bad Peer AS")
        assert told in caplog.text
        await vanished(a, "rack/10.1.0.7")


async def test_another_as_than_before_begins_anew(netns: Maker) -> None:
    """What was learned from the same address in another AS is not kept over its restart."""
    ns = host(netns)
    async with node(ns, listen("rack", "10.1.0.0/24")) as a:
        async with neighbour(ns, 7, farewell=None) as b:
            b.speaker.originate(*THEIRS, owner="test", source="block")
            await a.until(lambda: THEIRS in a.fib, "its prefix")
        await a.lost(NAME)
        assert THEIRS in a.fib
        async with neighbour(ns, 7, 65099, retained=frozenset((4, 6))):
            await a.until(lambda: THEIRS not in a.fib, "the other AS")
            assert (await up(a, NAME)).expected_as == 65099


async def test_the_most_specific_range_wins_and_a_configured_peer_before_all(netns: Maker) -> None:
    ns = host(netns)
    wide, narrow = listen("wide", "10.0.0.0/8"), listen("narrow", "10.1.0.0/28", hold_time=6)
    configured = [peer("seven", "10.1.0.7", 65007, passive=True)]
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(node(ns, wide, narrow, peers=configured))
        for number in (7, 8, 99):
            await stack.enter_async_context(neighbour(ns, number))
        for name in ("seven", "narrow/10.1.0.8", "wide/10.1.0.99"):
            await up(a, name)
        assert names(a) == {"seven", "narrow/10.1.0.8", "wide/10.1.0.99"}
        assert a.status("narrow/10.1.0.8").hold_time == 6


@pytest.mark.parametrize(("limit", "all_limit"), [(2, 100), (100, 2)], ids=["of the range", "over all"])
async def test_one_too_many_is_refused_counted_and_logged_once(
    netns: Maker, caplog: pytest.LogCaptureFixture, limit: int, all_limit: int
) -> None:
    ns = host(netns)
    rack = listen("rack", "10.1.0.0/24", limit=limit)
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(node(ns, rack, listen_limit=all_limit))
        first = await stack.enter_async_context(AsyncExitStack())
        await first.enter_async_context(neighbour(ns, 7))
        await stack.enter_async_context(neighbour(ns, 8))
        await up(a, "rack/10.1.0.7")
        await up(a, "rack/10.1.0.8")
        late = await stack.enter_async_context(neighbour(ns, 9))
        await late.until(lambda: refused(a)["rack"] >= 3, "attempts")
        assert late.status("a").established_count == 0
        assert names(a) == {"rack/10.1.0.7", "rack/10.1.0.8"}
        assert caplog.text.count("the limit of dynamic neighbours is reached") == 1
        assert a.speaker.refused == refused(a)["rack"]
        await first.aclose()
        await up(a, "rack/10.1.0.9")


async def test_a_neighbour_that_restarts_is_kept_until_it_is_back(netns: Maker) -> None:
    """RFC 4724 section 4.2: what it does not announce again goes with its End-of-RIB."""
    ns = host(netns)
    async with node(ns, listen("rack", "10.1.0.0/24")) as a:
        async with neighbour(ns, 7, farewell=None) as b:
            for prefix in (THEIRS, MORE):
                b.speaker.originate(*prefix, owner="test", source="block")
            await a.until(lambda: {THEIRS, MORE} <= a.fib.keys(), "its prefixes")
        await a.lost(NAME)
        assert a.status(NAME).families[4].stale == 2
        assert a.sessions[-1].retained == frozenset((4, 6))
        assert {THEIRS, MORE} <= a.fib.keys()
        assert a.speaker.converged().ok
        async with neighbour(ns, 7, retained=frozenset((4, 6))) as b:
            b.speaker.originate(*THEIRS, owner="test", source="block")
            await a.until(lambda: MORE not in a.fib, "its End-of-RIB")
            assert THEIRS in a.fib
            assert a.status(NAME).established_count == 2
        await vanished(a, NAME)


async def test_a_neighbour_that_does_not_restart_in_time_vanishes(netns: Maker) -> None:
    ns = host(netns)
    async with node(ns, listen("rack", "10.1.0.0/24")) as a:
        async with neighbour(ns, 7, farewell=None, restart=RestartSettings(restart_time=1)) as b:
            b.speaker.originate(*THEIRS, owner="test", source="block")
            await a.until(lambda: THEIRS in a.fib, "its prefix")
        await a.lost(NAME)
        assert THEIRS in a.fib
        await vanished(a, NAME)
        await a.until(lambda: a.fib == {}, "its prefix to go")
        assert (a.sessions[-1].peer, a.sessions[-1].up, a.sessions[-1].retained) == (NAME, False, frozenset())


async def test_after_our_own_restart_neighbours_that_had_announced_something_are_waited_for(netns: Maker) -> None:
    """RFC 4724 section 4.1: nothing is selected before their End-of-RIB."""
    ns = host(netns)
    restarted = node(ns, listen("rack", "10.1.0.0/24"), retained=frozenset((4,)), expected=[NAME, "gone/10.1.0.7"])
    async with restarted as a:
        assert a.speaker.deferred == {4, 6}
        assert a.speaker.converged().waiting_for[0].endswith(f"End-of-RIB of {NAME}")
        async with neighbour(ns, 8):
            await up(a, "rack/10.1.0.8")
            assert a.speaker.deferred == {4, 6}
            async with neighbour(ns, 7):
                await a.until(lambda: not a.speaker.deferred, "the End-of-RIB of the neighbour that was expected")


async def test_what_is_configured_takes_the_place_of_a_dynamic_neighbour(netns: Maker) -> None:
    ns = host(netns)
    async with node(ns, listen("rack", "10.1.0.0/24")) as a, neighbour(ns, 7) as b, neighbour(ns, 8) as other:
        b.speaker.originate(*THEIRS, owner="test", source="block")
        await a.until(lambda: THEIRS in a.fib, "its prefix")
        await up(a, "rack/10.1.0.8")
        a.speaker.add_peer(peer("seven", "10.1.0.7", 65007, passive=True))
        assert names(a) == {"seven", "rack/10.1.0.8"}
        await up(a, "seven")
        await a.until(lambda: [hop.peer for hop in a.fib.get(THEIRS, ())] == ["seven"], "its prefix again")
        told = b.status("a").last_received
        assert told is not None
        assert told.text == "Cease/Hard Reset: Cease/Peer De-configured"
        assert other.status("a").established_count == 1
        await a.speaker.remove_peer("seven")
        await up(a, NAME)


async def test_a_range_that_goes_takes_its_own_sessions_along(netns: Maker) -> None:
    ns = host(netns)
    ranges = listen("rack", "10.1.0.0/28"), listen("hall", "10.1.0.0/24")
    async with node(ns, *ranges) as a, neighbour(ns, 7) as b, neighbour(ns, 99) as other:
        await up(a, NAME)
        await up(a, "hall/10.1.0.99")
        with pytest.raises(SpeakerError, match="listen range rack exists"):
            a.speaker.add_range(ranges[0])
        await a.speaker.remove_range("rack")
        assert [status.name for status in a.speaker.ranges()] == ["hall"]
        await up(a, "hall/10.1.0.7")
        told = b.status("a").last_received
        assert told is not None
        assert "Peer De-configured" in told.text
        assert other.status("a").established_count == 1
        await a.speaker.remove_range("hall")
        await b.lost("a")
        await b.until(lambda: a.speaker.refused > 0, "an attempt as a stranger")


async def test_policies_and_limit_of_a_range_change_without_a_reset(netns: Maker) -> None:
    ns = host(netns)
    rack = listen("rack", "10.1.0.0/24")
    async with node(ns, rack) as a, neighbour(ns, 7) as b:
        b.speaker.originate(*THEIRS, owner="test", source="block")
        await a.until(lambda: THEIRS in a.fib, "its prefix")
        a.speaker.change_range(replace(rack, import_policy=REJECT, limit=1))
        await a.until(lambda: THEIRS not in a.fib, "the other policy")
        assert (a.status(NAME).established_count, b.status("a").established_count) == (1, 1)
        async with neighbour(ns, 8) as late:
            await late.until(lambda: refused(a)["rack"], "the other limit")
        a.speaker.withdraw()
        a.speaker.change_range(rack)
        await a.until(lambda: THEIRS in a.fib, "the former policy")


async def test_it_is_shut_down_and_started_like_any_peer(netns: Maker) -> None:
    """RFC 9003. Held back, it stays listed; started again it is there when it connects."""
    ns = host(netns)
    async with node(ns, listen("rack", "10.1.0.0/24")) as a:
        async with neighbour(ns, 7) as b:
            await up(a, NAME)
            a.speaker.shut_down(NAME, "cable work")
            assert (await a.lost(NAME)).state == "Idle"
            await b.until(lambda: b.status("a").last_received, "the reason")
            told = b.status("a").last_received
            assert told is not None
            assert told.text.endswith('Administrative Shutdown: "cable work"')
            await b.until(lambda: "closed the connection" in b.status("a").reason, "an attempt that is turned away")
            assert a.status(NAME).reason == "shut down by the operator: cable work"
            a.speaker.start_peer(NAME)
            await up(a, NAME)
            a.speaker.shut_down(NAME)
        assert NAME in names(a)
        a.speaker.start_peer(NAME)
        await vanished(a, NAME)


async def test_too_many_prefixes_hold_it_back(netns: Maker) -> None:
    """RFC 4486 section 4."""
    ns = host(netns)
    rack = listen("rack", "10.1.0.0/24", prefix_limit=PrefixLimit(1, restart_after=0.3))
    async with node(ns, rack) as a, neighbour(ns, 7) as b:
        for prefix in (THEIRS, MORE):
            b.speaker.originate(*prefix, owner="test", source="block")
        await a.until(lambda: NAME in names(a) and "the maximum is 1" in a.status(NAME).reason, "the limit")
        b.speaker.retract(*MORE, "test")
        await a.until(lambda: THEIRS in a.fib, "its return")


async def test_who_never_sends_an_open_makes_room_again(netns: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_OPEN_HOLD", 0.5)
    ns = host(netns)
    async with node(ns, listen("rack", "10.1.0.0/24", limit=1)) as a:
        mute = RawPeer(ns, "10.1.0.9")
        await mute.connect(A)
        await a.until(lambda: names(a) == {"rack/10.1.0.9"}, "the stranger")
        async with neighbour(ns, 7):
            await up(a, NAME)
        assert await mute.notification() == "Hold Timer Expired"
        mute.close()


@pytest.mark.parametrize("own", ["fd00::1", "fe80::1%eth0"], ids=["global", "link-local"])
async def test_over_ipv6(netns: Maker, own: str) -> None:
    ns, other = netns(), netns()
    link(ns, "eth0", other, "eth1")
    theirs = own.replace("::1", "::7").replace("eth0", "eth1")
    for here, device, text in ((ns, "eth0", own), (other, "eth1", theirs)):
        here.run("ip", "addr", "add", f"{text.partition('%')[0]}/64", "dev", device, "nodad")
    rack = listen("rack", f"{own.partition('::')[0]}::/64", password=b"secret")
    dialled = peer("a", own.replace("eth0", "eth1"), 65001, local_address=theirs, password=b"secret", connect_retry=0.2)
    async with (
        running(ns, 65001, "10.0.0.1", [], ranges=[rack], listen=(("::", 179),)) as a,
        running(other, 65007, "10.0.0.7", [dialled], listen=()) as b,
    ):
        await b.established("a")
        await up(a, f"rack/{theirs.replace('eth1', 'eth0')}")


async def test_a_password_of_a_range_and_others_inside_it(netns: Maker) -> None:
    """The key of the longest prefix counts: of the address, of the inner range, of the outer one."""
    ns = host(netns)
    outer, inner = (
        listen("outer", "10.1.0.0/16", password=b"outer"),
        listen("inner", "10.1.0.0/28", password=b"inner"),
    )
    configured = [peer("seven", "10.1.0.7", 65007, passive=True, password=b"seven")]
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(node(ns, outer, inner, peers=configured))
        for number, password in ((7, b"seven"), (8, b"inner"), (99, b"outer")):
            await stack.enter_async_context(neighbour(ns, number, password=password))
        for name in ("seven", "inner/10.1.0.8", "outer/10.1.0.99"):
            await up(a, name)
        wrong: tuple[tuple[int, bytes | None], ...] = ((9, None), (10, b"outer"), (98, b"wrong"))
        for number, theirs in wrong:
            unheard = await stack.enter_async_context(neighbour(ns, number, password=theirs))
            await unanswered(unheard)
        assert names(a) == {"seven", "inner/10.1.0.8", "outer/10.1.0.99"}
        # The key goes with its range: then the outer one's counts.
        await a.speaker.remove_range("inner")
        await up(a, "outer/10.1.0.10")


async def test_another_password_of_a_range_touches_nobody_else(netns: Maker) -> None:
    ns = host(netns)
    rack, hall = listen("rack", "10.1.0.0/28", password=b"old"), listen("hall", "10.1.0.0/24", password=b"hall")
    async with (
        node(ns, rack, hall) as a,
        neighbour(ns, 7, password=b"old") as b,
        neighbour(ns, 99, password=b"hall") as other,
    ):
        await up(a, NAME)
        await up(a, "hall/10.1.0.99")
        await a.speaker.remove_range("rack")
        a.speaker.add_range(replace(rack, password=b"new"))
        await unanswered(b)
        await b.speaker.remove_peer("a")
        b.speaker.add_peer(peer("a", A, 65001, local_address="10.1.0.7", password=b"new", connect_retry=0.2))
        await up(a, NAME)
        assert other.status("a").established_count == 1
