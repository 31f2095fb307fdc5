"""Peers that are to have no session for a while: too many prefixes (RFC 4486), or an operator's wish (RFC 9003)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bgp.settings import PrefixLimit
from config.prefix import parse
from tests.bgp_speakers import Node
from tests.kernel.test_bgp_session_tcp import both_up, node_a, node_b, to_b
from tests.netns import Netns

pytestmark = pytest.mark.root


def announce(node: Node, count: int) -> None:
    for number in range(count):
        node.speaker.originate(*parse(f"10.64.{number}.0/24"), owner="test", source="block")


async def test_too_many_prefixes_end_the_session_for_a_while(
    netns: Callable[[], Netns], caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 4271 section 6.7, RFC 4486 section 4: Cease/Maximum Number of Prefixes Reached, and back after a time."""
    ns = netns()
    limited = to_b(prefix_limit=PrefixLimit(4, warning=0.5, restart_after=0.5))
    async with node_b(ns) as b, node_a(ns, peers=limited) as a:
        announce(b, 3)
        await both_up(a, b)
        await a.until(lambda: a.status("b").families[4].received == 3, "three prefixes")
        assert "prefixes near the maximum" in caplog.text
        announce(b, 6)
        status = await a.lost("b")
        assert status.reason == "6 ipv4 prefixes received, the maximum is 4"
        assert a.fib == {}
        await b.until(lambda: b.status("a").last_received, "the reason")
        received = b.status("a").last_received
        assert received is not None
        assert "Maximum Number of Prefixes Reached" in received.text
        for number in range(3, 6):
            b.speaker.retract(*parse(f"10.64.{number}.0/24"), "test")
        await a.until(lambda: a.status("b").established_count == 2, "the session after the wait")


async def test_without_a_time_it_stays_so_until_it_is_started(netns: Callable[[], Netns]) -> None:
    ns = netns()
    async with node_b(ns) as b, node_a(ns, peers=to_b(prefix_limit=PrefixLimit(1))) as a:
        announce(b, 2)
        await a.until(lambda: "the maximum is 1" in a.status("b").reason, "the limit")
        b.speaker.retract(*parse("10.64.1.0/24"), "test")
        await b.lost("a")
        assert a.status("b").state == "Idle"
        a.speaker.start_peer("b")
        await both_up(a, b)


async def test_an_operator_ends_a_session_with_a_text_and_starts_it_again(netns: Callable[[], Netns]) -> None:
    """RFC 9003; the peer cannot connect meanwhile."""
    ns = netns()
    async with node_b(ns) as b, node_a(ns) as a:
        await both_up(a, b)
        a.speaker.shut_down("b", "cable work")
        assert (await a.lost("b")).reason == "shut down by the operator: cable work"
        status = await b.lost("a")
        assert status.last_received is not None
        assert status.last_received.text == 'Cease/Hard Reset: Cease/Administrative Shutdown: "cable work"'
        assert a.status("b").established_count == 1
        a.speaker.start_peer("b")
        await a.until(lambda: a.status("b").established_count == 2, "the session again")
        with pytest.raises(KeyError):
            a.speaker.shut_down("nobody")
