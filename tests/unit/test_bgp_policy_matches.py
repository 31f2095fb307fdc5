"""Rules that ask for more than a prefix, and what they change: from one speaker to another."""

from __future__ import annotations

from weakref import ref

import pytest

from agent.peering import _policy as compiled
from bgp.attributes import COMMUNITIES, EXTENDED_COMMUNITIES, LARGE_COMMUNITIES, Attributes
from bgp.conditions import _REMEMBERED, All, compile_as_path, has_community
from bgp.hops import Hop
from bgp.paths import Path
from bgp.policy import ACCEPT, Changes, Match, Policy, Rule
from config import policy as written
from config.communities import community_octets
from config.prefix import parse
from tests.bgp_ribs import Node, add_peer, join, session, settle

A4, B4 = "10.64.0.0/26", "10.64.1.0/26"
TRANSIT = Policy((Rule("all", True, Match(sources=frozenset(("learned", "block")))),))


def octets(*texts: str) -> frozenset[bytes]:
    return frozenset(map(community_octets, texts))


def tagging(*texts: str) -> Policy:
    """An export policy that adds communities."""
    added = octets(*texts)
    changes = Changes(
        communities=frozenset(c for c in added if len(c) == 4),
        extended_communities=frozenset(c for c in added if len(c) == 8),
        large_communities=frozenset(c for c in added if len(c) == 12),
    )
    return Policy((Rule("tag", True, Match(), changes),))


def learned(imports: Policy, *, exports: Policy = ACCEPT) -> Node:
    """``b``, to which ``a`` in AS 65001 announces A4."""
    a, b = Node("a", 65001, 1), Node("b", 65002, 2)
    add_peer(a, b, exports=exports)
    add_peer(b, a, imports=imports)
    session(a, b)
    a.originate(A4)
    settle(a, b)
    return b


def rule(match: Match, changes: Changes | None = None) -> Policy:
    return Policy((Rule("wanted", True, match, changes or Changes()),))


@pytest.mark.parametrize("text", ["65001:7", "65001:1:2", "rt:65001:9", "so:4200000001:5"])
def test_communities_of_all_kinds_are_matched(text: str) -> None:
    """RFC 1997, 8092 and 4360."""
    imports = rule(Match(communities=octets(text, "65009:9")))
    assert learned(imports, exports=tagging(text)).fib[4]
    assert not learned(imports, exports=tagging("65001:8", "65001:1:3", "rt:65001:8")).fib[4]
    assert not learned(imports).fib[4]


@pytest.mark.parametrize(
    ("expression", "accepted"),
    [("^65001$", True), ("_65001_", True), ("_5001_", False), ("^65002", False), ("^$", False), ("65001|65002", True)],
)
def test_an_as_path_is_matched_by_its_text(expression: str, accepted: bool) -> None:
    assert bool(learned(rule(Match(as_path=expression))).fib[4]) is accepted


def test_a_bad_expression_is_named() -> None:
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
        compile_as_path("(")


@pytest.mark.parametrize(
    ("prefix", "accepted"), [("192.0.2.1/32", True), ("192.0.2.0/24 le 32", True), ("10.0.0.0/8 le 32", False)]
)
def test_a_next_hop_is_matched(prefix: str, accepted: bool) -> None:
    match = written.Match.model_validate({"nextHop": [prefix]})
    policy = compiled(written.Policy(rules=[written.Rule(name="r", action="accept", match=match)]))
    assert bool(learned(policy).fib[4]) is accepted


def test_the_first_rule_whose_conditions_all_hold_decides_and_is_named() -> None:
    both = Rule("both", False, Match(as_path="^65001$", communities=octets("65001:7")))
    path = Rule("path", True, Match(as_path="^65001$"))
    policy = Policy((both, path))
    assert learned(policy).rib.explain(*parse(A4)).routes[0].rule == "path"
    (route,) = learned(policy, exports=tagging("65001:7")).rib.explain(*parse(A4)).routes
    assert (route.accepted, route.rule) == (False, "both")


def tags(node: Node) -> list[str]:
    """Communities of A4 as ``node`` passes it on to a third speaker."""
    c = Node("c", 65003, 3)
    add_peer(node, c, exports=TRANSIT)
    add_peer(c, node)
    session(node, c)
    settle(node, c)
    attributes = Attributes(c.rib.peers[node.name].adj_in.tables[4][parse(A4)[1]].attributes.raw)
    return [(attributes.value(code) or b"").hex() for code in (COMMUNITIES, EXTENDED_COMMUNITIES, LARGE_COMMUNITIES)]


