"""The RIBs for people and programs to read: plain data, made on demand, one route at a time.

Tables come in slices of some milliseconds of work, empty ones while prefixes are sorted, so that a caller may let other
work happen in between. Each prefix is read when its slice is asked for; those that are gone by then are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from bgp import as_path
from bgp.add_path_out import AddPathGroup
from bgp.adj_rib_out import ExportGroup
from bgp.attributes import AS_PATH, LOCAL_PREF, MED, ORIGIN, Attributes
from bgp.conditions import COMMUNITY_CODES
from bgp.decision import Decision, decide
from bgp.loc_rib import LocRib
from bgp.ordering import in_order
from bgp.own_prefixes import OwnPrefixes
from bgp.paths import Path, Peer
from bgp.peer_rib import PeerRib
from bgp.telling import Exported
from config.communities import community_text
from config.prefix import Family, address_text, text

_SLICE = 128
"""Prefixes in a slice; some milliseconds of work."""

T = TypeVar("T")

_ORIGINS = ("IGP", "EGP", "incomplete")


@dataclass(frozen=True, slots=True)
class Route:
    """One path to a prefix."""

    family: Family
    prefix: str
    peer: str
    """Name of the peer, empty for a route of our own."""
    path_id: int | None
    """The identifier that the peer gave this path (RFC 7911); None without."""
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
    extended_communities: tuple[str, ...]
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
    path_id: int | None
    """The identifier that we gave this path (RFC 7911); None without."""
    next_hop: str
    as_path: str
    origin: str
    local_pref: int | None
    med: int | None
    communities: tuple[str, ...]
    extended_communities: tuple[str, ...]
    large_communities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Export:
    """What one peer is told about a prefix, or about one path to it, and why."""

    peer: str
    advertised: bool
    reason: str
    """The rule of the export policy that decided, or what stands above it."""
    origin: str = ""
    """Whose path it is, where the peer takes several (RFC 7911): the peer's name; empty for a route of our own."""
    path_id: int | None = None
    """The identifier that we gave the path, where the peer takes several."""


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
    """Prefixes of one peer and family; paths where they have identifiers (RFC 7911)."""

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
                received=rib.adj_in.count(family),
                accepted=rib.accepted[family],
                advertised=rib.groups[family].advertised(name) if family in rib.groups else 0,
                refused=len(rib.refused[family]),
            )
            for family in rib.adj_in.tables
            if rib.adj_in.count(family) or rib.accepted[family] or family in rib.groups
        }

    def loc_rib(self, family: Family) -> Iterator[list[Route]]:
        """Iterate over all accepted paths of all prefixes, sorted by prefix; those of one prefix are in one slice."""
        loc = self._loc[family]

        def routes(prefix: bytes) -> Iterator[Route]:
            paths = loc.paths(prefix)
            decision = decide(paths, loc.options)
            return (self._route(family, prefix, path, decision) for path in paths)

        return _sliced(in_order(loc.table.shards), routes)

    def received(self, name: str, family: Family) -> Iterator[list[Route]]:
        """Iterate over what a peer announces, as received, sorted by prefix."""
        rib = self._peers[name]

        def routes(prefix: bytes) -> Iterator[Route]:
            return (self._received(family, prefix, rib, path) for path in rib.adj_in.paths(family, prefix))

        return _sliced(in_order(rib.adj_in.shards(family)), routes)

    def advertised(self, name: str, family: Family) -> Iterator[list[Advertised]]:
        """Iterate over what a peer is, or is about to be, told, sorted by prefix."""
        group = self._peers[name].groups.get(family)
        if group is None:
            return iter(())
        member = group.members[name]
        width = 4 if group.key.kind.four_octet_as else 2

        def told(prefix: bytes) -> Iterator[Advertised]:
            return (
                _advertised(family, prefix, path_id, route, route.next_hop or member.next_hop, width)
                for path_id, route in group.routes_to(member.peer, prefix)
            )

        return _sliced(in_order(group.prefixes), told)

    def explain(self, family: Family, prefix: bytes) -> Explanation:
        """Return every path to a prefix, what became of each, and what peers are told."""
        loc = self._loc[family]
        paths = loc.paths(prefix)
        decision = decide(paths, loc.options)
        routes = [self._route(family, prefix, path, decision) for path in paths]
        accepted = {(path.peer, path.path_id) for path in paths}
        exports: list[Export] = []
        for name, rib in self._peers.items():
            for path in rib.adj_in.paths(family, prefix):
                if (path.peer, path.path_id) not in accepted:
                    routes.append(self._received(family, prefix, rib, path))
            group = rib.groups.get(family)
            if isinstance(group, AddPathGroup):
                exports += _exports(name, rib.adj_in.peer, group, prefix, loc.ranked(prefix))
            elif group is not None:
                exports.append(_export(name, rib.adj_in.peer, group, prefix, decision.best))
        decided = _step(decision.decided.name) if decision.decided is not None else ""
        return Explanation(family, text(family, prefix), tuple(routes), decided, tuple(exports))

    def _route(self, family: Family, prefix: bytes, path: Path, decision: Decision) -> Route:
        multipath = path in decision.multipath
        step = decision.lost.get(path)
        rule = "" if path.peer is None else self._rule(family, prefix, path.peer.name, path.path_id)
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
            best=any((p.peer, p.path_id) == (path.peer, path.path_id) for p in chosen[:1]),
            multipath=any((p.peer, p.path_id) == (path.peer, path.path_id) for p in chosen),
            lost="",
        )

    def _rule(self, family: Family, prefix: bytes, name: str, path_id: int | None) -> str:
        rib = self._peers.get(name)
        if rib is None:
            return ""
        found = next((p for p in rib.adj_in.paths(family, prefix) if p.path_id == path_id), None)
        return rib.policy.evaluate(family, prefix, found).rule

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
            path_id=path.path_id,
            source=own.source(prefix) if is_own else "learned",
            owners=tuple(sorted(own.owners(prefix))) if is_own else (),
            next_hop=address_text(hop.address) if hop is not None else "",
            device=hop.device if hop is not None else "",
            gateways=tuple((address_text(g.address), g.device) for g in gateways),
            as_path=as_path.text(attributes.value(AS_PATH) or b""),
            origin=_ORIGINS[attributes.origin],
            local_pref=path.local_pref,
            med=attributes.med,
            communities=communities_text(attributes, 4),
            extended_communities=communities_text(attributes, 8),
            large_communities=communities_text(attributes, 12),
            accepted=accepted,
            rule=rule,
            ineligible=ineligible,
            best=best,
            multipath=multipath,
            lost=lost,
        )


