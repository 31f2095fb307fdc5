"""Import and export policy: ordered rules per peer and direction, the first that matches decides.

Plain frozen dataclasses describe a policy (equal policies compare equal, so peers with the same one share work);
``ImportPolicy`` and ``ExportPolicy`` are its compiled forms. Every verdict names the rule it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from bgp.attributes import GRACEFUL_SHUTDOWN
from bgp.conditions import All, Condition, has_as_path, has_community
from bgp.paths import Path
from config.prefix import BITS, FAMILIES, Family
from config.prefix_range import PrefixRange

Source = Literal["block", "exception", "aggregate", "static", "learned"]
"""Where a route comes from: a block of ours, an address on loan to us (an exception to its lender's
block), an aggregate with one in it, configuration, a peer."""

OWN: tuple[Source, ...] = ("block", "exception", "aggregate", "static")


@dataclass(frozen=True, slots=True)
class Match:
    """What a rule applies to; an empty field matches everything, all fields must match."""

    prefixes: tuple[PrefixRange, ...] = ()
    sources: frozenset[Source] = frozenset()
    """On export, a rule that names no source applies to our own routes and never to learned ones."""
    family: Family | None = None
    communities: frozenset[bytes] = frozenset()
    """Any of these: communities of 4 octets, extended ones of 8, large ones of 12."""
    as_path: str = ""
    """A regular expression over the text of the AS_PATH (bgp.conditions.compile_as_path)."""
    next_hops: tuple[PrefixRange, ...] = ()
    """The next hop of a learned route lies in one of these."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a rule sets on a route that it accepts; None and empty leave the attribute alone."""

    local_pref: int | None = None
    med: int | None = None
    communities: frozenset[bytes] = frozenset()
    """Communities to add, four octets each (RFC 1997)."""
    large_communities: frozenset[bytes] = frozenset()
    """Large communities to add, twelve octets each (RFC 8092)."""
    extended_communities: frozenset[bytes] = frozenset()
    """Extended communities to add, eight octets each (RFC 4360)."""
    remove_communities: frozenset[bytes] = frozenset()
    """Communities to take away, of any kind, told apart by their size."""
    replace_communities: bool = False
    """Take all communities of all kinds away before any are added."""
    weight: int = 0
    """Import: preferred before everything else, the higher the more; it stays in this speaker."""
    prepend: int = 0
    """How often an AS is put before the AS_PATH once more: ours on export to another AS, the peer's on import."""
    next_hop_self: bool = False
    """Export: announce ourselves as the next hop, also to an internal peer."""
    next_hop_keep: bool = False
    """Export: announce a learned route with the next hop that it has, also to another AS (RFC 4271 section 5.1.3)."""


NO_CHANGES = Changes()


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    accept: bool
    match: Match = Match()
    changes: Changes = NO_CHANGES


@dataclass(frozen=True, slots=True)
class Policy:
    """Ordered rules, and what happens to a route that none of them matches."""

    rules: tuple[Rule, ...] = ()
    accept: bool = False


ACCEPT = Policy(accept=True)
REJECT = Policy()
"""What an external peer without configured policy gets in both directions (RFC 8212)."""


def shutting_down(policy: Policy) -> Policy:
    """Return an export policy that passes the same routes as ``policy``, as those to avoid (RFC 8326 section 4)."""
    rules = tuple(
        replace(rule, changes=_avoided(rule.changes)) if rule.accept else rule
        for rule in (*policy.rules, *((Rule("default accept", True),) if policy.accept else ()))
    )
    return Policy(rules)


def _avoided(changes: Changes) -> Changes:
    return replace(changes, local_pref=0, communities=changes.communities | {GRACEFUL_SHUTDOWN})


class Verdict(NamedTuple):
    accepted: bool
    changes: Changes
    rule: str
    """Name of the rule that decided, or ``default accept``, ``default reject``."""


class _Step(NamedTuple):
    prefixes: _PrefixSet | None
    conditions: All
    verdict: Verdict


class _PrefixSet:
    """Prefix matches by the length of their prefix, so that a long list costs one look-up per distinct length."""

    def __init__(self, matches: Iterable[PrefixRange]) -> None:
        self._by_length: dict[int, dict[bytes, list[tuple[int, int]]]] = {}
        for match in matches:
            same = self._by_length.setdefault(match.prefix[0], {})
            same.setdefault(match.prefix, []).append((match.ge, match.le))

    def __contains__(self, prefix: bytes) -> bool:
        for length, same in self._by_length.items():
            if length <= prefix[0]:
                for ge, le in same.get(_shorten(prefix, length), ()):
                    if ge <= prefix[0] <= le:
                        return True
        return False


