from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp import as_path
from bgp.attributes import Attributes, pack_attribute
from bgp.decision import Decision, Options, Step, decide, rank
from bgp.hops import Hop
from bgp.paths import Path, Peer
from config.nexthop import Gateway, NextHop, Resolution


@dataclass(frozen=True)
class Spec:
    """A path as a test writes it: everything equal unless said otherwise."""

    name: str = "a"
    own: bool = False
    local_pref: int | None = None
    path: tuple[int, ...] = (65002,)
    origin: int = 0
    med: int | None = None
    ibgp: bool = False
    cost: int | None = 0
    identifier: int = 1
    originator: int | None = None
    clusters: int = 0
    address: int = 1
    fault: str = ""
    path_id: int | None = None
    answers: bool = True

    def build(self) -> Path:
        raw = pack_attribute(0x40, 2, as_path.pack([(2, self.path)]) if self.path else b"")
        if self.clusters:
            raw += pack_attribute(0x80, 10, bytes(4 * self.clusters))
        attributes = Attributes(raw)
        attributes.local_pref, attributes.origin, attributes.med = self.local_pref, self.origin, self.med
        attributes.path_length = len(self.path)
        attributes.neighbor_as = self.path[0] if self.path else 0
        attributes.originator = None if self.originator is None else self.originator.to_bytes(4, "big")
        if self.own:
            return Path(None, attributes, None, None)
        peer = Peer(self.name, 65001 if self.ibgp else 65002, ibgp=self.ibgp)
        peer.identifier, peer.address = self.identifier.to_bytes(4, "big"), self.address.to_bytes(4, "big")
        next_hop = bytes((192, 0, 2, self.address % 256))
        resolution = None if self.cost is None else Resolution((Gateway(next_hop, "eth0"),), self.cost, self.answers)
        hops = (NextHop(self.name, next_hop),)
        return Path(peer, attributes, Hop(next_hop, "", resolution), hops, self.fault, self.path_id)


def run(*specs: Spec, options: Options | None = None) -> tuple[list[Path], Decision]:
    paths = [spec.build() for spec in specs]
    return paths, decide(paths, options or Options())


@pytest.mark.parametrize(
    ("better", "worse", "step"),
    [
        pytest.param(Spec(own=True, path=()), Spec("b", local_pref=999), Step.ORIGINATED, id="our own"),
        pytest.param(Spec(local_pref=200, path=(1, 2, 3)), Spec("b"), Step.LOCAL_PREF, id="9.1.1 local preference"),
        pytest.param(Spec(), Spec("b", local_pref=99), Step.LOCAL_PREF, id="9.1.1 default of 100"),
        pytest.param(Spec(origin=2), Spec("b", path=(65002, 7)), Step.AS_PATH_LENGTH, id="a"),
        pytest.param(Spec(med=9), Spec("b", origin=1), Step.ORIGIN, id="b IGP before EGP"),
        pytest.param(Spec(origin=1), Spec("b", origin=2), Step.ORIGIN, id="b EGP before incomplete"),
        pytest.param(Spec(med=4, ibgp=True), Spec("b", med=5), Step.MED, id="c"),
        pytest.param(Spec(), Spec("b", med=1), Step.MED, id="c no MED is the lowest"),
        pytest.param(Spec(cost=50), Spec("b", ibgp=True), Step.EXTERNAL, id="d"),
        pytest.param(Spec(cost=1, identifier=9), Spec("b", cost=2), Step.INTERIOR_COST, id="e"),
        pytest.param(Spec(address=9), Spec("b", identifier=2), Step.IDENTIFIER, id="f"),
        pytest.param(Spec(identifier=9, originator=1), Spec("b", identifier=2), Step.IDENTIFIER, id="f ORIGINATOR_ID"),
        pytest.param(Spec(address=9), Spec("b", clusters=1), Step.CLUSTER_LIST, id="RFC 4456 cluster list"),
        pytest.param(Spec(clusters=1), Spec("b", clusters=2), Step.CLUSTER_LIST, id="RFC 4456 shorter cluster list"),
        pytest.param(Spec(path_id=9), Spec("b", address=2, path_id=1), Step.PEER_ADDRESS, id="g"),
        pytest.param(Spec(path_id=1), Spec(path_id=2), Step.PATH_ID, id="RFC 7911 path identifier"),
    ],
)
def test_steps_of_rfc4271_section_9_1_2_2(better: Spec, worse: Spec, step: Step) -> None:
    """Each row is worse in a later step where that is possible, so the order of the steps is tested too."""
    for specs in ((better, worse), (worse, better)):
        paths, decision = run(*specs, options=Options(max_paths=1))
        winner, loser = paths if specs[0] is better else reversed(paths)
        assert decision == (winner, (winner,), {loser: step}, step)


def test_med_counts_among_paths_of_one_neighbouring_as_only() -> None:
    """RFC 4271 section 9.1.2.2 (c)."""
    specs = Spec("a", med=50, identifier=1), Spec("b", med=1, path=(65003,), identifier=2)
    assert run(*specs)[1].decided is Step.IDENTIFIER
    assert run(*specs, options=Options(always_compare_med=True))[1].decided is Step.MED


def test_med_removes_before_later_steps_compare() -> None:
    """The usual example of an order that depends on pairs: A beats B on (f), B beats C on (f), C beats A on MED."""
    a = Spec("a", med=20, identifier=1)
    b = Spec("b", path=(65003,), identifier=2)
    c = Spec("c", med=10, identifier=3)
    for specs in ((a, b, c), (b, c, a), (c, a, b), (c, b, a)):
        _, decision = run(*specs)
        assert decision.best is not None
        assert decision.best.peer is not None
        assert decision.best.peer.name == "b"


