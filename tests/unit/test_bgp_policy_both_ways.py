"""The same rule object on import and on export: every kind of match decides the same, and says so when asked why."""

from __future__ import annotations

import pytest

from agent.peering import _policy as compiled
from bgp.policy import ACCEPT, Changes, Match, Policy, Rule
from config import policy as written
from config.prefix import parse
from tests.bgp_ribs import Node, add_peer, session, settle
from tests.unit.test_bgp_policy_matches import TRANSIT, octets

A4, A6 = "10.64.0.0/26", "2001:db8:64::/122"
TAGS = ("65001:7", "blackhole", "65001:1:2", "rt:65001:9", "so:4200000001:5")


def tagged() -> Policy:
    """What ``a`` announces carries communities of all kinds."""
    tags = octets(*TAGS)
    changes = Changes(
        communities=frozenset(c for c in tags if len(c) == 4),
        extended_communities=frozenset(c for c in tags if len(c) == 8),
        large_communities=frozenset(c for c in tags if len(c) == 12),
        med=70,
    )
    return Policy((Rule("tag", True, changes=changes),))


def chain(imports: Policy, exports: Policy) -> tuple[Node, Node]:
    """``a`` announces A4 and A6 to ``b``, which has these policies towards ``a`` and ``c``; return ``b`` and ``c``."""
    a, b, c = Node("a", 65001, 1), Node("b", 65002, 2), Node("c", 65003, 3)
    add_peer(a, b, exports=tagged())
    add_peer(b, a, imports=imports)
    add_peer(b, c, exports=exports)
    add_peer(c, b)
    session(a, b)
    session(b, c)
    a.originate(A4, A6)
    settle(a, b, c)
    return b, c


def have(node: Node) -> set[str]:
    return set(node.fib[4]) | set(node.fib[6])


MATCHES = [
    ({"prefixes": ["10.64.0.0/26"]}, {A4}),
    ({"prefixes": ["10.0.0.0/8 le 26", "2001:db8::/32 ge 120 le 122"]}, {A4, A6}),
    ({"prefixes": ["10.0.0.0/8 ge 27"]}, set()),
    ({"family": "ipv6"}, {A6}),
    ({"communities": ["65001:8", "65001:7"]}, {A4, A6}),
    ({"communities": ["blackhole"]}, {A4, A6}),
    ({"communities": ["no-peer"]}, set()),
    ({"communities": ["65001:1:2"]}, {A4, A6}),
    ({"communities": ["rt:65001:9"]}, {A4, A6}),
    ({"communities": ["so:4200000001:5"]}, {A4, A6}),
    ({"communities": ["so:65001:9"]}, set()),
    ({"asPath": "^65001$"}, {A4, A6}),
    ({"asPath": "_65002_"}, set()),
    ({"nextHop": ["192.0.2.0/24 le 32"]}, {A4}),
    ({"nextHop": ["2001:db8::1/128"]}, {A6}),
    ({"nextHop": ["2001:db8::2/128"]}, set()),
    ({"family": "ipv4", "communities": ["65001:7"], "asPath": "^65001_", "nextHop": ["192.0.2.1/32"]}, {A4}),
    ({"family": "ipv4", "communities": ["65001:7"], "asPath": "^65002_"}, set()),
]


@pytest.mark.parametrize(("match", "expected"), MATCHES)
def test_a_rule_decides_the_same_both_ways(match: dict[str, object], expected: set[str]) -> None:
    said = written.Match.model_validate({"source": ["learned"], **match})
    policy = compiled(written.Policy(rules=[written.Rule(name="wanted", action="accept", match=said)]))
    b, c = chain(policy, TRANSIT)
    assert have(b) == have(c) == expected
    for prefix in (A4, A6):
        (route,) = b.rib.explain(*parse(prefix)).routes
        assert (route.accepted, route.rule) == (
            prefix in expected,
            "wanted" if prefix in expected else "default reject",
        )
    b, c = chain(ACCEPT, policy)
    assert (have(b), have(c)) == ({A4, A6}, expected)
    for prefix in (A4, A6):
        (export,) = [one for one in b.rib.explain(*parse(prefix)).exports if one.peer == "c"]
        assert export.advertised is (prefix in expected)
        assert export.reason == ("wanted" if prefix in expected else "default reject")


@pytest.mark.parametrize("source", ["block", "exception", "aggregate", "static", "learned"])
def test_a_source_is_matched_on_export(source: str) -> None:
    b, c = Node("b", 65002, 2), Node("c", 65003, 3)
    policy = Policy((Rule("wanted", True, Match(sources=frozenset((source,)))),))  # type: ignore[arg-type]
    add_peer(b, c, exports=policy)
    add_peer(c, b)
    session(b, c)
    own = {"block": "10.1.0.0/24", "exception": "10.4.0.7/32", "aggregate": "10.2.0.0/16", "static": "10.3.0.0/24"}
    for kind, prefix in own.items():
        b.originate(prefix, source=kind)  # type: ignore[arg-type]
    settle(b, c)
    assert have(c) == {prefix for kind, prefix in own.items() if kind == source}


def test_what_a_rule_sets_it_sets_both_ways() -> None:
    """LOCAL_PREF alone stays inside the AS, weight inside the speaker."""
    changes = Changes(
        local_pref=300,
        med=5,
        communities=octets("65002:9"),
        remove_communities=octets("65001:7", "65001:1:2", "rt:65001:9"),
        prepend=2,
        weight=9,
    )
    rule = Rule("set", True, Match(sources=frozenset(("learned",))), changes)
    b, _ = chain(Policy((rule,)), TRANSIT)
    (route,) = b.rib.explain(*parse(A4)).routes
    assert (route.local_pref, route.med, route.as_path) == (300, 5, "65001 65001 65001")
    assert (set(route.communities), route.large_communities) == ({"65002:9", "blackhole"}, ())
    assert route.extended_communities == ("so:4200000001:5",)
    _, c = chain(ACCEPT, Policy((rule,)))
    (route,) = c.rib.explain(*parse(A4)).routes
    assert (route.local_pref, route.med, route.as_path) == (100, 5, "65002 65002 65002 65001")
    assert (set(route.communities), route.large_communities) == ({"65002:9", "blackhole"}, ())
