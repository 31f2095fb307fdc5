"""Graceful restart without sockets: RFC 4724 and RFC 8538, rule by rule, and what the RIBs make of it."""

from __future__ import annotations

import pytest

from bgp import codec
from bgp.framing import Framer
from bgp.graceful_restart import Restart, RestartSettings, confirmed, final, retained
from bgp.messages import GracefulRestart, Negotiated, Notification, Open
from bgp.policy import Match, Policy, Rule
from bgp.update import end_of_rib
from config.prefix import Family, parse
from tests.bgp_ribs import BOTH, Node, add_peer, join, session, settle

A4, B4, A6 = "10.64.0.0/26", "10.64.1.0/26", "fd00:64::/122"
TRANSIT = Policy(rules=(Rule("transit", True, Match(sources=frozenset(("learned", "block")))),))
KEPT: dict[Family, bool] = {4: True, 6: True}
CEASE, HARD, HOLD = Notification(6, 2), Notification(6, 9, b"\6\2"), Notification(4, 0)


def negotiated(
    theirs: GracefulRestart | None,
    ours: GracefulRestart | None = GracefulRestart(notification=True, forwarding=KEPT),  # noqa: B008 immutable
) -> Negotiated:
    a = Open(65001, 90, bytes((10, 0, 0, 1)), families=BOTH, graceful_restart=ours)
    b = Open(65002, 90, bytes((10, 0, 0, 2)), families=BOTH, graceful_restart=theirs)
    return codec.negotiate(a, b, 65002)


@pytest.mark.parametrize(
    ("theirs", "notification", "families"),
    [
        (GracefulRestart(forwarding=KEPT), None, BOTH),
        (GracefulRestart(forwarding={6: False}), None, {6}),
        (GracefulRestart(forwarding=KEPT, restart_time=0), None, set()),
        (GracefulRestart(), None, set()),
        (None, None, set()),
        (GracefulRestart(forwarding=KEPT), CEASE, set()),
        (GracefulRestart(forwarding=KEPT, notification=True), CEASE, BOTH),
        (GracefulRestart(forwarding=KEPT, notification=True), HOLD, BOTH),
        (GracefulRestart(forwarding=KEPT, notification=True), HARD, set()),
    ],
)
def test_what_stays_when_a_session_is_lost(
    theirs: GracefulRestart | None, notification: Notification | None, families: set[Family]
) -> None:
    """RFC 4724 section 4.2, RFC 8538 sections 3 and 4."""
    stay = retained(negotiated(theirs), notification)
    assert stay == families
    assert type(stay) is frozenset, "which is checked where the caller is compiled"


def test_nothing_stays_where_we_do_not_help() -> None:
    theirs = GracefulRestart(forwarding=KEPT)
    assert retained(negotiated(theirs, GracefulRestart(restart_time=0)), None) == set()
    assert retained(negotiated(theirs, None), None) == set()


def test_stale_paths_stay_for_what_the_peer_kept_forwarding() -> None:
    """RFC 4724 section 4.2: the Forwarding State bit, by family; without the capability nothing stays."""
    assert confirmed(negotiated(GracefulRestart(restarting=True, forwarding={4: True, 6: False}))) == {4}
    assert confirmed(negotiated(None)) == set()


def test_an_end_for_good_is_a_hard_reset_where_both_set_the_n_bit() -> None:
    """RFC 8538 section 3.1: the NOTIFICATION goes inside."""
    both = negotiated(GracefulRestart(notification=True, forwarding=KEPT))
    assert final(both, CEASE) == Notification(6, 9, b"\6\2")
    assert final(negotiated(GracefulRestart(forwarding=KEPT)), CEASE) == CEASE
    assert final(None, CEASE) == CEASE
    assert final(both, None) is None


# Our own restart


def restart(*, enabled: bool = True) -> tuple[Restart, list[Family]]:
    done: list[Family] = []
    return Restart(RestartSettings(enabled=enabled), done.append), done