def test_ineligible_paths_take_no_part() -> None:
    """RFC 4271 section 9.1.2: unresolvable next hops and AS loops."""
    paths, decision = run(Spec("a", cost=None), Spec("b", fault="loop"), Spec("c", local_pref=1))
    assert decision.best is paths[2]
    assert decision.decided is None
    assert [p.ineligible for p in paths] == ["next hop cannot be reached", "loop", ""]
    assert run(Spec(cost=None))[1] == (None, (), {}, None)
    assert run()[1] == (None, (), {}, None)


def test_multipath_is_what_is_equal_up_to_the_interior_cost() -> None:
    paths, decision = run(
        Spec("a", identifier=3),
        Spec("b", identifier=1),
        Spec("c", identifier=2, path=(65009,)),
        Spec("d", cost=1),
        Spec("e", ibgp=True),
    )
    assert decision.multipath == (paths[1], paths[2], paths[0])
    assert decision.lost == {
        paths[0]: Step.MULTIPATH,
        paths[2]: Step.MULTIPATH,
        paths[3]: Step.INTERIOR_COST,
        paths[4]: Step.EXTERNAL,
    }
    assert decision.decided is Step.IDENTIFIER


def test_multipath_without_relax_wants_the_same_as_path() -> None:
    specs = Spec("a"), Spec("b", identifier=2), Spec("c", path=(65009,), identifier=3)
    paths, decision = run(*specs, options=Options(multipath_relax=False))
    assert decision.multipath == tuple(paths[:2])


def test_multipath_limit() -> None:
    specs = [Spec(str(n), identifier=n + 1) for n in range(9)]
    paths, decision = run(*specs, options=Options(max_paths=4))
    assert decision.multipath == tuple(paths[:4])
    assert len(run(*specs, options=Options(max_paths=1))[1].multipath) == 1


def test_our_own_route_shares_with_nobody() -> None:
    paths, decision = run(Spec(own=True, path=()), Spec("b"), Spec("c"))
    assert decision.multipath == (paths[0],)


def test_silent_paths_share_the_traffic_while_one_of_them_answers() -> None:
    """The FIB leaves the silent gateway out; no prefix has to move."""
    paths, decision = run(Spec("a", answers=False), Spec("b", identifier=2), Spec("c", local_pref=50, identifier=3))
    assert decision.multipath == tuple(paths[:2])


def test_where_all_that_would_carry_the_traffic_are_silent_one_that_answers_does() -> None:
    silent = Spec("a", local_pref=200, answers=False), Spec("b", local_pref=200, identifier=2, answers=False)
    paths, decision = run(*silent, Spec("c"), Spec("d", local_pref=50))
    assert decision.multipath == (paths[2],)
    assert decision.decided is Step.LOCAL_PREF
    assert decision.lost == {
        paths[0]: Step.NEXT_HOP_ANSWERS,
        paths[1]: Step.NEXT_HOP_ANSWERS,
        paths[3]: Step.LOCAL_PREF,
    }
    paths, decision = run(*silent, Spec("c"))
    assert (decision.best, decision.decided) == (paths[2], Step.NEXT_HOP_ANSWERS)


def test_where_nobody_answers_all_is_as_if_everybody_did() -> None:
    specs = [Spec("a", answers=False), Spec("b", identifier=2, answers=False), Spec("c", local_pref=50, answers=False)]
    paths, decision = run(*specs)
    assert decision.multipath == tuple(paths[:2])
    assert run(specs[0])[1].multipath != ()


specs = st.builds(
    Spec,
    name=st.just("x"),
    local_pref=st.sampled_from([None, 100, 200]),
    path=st.sampled_from([(65002,), (65003,), (65002, 65003)]),
    origin=st.integers(0, 2),
    med=st.sampled_from([None, 0, 5, 9]),
    ibgp=st.booleans(),
    cost=st.sampled_from([None, 0, 7]),
    identifier=st.integers(1, 3),
    originator=st.sampled_from([None, 2]),
    clusters=st.integers(0, 2),
    fault=st.sampled_from(["", "", "loop"]),
    answers=st.booleans(),
)


@given(st.lists(specs, max_size=8), st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_outcome_does_not_depend_on_arrival_order(drawn: list[Spec], random: Random, relax: bool, always: bool) -> None:
    """Peers differ in address and name, as two sessions do."""
    paths = [Spec(**{**spec.__dict__, "name": f"p{n}", "address": n + 1}).build() for n, spec in enumerate(drawn)]
    options = Options(max_paths=3, multipath_relax=relax, always_compare_med=always)
    first = decide(paths, options)
    random.shuffle(paths)
    assert decide(paths, options) == first
    eligible = {p for p in paths if p.eligible}
    assert (first.best is None) == (not eligible)
    assert set(first.lost) | {first.best} == eligible | {first.best}


@given(st.lists(specs, max_size=8), st.booleans())
def test_the_rank_is_what_repeated_decisions_give(drawn: list[Spec], always: bool) -> None:
    """RFC 7911: which paths beside the best are told; with MED too, which orders paths of one neighbouring AS only."""
    paths = [Spec(**{**spec.__dict__, "name": f"p{n}", "address": n + 1}).build() for n, spec in enumerate(drawn)]
    options = Options(always_compare_med=always)
    ranked, left = rank(paths, options), list(paths)
    for path in ranked:
        assert decide(left, options).best is path
        left.remove(path)
    assert not any(path.eligible for path in left)