class _Program:
    """The rules that can apply to one family and source, in order; the last always matches."""

    def __init__(self, policy: Policy, family: Family, source: Source, sources: tuple[Source, ...]) -> None:
        self._steps: list[_Step] = []
        for rule in policy.rules:
            prefixes = [p for p in rule.match.prefixes if p.family == family]
            if rule.match.family not in (None, family) or (rule.match.prefixes and not prefixes):
                continue
            if source not in (rule.match.sources or sources):
                continue
            verdict = Verdict(rule.accept, rule.changes if rule.accept else NO_CHANGES, rule.name)
            conditions = All(_conditions(rule.match))
            self._steps.append(_Step(_PrefixSet(prefixes) if prefixes else None, conditions, verdict))
            if not prefixes and not conditions:
                return
        accept = policy.accept and source in sources
        self._steps.append(
            _Step(None, All(()), Verdict(accept, NO_CHANGES, f"default {'accept' if accept else 'reject'}"))
        )

    @property
    def constant(self) -> Verdict | None:
        """The verdict where it is the same for every prefix and path."""
        first = self._steps[0]
        return first.verdict if first.prefixes is None and not first.conditions else None

    def evaluate(self, prefix: bytes, path: Path | None) -> Verdict:
        for prefixes, conditions, verdict in self._steps:
            if (prefixes is None or prefix in prefixes) and conditions.hold(path):
                return verdict
        raise AssertionError("the last step matches every prefix")


class ImportPolicy:
    """A policy compiled for routes that a peer announces."""

    def __init__(self, policy: Policy) -> None:
        self._programs: dict[Family, _Program] = {
            4: _Program(policy, 4, "learned", ("learned",)),
            6: _Program(policy, 6, "learned", ("learned",)),
        }

    def constant(self, family: Family) -> Verdict | None:
        """Return the verdict that holds for every prefix of a family, None where prefixes matter."""
        return self._programs[family].constant

    def passes_all(self, family: Family) -> bool:
        """Tell whether every path of a family is accepted as it is."""
        verdict = self.constant(family)
        return verdict is not None and verdict.accepted and verdict.changes == NO_CHANGES

    def evaluate(self, family: Family, prefix: bytes, path: Path | None = None) -> Verdict:
        """Return what happens to a prefix that the peer announces; without its path, as if it had no attributes."""
        return self._programs[family].evaluate(prefix, path)


class ExportPolicy:
    """A policy compiled for routes that we announce: our own, and learned ones only where a rule names that source."""

    def __init__(self, policy: Policy) -> None:
        families: tuple[Family, ...] = (4, 6)
        sources: tuple[Source, ...] = (*OWN, "learned")
        self._programs = {(f, s): _Program(policy, f, s, OWN) for f in families for s in sources}

    def constant(self, family: Family, source: Source) -> Verdict | None:
        """Return the verdict that holds for every prefix of a family and source, None where prefixes matter."""
        return self._programs[family, source].constant

    def evaluate(self, family: Family, prefix: bytes, source: Source, path: Path | None = None) -> Verdict:
        """Return what happens to a prefix that comes from ``source``."""
        return self._programs[family, source].evaluate(prefix, path)


def _conditions(match: Match) -> Iterator[Condition]:
    if match.communities:
        yield has_community(match.communities)
    if match.as_path:
        yield has_as_path(match.as_path)
    if match.next_hops:
        yield _has_next_hop(match.next_hops)


def _has_next_hop(matches: Iterable[PrefixRange]) -> Condition:
    sets: dict[Family, _PrefixSet] = {f: _PrefixSet(m for m in matches if m.family == f) for f in FAMILIES}

    def holds(path: Path) -> bool:
        if path.hop is None:
            return False
        address = path.hop.address
        family: Family = 4 if len(address) == 4 else 6
        return bytes((BITS[family],)) + address in sets[family]

    return holds


def _shorten(prefix: bytes, length: int) -> bytes:
    """Return the first ``length`` bits of a prefix that has at least as many."""
    whole, rest = divmod(length, 8)
    head = bytes((length,)) + prefix[1 : 1 + whole]
    return head + bytes((prefix[1 + whole] & (0xFF00 >> rest & 0xFF),)) if rest else head