def test_the_capability_says_what_is_true() -> None:
    """RFC 4724 section 3: R after a restart, F only where the kernel went on forwarding."""
    own, _ = restart()
    fresh = own.capability(BOTH, established_before=False)
    assert (fresh.restarting, fresh.notification, fresh.restart_time) == (False, True, 120)
    assert fresh.forwarding == {4: False, 6: False}
    assert own.capability(BOTH, established_before=True).forwarding == {4: True, 6: True}
    own.begin(frozenset((6,)), {"a": BOTH})
    assert own.capability(BOTH, established_before=False).restarting
    assert own.capability(BOTH, established_before=False).forwarding == {4: False, 6: True}
    own.expire()
    after = own.capability(BOTH, established_before=False)
    assert (after.restarting, after.forwarding) == (False, {4: False, 6: True})
    off, _ = restart(enabled=False)
    off.begin(BOTH, {"a": BOTH})
    assert off.capability(BOTH, established_before=True) == GracefulRestart(restart_time=0)
    assert not off.active


def test_selection_waits_for_the_end_of_rib_of_all_peers() -> None:
    """RFC 4724 section 4.1, by family."""
    own, done = restart()
    own.begin(BOTH, {"a": BOTH, "b": frozenset((4,))})
    theirs = negotiated(GracefulRestart(forwarding=KEPT))
    own.established("a", theirs)
    own.complete("a", 6)
    assert done == [6]
    own.complete("a", 4)
    assert done == [6]
    own.complete("b", 4)
    assert done == [6, 4]
    assert not own.active


@pytest.mark.parametrize("theirs", [None, GracefulRestart(restarting=True, forwarding=KEPT)])
def test_selection_does_not_wait_for_who_waits_for_us_or_sends_no_end_of_rib(theirs: GracefulRestart | None) -> None:
    """RFC 4724 section 4.1: peers with the R bit, and those without the capability, are excluded."""
    own, done = restart()
    own.begin(BOTH, {"a": BOTH})
    own.established("a", negotiated(theirs))
    assert sorted(done) == [4, 6]


def test_selection_does_not_wait_for_a_peer_that_was_removed_or_never_comes() -> None:
    own, done = restart()
    own.begin(BOTH, {"a": BOTH, "b": frozenset((4,))})
    own.forget("a")
    assert done == [6]
    assert own.expire() == {4: {"b"}}
    assert done == [6, 4]


def test_one_that_died_meanwhile_holds_up_only_what_it_announced() -> None:
    """Routes of those that are back are selected; End-of-RIB to who gets learned routes waits for the absent one."""
    selected: list[Family] = []
    done: list[Family] = []
    own = Restart(RestartSettings(), done.append, selected.append)
    own.begin(frozenset((4,)), {"a": frozenset((4,)), "dead": frozenset((4,)), "slow": frozenset((4,))})
    theirs = negotiated(GracefulRestart(forwarding=KEPT))
    own.established("a", theirs)
    own.established("slow", theirs)
    own.complete("a", 4)
    assert selected == [], "the absent may be about to come"
    own.absence_over()
    assert selected == [], "one that is there has still to say what it has"
    own.lost("slow")
    assert (selected, own.deferred) == ([4], set())
    assert (done, own.waiting) == ([], {4: {"dead", "slow"}})
    own.established("slow", theirs)
    own.complete("slow", 4)
    own.expire()
    assert (selected, done) == ([4], [4])


def test_nothing_is_deferred_where_the_kernel_kept_nothing() -> None:
    own, done = restart()
    own.begin(frozenset(), {"a": BOTH})
    assert (own.active, done) == (False, [])


# The RIBs


def helped(*prefixes: str) -> tuple[Node, Node]:
    """``b`` has learned prefixes of ``a``, whose session then went away and is being helped."""
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    join(a, b)
    a.originate(*prefixes)
    settle(a, b)
    a.rib.peer_down("b")
    b.rib.peer_down("a", BOTH)
    settle(b)
    return a, b


def back(a: Node, b: Node, keep: frozenset[Family] = BOTH) -> None:
    """``a`` has restarted: its table starts anew, ``b`` still holds the old one."""
    fresh = Node("a", a.asn, a.number)
    a.rib, a.fib = fresh.rib, fresh.fib
    add_peer(a, b)
    for node, other, kept in ((a, b, frozenset[Family]()), (b, a, keep)):
        node.rib.peer_up(
            other.name,
            codec.negotiate(node.open(), other.open(), other.asn),
            peer_address=other.address(4),
            local_address=node.address(4),
            device="eth0",
            next_hops={f: node.address(f) for f in BOTH},
            keep=kept,
        )