def hexes(*texts: str) -> list[str]:
    return [community_octets(text).hex() if text else "" for text in texts]


def test_communities_are_removed_added_and_replaced() -> None:
    exports = tagging("65001:7", "rt:65001:9", "65001:1:2")
    assert tags(learned(rule(Match(), Changes(remove_communities=octets("65001:7"))), exports=exports)) == hexes(
        "", "rt:65001:9", "65001:1:2"
    )
    replaced = Changes(replace_communities=True, communities=octets("65002:1"))
    assert tags(learned(rule(Match(), replaced), exports=exports)) == hexes("65002:1", "", "")
    added = Changes(extended_communities=octets("so:65002:5"))
    assert tags(learned(rule(Match(), added))) == hexes("", "so:65002:5", "")


def test_weight_comes_before_local_preference() -> None:
    a, b, c = Node("a", 65001, 1), Node("b", 65002, 2), Node("c", 65003, 3)
    add_peer(c, a, imports=rule(Match(), Changes(local_pref=900)))
    add_peer(c, b, imports=rule(Match(), Changes(weight=1)))
    for other in (a, b):
        add_peer(other, c)
        session(other, c)
        other.originate(A4)
    settle(a, b, c)
    assert c.via(4, A4) == ["b"]


def test_a_learned_next_hop_is_kept_towards_another_as() -> None:
    """RFC 4271 section 5.1.3: a third-party next hop."""
    keep = Policy((Rule("keep", True, Match(sources=frozenset(("learned",))), Changes(next_hop_keep=True)),))
    a, b, c = Node("a", 65001, 1), Node("b", 65002, 2), Node("c", 65003, 3)
    join(a, b)
    add_peer(b, c, exports=keep)
    add_peer(c, b)
    session(b, c)
    a.originate(A4)
    settle(a, b, c)
    assert [hop.address for hop in c.fib[4][A4]] == [a.address(4)]


def test_the_file_says_all_of_it() -> None:
    data = {
        "rules": [
            {
                "name": "r",
                "match": {"communities": ["65000:1", "rt:65000:2"], "asPath": "^65001_"},
                "action": "accept",
                "set": {
                    "communities": ["so:65000:3", "no-export"],
                    "removeCommunities": ["65000:1:2"],
                    "replaceCommunities": True,
                    "nextHop": "keep",
                    "weight": 7,
                },
            }
        ]
    }
    (found,) = compiled(written.Policy.model_validate(data)).rules
    assert found.match == Match(communities=octets("65000:1", "rt:65000:2"), as_path="^65001_")
    assert found.changes == Changes(
        communities=octets("no-export"),
        extended_communities=octets("so:65000:3"),
        remove_communities=octets("65000:1:2"),
        replace_communities=True,
        next_hop_keep=True,
        weight=7,
    )


@pytest.mark.parametrize("text", ["rt:65000", "rt:4200000001:65536", "rt:1:4294967296", "xx:1:2", "65536:1"])
def test_what_is_no_community(text: str) -> None:
    with pytest.raises(ValueError):
        community_octets(text)


def test_what_is_remembered_of_paths_has_a_bound() -> None:
    asked = 0
    wanted = has_community(octets("65001:7"))

    def counted(path: Path) -> bool:
        nonlocal asked
        asked += 1
        return wanted(path)

    every = All([counted])
    matching = bytes.fromhex("c00804") + community_octets("65001:7")
    raws = [bytes.fromhex("800404") + n.to_bytes(4, "big") + matching * (n % 2) for n in range(_REMEMBERED + 2)]
    paths = [Path(None, Attributes(raw), None, None) for raw in raws]
    for _ in range(2):
        assert [every.hold(path) for path in paths[:100]] == [False, True] * 50
    assert asked == 100
    assert [every.hold(path) for path in paths] == [False, True] * (len(paths) // 2)
    assert len(every._known) <= _REMEMBERED


def test_what_is_remembered_of_a_path_does_not_keep_its_next_hop() -> None:
    every = All([has_community(octets("65001:7"))])
    hop = Hop(bytes((192, 0, 2, 1)), "", None)
    let_go = ref(hop)
    path = Path(None, Attributes(b""), hop, None)
    assert not every.hold(path)
    del path, hop
    assert let_go() is None


def test_a_next_hop_tells_paths_of_the_same_attributes_apart() -> None:
    near, far = (Path(None, Attributes(b""), Hop(bytes((192, 0, 2, n)), "", None), None) for n in (1, 2))
    every = All([lambda path: path.hop is not None and path.hop.address[3] == 1])
    assert [every.hold(path) for path in (near, far, near, far)] == [True, False, True, False]
