from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.policy import (
    ACCEPT,
    NO_CHANGES,
    REJECT,
    Changes,
    ExportPolicy,
    ImportPolicy,
    Match,
    Policy,
    Rule,
    Source,
)
from config.prefix import make, parse
from config.prefix_range import PrefixRange


def prefixes(*expressions: str) -> Match:
    return Match(prefixes=tuple(PrefixRange.parse(e) for e in expressions))


@pytest.mark.parametrize(
    ("expression", "inside", "outside"),
    [
        ("10.0.0.0/8", ["10.0.0.0/8"], ["10.0.0.0/9", "11.0.0.0/8", "0.0.0.0/0"]),
        ("10.0.0.0/8 le 26", ["10.0.0.0/8", "10.1.2.0/26"], ["10.1.2.0/27", "11.0.0.0/16"]),
        ("10.0.0.0/8 ge 24", ["10.1.1.0/24", "10.1.1.1/32"], ["10.1.0.0/23", "10.0.0.0/8"]),
        ("10.0.0.0/8 ge 24 le 26", ["10.1.1.0/25"], ["10.1.1.0/27", "10.1.0.0/23"]),
        ("0.0.0.0/0 le 32", ["0.0.0.0/0", "1.2.3.4/32"], []),
        ("10.128.0.0/9 le 32", ["10.200.0.0/16"], ["10.100.0.0/16"]),
        ("fd00::/8 le 64", ["fd12:3456::/48"], ["fc00::/8", "fd00::/65"]),
    ],
)
def test_prefix_match(expression: str, inside: list[str], outside: list[str]) -> None:
    policy = ImportPolicy(Policy(rules=(Rule("r", True, prefixes(expression)),)))
    for prefix, accepted in [(p, True) for p in inside] + [(p, False) for p in outside]:
        assert policy.evaluate(*parse(prefix)).accepted is accepted, prefix


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("10.0.0.0/8 le 7", "8 <= ge <= le <= 32"),
        ("10.0.0.0/8 ge 33", "8 <= ge <= le <= 32"),
        ("10.0.0.0/8 ge 26 le 24", "8 <= ge <= le <= 32"),
        ("10.0.0.1/8", "host bits"),
        ("10.0.0.0/8 lt 9", "not of the form"),
        ("", "not of the form"),
        ("ten", "not of the form"),
        ("ten/8", "does not appear to be"),
    ],
)
def test_prefix_match_that_makes_no_sense(expression: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PrefixRange.parse(expression)


def test_first_match_wins_and_names_itself() -> None:
    policy = ImportPolicy(
        Policy(
            rules=(
                Rule("no private", False, prefixes("10.0.0.0/8 le 32", "192.168.0.0/16 le 32")),
                Rule("prefer", True, prefixes("172.16.0.0/12 le 32"), Changes(local_pref=200)),
                Rule("shadowed", False, prefixes("172.16.0.0/12 le 32")),
            ),
            accept=True,
        )
    )
    assert policy.evaluate(*parse("10.1.0.0/16")) == (False, NO_CHANGES, "no private")
    assert policy.evaluate(*parse("172.16.0.0/24")) == (True, Changes(local_pref=200), "prefer")
    assert policy.evaluate(*parse("8.8.8.0/24")) == (True, NO_CHANGES, "default accept")
    assert policy.constant(4) is None
    assert policy.constant(6) == (True, NO_CHANGES, "default accept"), "no rule has IPv6 prefixes"


def test_defaults() -> None:
    """RFC 8212: what is not accepted is rejected."""
    prefix = parse("10.0.0.0/24")
    assert ImportPolicy(ACCEPT).evaluate(*prefix) == (True, NO_CHANGES, "default accept")
    assert ImportPolicy(REJECT).evaluate(*prefix) == (False, NO_CHANGES, "default reject")
    assert ImportPolicy(Policy()).constant(4) == (False, NO_CHANGES, "default reject")


@pytest.mark.parametrize("source", ["block", "exception", "aggregate", "static"])
def test_accept_exports_what_is_our_own(source: Source) -> None:
    assert ExportPolicy(ACCEPT).constant(4, source) == (True, NO_CHANGES, "default accept")
    assert ExportPolicy(REJECT).constant(4, source) == (False, NO_CHANGES, "default reject")


def test_learned_routes_leave_only_by_a_rule_that_names_them() -> None:
    everything = Rule("everything", True)
    transit = Rule("transit", True, Match(sources=frozenset(("learned",))))
    prefix = parse("10.0.0.0/24")[1]
    assert not ExportPolicy(ACCEPT).evaluate(4, prefix, "learned").accepted
    assert not ExportPolicy(Policy(rules=(everything,), accept=True)).evaluate(4, prefix, "learned").accepted
    assert ExportPolicy(Policy(rules=(everything, transit))).evaluate(4, prefix, "learned").rule == "transit"
    assert ExportPolicy(Policy(rules=(everything, transit))).evaluate(4, prefix, "block").rule == "everything"


def test_family_and_source() -> None:
    policy = ExportPolicy(
        Policy(
            rules=(
                Rule("no v6", False, Match(family=6)),
                Rule("blocks", True, Match(sources=frozenset(("block",))), Changes(med=5)),
            )
        )
    )
    assert policy.constant(6, "block") == (False, NO_CHANGES, "no v6")
    assert policy.constant(4, "block") == (True, Changes(med=5), "blocks")
    assert policy.constant(4, "static") == (False, NO_CHANGES, "default reject")


def test_rejected_routes_are_not_changed() -> None:
    assert ImportPolicy(Policy(rules=(Rule("r", False, changes=Changes(med=1)),))).constant(4) == (
        False,
        NO_CHANGES,
        "r",
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 32), st.integers(0, 32), st.booleans()),
        max_size=6,
    ),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)
def test_compiled_rules_agree_with_a_plain_reading(
    rules: list[tuple[int, int, int, int, bool]], address: int, length: int
) -> None:
    """Against a reading that compares bit by bit."""
    compiled, expected = [], False
    decided = False
    for index, (outer, size, ge, le, accept) in enumerate(rules):
        match = PrefixRange(4, make(4, outer, size), max(ge, size), max(le, size))
        compiled.append(Rule(str(index), accept, Match(prefixes=(match,))))
        within = not (outer ^ address) >> (32 - size) if size else True
        if within and length >= size and match.ge <= length <= match.le and not decided:
            expected, decided = accept, True
    verdict = ImportPolicy(Policy(rules=tuple(compiled))).evaluate(4, make(4, address, length))
    assert verdict.accepted == expected