def _sliced(parts: Iterable[list[bytes]], read: Callable[[bytes], Iterable[T]]) -> Iterator[list[T]]:
    """Read prefixes when the slice that they are in is asked for."""
    for part in parts:
        for start in range(0, len(part) or 1, _SLICE):
            yield [found for prefix in part[start : start + _SLICE] for found in read(prefix)]


def _advertised(
    family: Family, prefix: bytes, path_id: int | None, route: Exported, next_hop: bytes, width: int
) -> Advertised:
    attributes = Attributes(route.before + route.after)
    return Advertised(
        family=family,
        prefix=text(family, prefix),
        path_id=path_id,
        next_hop=address_text(next_hop[:16]),
        as_path=as_path.text(attributes.value(AS_PATH) or b"", width),
        origin=_ORIGINS[(attributes.value(ORIGIN) or b"\2")[0]],
        local_pref=_number(attributes, LOCAL_PREF),
        med=_number(attributes, MED),
        communities=communities_text(attributes, 4),
        extended_communities=communities_text(attributes, 8),
        large_communities=communities_text(attributes, 12),
    )


def communities_text(attributes: Attributes, size: int) -> tuple[str, ...]:
    """Return the communities of 4, 8 (extended) or 12 (large) octets as configuration has them."""
    value = attributes.value(COMMUNITY_CODES[size]) or b""
    return tuple(community_text(value[at : at + size]) for at in range(0, len(value), size))


def _exports(
    name: str, receiver: Peer, group: AddPathGroup, prefix: bytes, ranked: tuple[Path, ...]
) -> Iterator[Export]:
    """Iterate over the paths to a prefix that a peer might be told, best first."""
    if not ranked:
        yield Export(name, False, "no path is eligible")
    for path in ranked:
        told = group.route(prefix, path)
        origin = path.peer.name if path.peer is not None else ""
        if told is not None and told[1].goes_to(receiver):
            yield Export(name, True, group.verdict(prefix, path).rule, origin, told[0])
        else:
            found = _export(name, receiver, group, prefix, path)
            reason = found.reason if not found.advertised else f"not among the {group.key.paths} best that it takes"
            yield Export(name, False, reason, origin)


def _export(name: str, receiver: Peer, group: ExportGroup, prefix: bytes, best: Path | None) -> Export:
    if best is None:
        return Export(name, False, "no path is eligible")
    if best.peer is receiver:
        return Export(name, False, "learned from this peer")
    withheld = group.withheld(best)
    if withheld:
        return Export(name, False, withheld)
    verdict = group.verdict(prefix, best)
    if verdict.accepted and not group.announces(prefix):
        return Export(name, False, "not yet, or its attributes do not fit into a message")
    return Export(name, verdict.accepted, verdict.rule)


def _number(attributes: Attributes, code: int) -> int | None:
    value = attributes.value(code)
    return None if value is None else int.from_bytes(value, "big")


def _step(name: str) -> str:
    return name.lower().replace("_", " ")
