"""The RIBs for people and programs to read: plain data, made on demand, one route at a time.

Every iterator works on a snapshot of the prefixes and reads each one when it is asked for, so that a caller may let
other work happen in between; prefixes that are gone by then are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bgp import as_path
from bgp.attributes import AS_PATH, COMMUNITIES, LARGE_COMMUNITIES, LOCAL_PREF, MED, ORIGIN, Attributes
from bgp.decision import Decision, decide
from bgp.loc_rib import LocRib
from bgp.own_prefixes import OwnPrefixes
from bgp.paths import Path
from bgp.peer_rib import PeerRib
from config.prefix import Family, address_text, text

_ORIGINS = ("IGP", "EGP", "incomplete")

_COMMUNITIES = {
    0xFFFF0000: "graceful-shutdown",
    0xFFFF029A: "blackhole",
    0xFFFFFF01: "no-export",
    0xFFFFFF02: "no-advertise",
    0xFFFFFF03: "no-export-subconfed",
}
"""RFC 1997, RFC 7999, RFC 8326."""


@dataclass(frozen=True, slots=True)
class Route:
    """One path to a prefix."""

    family: Family
    prefix: str
    peer: str
    """Name of the peer, empty for a route of our own."""
    source: str
    """``learned``, or where a route of our own comes from."""
    owners: tuple[str, ...]
    """Who originates a route of our own."""
    next_hop: str
    """Empty for a route of our own."""
    device: str
    """Interface of a link-local next hop."""
    gateways: tuple[tuple[str, str], ...]
    """Address and interface that the next hop resolves to; empty where it cannot be reached."""
    as_path: str
    origin: str
    local_pref: int
    med: int | None
    communities: tuple[str, ...]
    large_communities: tuple[str, ...]
    accepted: bool
    """Import policy and guards let it into the Loc-RIB."""
    rule: str
    """The rule of the import policy that decided; empty for a route of our own."""
    ineligible: str
    """Why it takes no part in the decision; empty where it does."""
    best: bool
    multipath: bool
    """It carries traffic: best, or equal to the best."""
    lost: str
    """The step of the decision process that removed it; empty for those that carry traffic."""


@dataclass(frozen=True, slots=True)
class Advertised:
    """One prefix as a peer is told about it."""

    family: Family
    prefix: str
    next_hop: str
    as_path: str
    origin: str
    local_pref: int | None
    med: int | None
    communities: tuple[str, ...]
    large_communities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Export:
    """What one peer is told about a prefix, and why."""

    peer: str
    advertised: bool
    reason: str
    """The rule of the export policy that decided, or what stands above it."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is known about one prefix."""

    family: Family
    prefix: str
    routes: tuple[Route, ...]
    """Every path, those that import policy keeps out included."""
    decided: str
    """The step of the decision process that left the best path alone; empty where it had no rival."""
    exports: tuple[Export, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """Prefixes of one peer and family."""

    received: int = 0
    accepted: int = 0
    advertised: int = 0
    refused: int = 0
    """Received ones that are our own, or more specifics of them."""


class Inspection:
    """Reads the tables of a ``Rib``."""

    def __init__(
        self, loc: Mapping[Family, LocRib], own: Mapping[Family, OwnPrefixes], peers: Mapping[str, PeerRib]
    ) -> None:
        self._loc = loc
        self._own = own
        self._peers = peers

    def counts(self, name: str) -> dict[Family, Counts]:
        """Return a peer's counts for every family that has any, or that its session announces."""
        rib = self._peers[name]
        return {
            family: Counts(
                received=len(table),
                accepted=rib.accepted[family],
                advertised=rib.groups[family].advertised(name) if family in rib.groups else 0,
                refused=len(rib.refused[family]),
            )
            for family, table in rib.adj_in.tables.items()
            if table or rib.accepted[family] or family in rib.groups
        }

    def loc_rib(self, family: Family) -> Iterator[Route]:
        """Iterate over all accepted paths of all prefixes, sorted by prefix."""
        loc = self._loc[family]
        for prefix in sorted(loc.table, key=_sort_key):
            paths = loc.paths(prefix)
            decision = decide(paths, loc.options)
            for path in paths:
                yield self._route(family, prefix, path, decision)

    def received(self, name: str, family: Family) -> Iterator[Route]:
        """Iterate over what a peer announces, as received, sorted by prefix."""
        table = self._peers[name].adj_in.tables[family]
        for prefix in sorted(table, key=_sort_key):
            path = table.get(prefix)
            if path is not None:
                yield self._received(family, prefix, self._peers[name], path)

    def advertised(self, name: str, family: Family) -> Iterator[Advertised]:
        """Iterate over what a peer is, or is about to be, told, sorted by prefix."""
        group = self._peers[name].groups.get(family)
        if group is None:
            return
        member = group.members[name]
        width = 4 if group.key.kind.four_octet_as else 2
        for prefix in sorted(group.table, key=_sort_key):
            route = group.table.get(prefix)
            if route is None or route.peer is member.peer:
                continue
            attributes = Attributes(route.before + route.after)
            yield Advertised(
                family=family,
                prefix=text(family, prefix),
                next_hop=address_text((route.next_hop or member.next_hop)[:16]),
                as_path=as_path.text(attributes.value(AS_PATH) or b"", width),
                origin=_ORIGINS[(attributes.value(ORIGIN) or b"\2")[0]],
                local_pref=_number(attributes, LOCAL_PREF),
                med=_number(attributes, MED),
                communities=communities_text(attributes),
                large_communities=large_communities_text(attributes),
            )

    def explain(self, family: Family, prefix: bytes) -> Explanation:
        """Return every path to a prefix, what became of each, and what peers are told."""
        loc = self._loc[family]
        paths = loc.paths(prefix)
        decision = decide(paths, loc.options)
        routes = [self._route(family, prefix, path, decision) for path in paths]
        accepted = {path.peer.name for path in paths if path.peer is not None}
        for name, rib in self._peers.items():
            path = rib.adj_in.tables[family].get(prefix)
            if path is not None and name not in accepted:
                routes.append(self._received(family, prefix, rib, path))
        exports = [
            _export(name, rib, family, prefix, decision.best)
            for name, rib in self._peers.items()
            if family in rib.groups
        ]
        decided = _step(decision.decided.name) if decision.decided is not None else ""
        return Explanation(family, text(family, prefix), tuple(routes), decided, tuple(exports))

    def _route(self, family: Family, prefix: bytes, path: Path, decision: Decision) -> Route:
        multipath = path in decision.multipath
        step = decision.lost.get(path)
        rule = "" if path.peer is None else self._rule(family, prefix, path.peer.name)
        return self._view(
            family,
            prefix,
            path,
            accepted=True,
            rule=rule,
            ineligible=path.ineligible,
            best=path is decision.best,
            multipath=multipath,
            lost="" if step is None or multipath else _step(step.name),
        )

    def _received(self, family: Family, prefix: bytes, rib: PeerRib, path: Path) -> Route:
        verdict = rib.policy.evaluate(family, prefix, path)
        violated = self._own[family].violated(prefix)
        if violated is not None:
            ineligible = f"refused: {text(family, violated)} is our own"
        elif not verdict.accepted:
            ineligible = f"import policy: {verdict.rule}"
        else:
            ineligible = path.ineligible
        chosen = decide(self._loc[family].paths(prefix), self._loc[family].options).multipath
        return self._view(
            family,
            prefix,
            path,
            accepted=verdict.accepted and violated is None,
            rule=verdict.rule,
            ineligible=ineligible,
            best=bool(chosen) and chosen[0].peer is path.peer,
            multipath=any(p.peer is path.peer for p in chosen),
            lost="",
        )

    def _rule(self, family: Family, prefix: bytes, name: str) -> str:
        rib = self._peers.get(name)
        if rib is None:
            return ""
        return rib.policy.evaluate(family, prefix, rib.adj_in.tables[family].get(prefix)).rule

    def _view(
        self,
        family: Family,
        prefix: bytes,
        path: Path,
        *,
        accepted: bool,
        rule: str,
        ineligible: str,
        best: bool,
        multipath: bool,
        lost: str,
    ) -> Route:
        attributes, hop = path.attributes, path.hop
        own = self._own[family]
        is_own = path.peer is None and prefix in own
        gateways = hop.resolution.gateways if hop is not None and hop.resolution is not None else ()
        return Route(
            family=family,
            prefix=text(family, prefix),
            peer=path.peer.name if path.peer is not None else "",
            source=own.source(prefix) if is_own else "learned",
            owners=tuple(sorted(own.owners(prefix))) if is_own else (),
            next_hop=address_text(hop.address) if hop is not None else "",
            device=hop.device if hop is not None else "",
            gateways=tuple((address_text(g.address), g.device) for g in gateways),
            as_path=as_path.text(attributes.value(AS_PATH) or b""),
            origin=_ORIGINS[attributes.origin],
            local_pref=path.local_pref,
            med=attributes.med,
            communities=communities_text(attributes),
            large_communities=large_communities_text(attributes),
            accepted=accepted,
            rule=rule,
            ineligible=ineligible,
            best=best,
            multipath=multipath,
            lost=lost,
        )


def communities_text(attributes: Attributes) -> tuple[str, ...]:
    """Return the communities as ``65001:100`` or their registered names (RFC 1997)."""
    value = attributes.value(COMMUNITIES) or b""
    numbers = (int.from_bytes(value[at : at + 4], "big") for at in range(0, len(value), 4))
    return tuple(_COMMUNITIES.get(n, f"{n >> 16}:{n & 0xFFFF}") for n in numbers)


def large_communities_text(attributes: Attributes) -> tuple[str, ...]:
    """Return the large communities as ``65001:1:2`` (RFC 8092 section 5)."""
    value = attributes.value(LARGE_COMMUNITIES) or b""
    return tuple(
        ":".join(str(int.from_bytes(value[at + part : at + part + 4], "big")) for part in (0, 4, 8))
        for at in range(0, len(value), 12)
    )


def _export(name: str, rib: PeerRib, family: Family, prefix: bytes, best: Path | None) -> Export:
    group = rib.groups[family]
    if best is None:
        return Export(name, False, "no path is eligible")
    if best.peer is rib.adj_in.peer:
        return Export(name, False, "learned from this peer")
    withheld = group.withheld(best)
    if withheld:
        return Export(name, False, withheld)
    verdict = group.verdict(prefix, best)
    if verdict.accepted and prefix not in group.table:
        return Export(name, False, "not yet, or its attributes do not fit into a message")
    return Export(name, verdict.accepted, verdict.rule)


def _number(attributes: Attributes, code: int) -> int | None:
    value = attributes.value(code)
    return None if value is None else int.from_bytes(value, "big")


def _step(name: str) -> str:
    return name.lower().replace("_", " ")


def _sort_key(prefix: bytes) -> tuple[bytes, int]:
    return prefix[1:], prefix[0]