def test_stale_paths_forward_until_end_of_rib() -> None:
    """RFC 4724 section 4.2."""
    a, b = helped(A4, B4, A6)
    assert (b.rib.stale("a", 4), b.rib.stale("a", 6)) == (2, 1)
    assert (sorted(b.fib[4]), list(b.fib[6])) == ([A4, B4], [A6])
    back(a, b)
    a.originate(A4, A6)
    b.fib[4].pop(A4)
    settle(a, b)
    assert (list(b.fib[4]), list(b.fib[6])) == ([], [A6]), "what was announced again is no change, B4 is gone"
    assert (b.rib.stale("a", 4), b.rib.stale("a", 6)) == (0, 0)


def test_a_family_that_was_not_kept_goes_at_once() -> None:
    """RFC 4724 section 4.2: F clear."""
    a, b = helped(A4, A6)
    back(a, b, frozenset((4,)))
    settle(b)
    assert (list(b.fib[4]), list(b.fib[6])) == ([A4], [])


def test_a_second_loss_drops_what_was_stale_already() -> None:
    """RFC 4724 section 4.2: consecutive restarts."""
    a, b = helped(A4, B4)
    back(a, b)
    b.rib.receive("a", announcement(a, A4))
    b.rib.peer_down("a", BOTH)
    settle(b)
    assert list(b.fib[4]) == [A4]
    assert b.rib.stale("a", 4) == 1


def test_stale_paths_go_when_their_time_is_over() -> None:
    _, b = helped(A4, B4, A6)
    assert b.rib.drop_stale("a") == 3
    settle(b)
    assert b.fib == {4: {}, 6: {}}
    assert not b.rib.busy


def test_a_withdrawal_of_a_stale_path_counts() -> None:
    a, b = helped(A4, B4)
    back(a, b)
    b.rib.receive("a", withdrawal(A4))
    settle(b)
    assert list(b.fib[4]) == [B4]
    assert b.rib.stale("a", 4) == 1


def test_a_removed_peer_leaves_nothing_stale() -> None:
    _, b = helped(A4)
    b.rib.remove_peer("a")
    settle(b)
    assert b.fib[4] == {}


def test_while_selection_is_deferred_our_own_routes_go_out() -> None:
    """RFC 4724 section 4.1; a peer that helps has our blocks confirmed at once, and is told that they are all."""
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    a.rib.defer((4,))
    join(a, b)
    a.originate(A4)
    b.originate(B4)
    settle(a, b)
    assert a.fib[4] == {}
    assert not a.rib.busy
    assert list(b.fib[4]) == [A4]
    assert 4 in ends(a, "b")
    a.rib.select(4)
    settle(a, b)
    assert list(a.fib[4]) == [B4]


def test_end_of_rib_of_who_passes_routes_on_waits_for_all_of_them() -> None:
    """RFC 4724 section 4.1: what was learned again is announced again before End-of-RIB, from absent peers too."""
    a, b, c = Node("a", 65001, 1), Node("b", 65002, 2), Node("c", 65003, 3)
    a.rib.defer((4, 6))
    join(a, b)
    add_peer(a, c, exports=TRANSIT)
    add_peer(c, a)
    session(a, c)
    b.originate(B4)
    settle(a, b, c)
    assert (a.fib[4], ends(a, "c")) == ({}, [])
    a.rib.select(4)
    settle(a, b, c)
    assert (list(a.fib[4]), list(c.fib[4]), ends(a, "c")) == ([B4], [B4], [])
    a.rib.complete(4)
    settle(a, b, c)
    assert ends(a, "c") == [4]


def ends(node: Node, peer: str) -> list[Family]:
    """Families of the End-of-RIBs that ``node`` sent."""
    bodies = [body for message in node.messages.get(peer, []) for _, body in Framer().feed(message)]
    return [family for body in bodies if (family := end_of_rib(body)) is not None]


def announcement(node: Node, prefix: str) -> bytes:
    """The UPDATE with which a node of this AS and address announces a prefix."""
    speaker, listener = Node(node.name, node.asn, node.number), Node("x", 65009, 9)
    join(speaker, listener)
    speaker.originate(prefix)
    settle(speaker, listener)
    return next(body for message in speaker.messages["x"] for _, body in Framer().feed(message))


def withdrawal(prefix: str) -> bytes:
    wire = parse(prefix)[1]
    return len(wire).to_bytes(2, "big") + wire + b"\0\0"
