"""Adj-RIB-In: what one peer announces, unfiltered (RFC 4271 section 3.2), and the reading of its UPDATEs into it.

Per family there is one table from prefix to path. Prefixes that arrive with the same attributes share one path, found
by the octets of the attribute section, so that a known section is neither parsed nor judged again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import NamedTuple

from bgp.add_path_in import MOST_PATHS, NumberedPaths
from bgp.attribute_parser import AttributeParser
from bgp.attributes import (
    AS_PATH,
    CLUSTER_LIST,
    EXTENDED_LENGTH,
    MP_REACH,
    MP_UNREACH,
    NEXT_HOP,
    OPTIONAL,
    ORIGIN,
    Attributes,
    attribute_name,
)
from bgp.containers import Neighbours
from bgp.first_paths import FirstPaths
from bgp.hops import Hop
from bgp.interning import Interned
from bgp.messages import BgpError, Negotiated
from bgp.nlri import decode
from bgp.paths import Path, Peer
from bgp.policy import Policy
from bgp.table import PLACE, TOP, Queue, Table
from bgp.update import (
    MpReach,
    decode_mp_reach,
    decode_mp_unreach,
    end_of_rib,
    split,
)
from config.nexthop import NextHop, NextHops
from config.prefix import FAMILIES, LEAD, NAMES, Family, address_text


@dataclass(frozen=True, slots=True)
class RibPeer:
    """How the RIBs treat a peer."""

    name: str
    asn: int
    import_policy: Policy
    export_policy: Policy
    allow_own_as: int = 0
    """How often our own AS may occur in an AS_PATH from this peer."""
    enforce_first_as: bool = True
    """The AS_PATH from an external peer must start with its AS; off for route servers (RFC 7947)."""
    reflector_client: bool = False
    """RFC 4456: routes of other internal peers are reflected to it, and its routes to them."""
    send_paths: int = 0
    """How many paths to a prefix it is told where it takes several (RFC 7911); 0: the best one, as ever."""


class Received(NamedTuple):
    """What one UPDATE came to."""

    end_of_rib: Family | None = None
    faults: tuple[str, ...] = ()
    """What was wrong with it short of a session reset, for the log."""


class SessionFacts(NamedTuple):
    """What the judgement of UPDATEs takes from the established session."""

    negotiated: Negotiated
    own_addresses: frozenset[bytes]
    """Our addresses on this session: no next hop may be one of them (RFC 4271 section 6.3)."""
    router_id: bytes
    cluster_id: bytes


class _KnownNextHop:
    """A next hop as it was received, judged."""

    __slots__ = ("fault", "hop", "next_hops")

    def __init__(self, hop: Hop, next_hops: NextHops, fault: str) -> None:
        self.hop = hop
        self.next_hops = next_hops
        self.fault = fault
        """Why no path with it may be used; empty where one may."""


NextHopTable = Callable[[bytes, str], Hop]
InternNextHops = Callable[[NextHops], NextHops]

NOTHING = Received()
"""There is nothing to tell of an UPDATE."""
_AT_ONCE = 1000
"""Stale paths withdrawn without waiting for their turn: a millisecond of work."""
_MANDATORY = 1 << ORIGIN | 1 << AS_PATH
_KNOWN_NEXT_HOPS = 1024


class AdjRibIn:
    """One peer's tables. ``dirty`` holds the prefixes that the decision process has yet to look at."""

    def __init__(self, peer: Peer, settings: RibPeer, local_as: int, hop: NextHopTable, intern: InternNextHops) -> None:
        self.peer = peer
        self.settings = settings
        self.tables: dict[Family, Table[Path]] = {4: Table(LEAD[4]), 6: Table(LEAD[6])}
        """By prefix; of families that are in ``numbered`` they are empty."""
        self.numbered: dict[Family, NumberedPaths] = {}
        """Families whose NLRI carry path identifiers (RFC 7911) on the present session, or did on the last."""
        self.dirty: dict[Family, Queue] = {4: Queue(), 6: Queue()}
        """What the peer says of these prefixes by now is in its tables."""
        self.end_of_rib: set[Family] = set()
        """Families whose End-of-RIB has arrived on the present session."""
        self._stale: dict[Family, Table[Path]] = {}
        """What the peer announced on an earlier session and has not since (RFC 4724 section 4.2)."""
        self._leaving: dict[Family, deque[Table[Path]]] = {4: deque(), 6: deque()}
        """What was stale for too long, and is withdrawn a part at a time."""
        self._local_as = local_as
        self._hop = hop
        self._intern = intern
        self._session: SessionFacts | None = None
        self._own_identifiers: tuple[bytes, ...] = ()
        """Of the session: what the attributes of a path hold that was ours already."""
        self._parser = self._make_parser(True)
        self._ipv4_over_ipv6 = False
        self._native: Interned[bytes, Path] = Interned()
        """By attribute section, for the native IPv4 fields."""
        self._multiprotocol: Interned[bytes, Path] = Interned()
        """By next hop and what follows a leading MP_REACH_NLRI."""
        self._next_hops: dict[bytes, _KnownNextHop] = {}

    @property
    def up(self) -> bool:
        """There is a session."""
        return self._session is not None

    def start(self, session: SessionFacts) -> None:
        """Begin a session: UPDATEs are judged by what it negotiated."""
        negotiated = session.negotiated
        both = negotiated.local.extended_next_hop & negotiated.peer.extended_next_hop
        self._session = session
        self._own_identifiers = tuple({session.router_id, session.cluster_id})
        self._parser = self._make_parser(negotiated.four_octet_as)
        self._ipv4_over_ipv6 = (4, 6) in both
        for family in FAMILIES:
            if negotiated.receives_paths(family) != (family in self.numbered):
                self._withdraw_all(family)  # what is stale cannot be told from what comes now
                if self.numbered.pop(family, None) is None:
                    self.numbered[family] = NumberedPaths()
        self._next_hops.clear()
        self.end_of_rib.clear()

    def own_addresses_are(self, addresses: frozenset[bytes]) -> None:
        """Take note of other addresses of our own, for next hops that come from now on."""
        if self._session is not None:
            self._session = self._session._replace(own_addresses=addresses)
            self._next_hops.clear()

    def stop(self, retain: frozenset[Family] = frozenset()) -> list[Sized]:
        """End the session: what the peer announced is withdrawn, or stale in the families ``retain``.

        What is stale already goes even there: the peer has had its chance to announce it again. Returns what is of no
        use any more, to be let go of a part at a time.
        """
        self._session = None
        self._next_hops.clear()
        self.end_of_rib.clear()
        unused: list[Sized] = [*self._native.release(), *self._multiprotocol.release()]
        for numbered in self.numbered.values():
            unused += numbered.release()
        for family in FAMILIES:
            if family in retain:
                self.drop_stale(family)
                self.mark_stale(family)
            else:
                self._withdraw_all(family)
        return unused

    def mark_stale(self, family: Family) -> None:
        """From now on, what the peer does not announce again is stale."""
        if family in self.numbered:
            self.numbered[family].mark_stale()
            return
        self._stale[family] = self.tables[family].copy()

    def stale(self, family: Family) -> int:
        """Return how many paths the peer has not announced again since ``mark_stale``, or a session before."""
        if family in self.numbered:
            return self.numbered[family].stale
        return len(self._stale[family]) if family in self._stale else 0

    def drop_stale(self, family: Family) -> int:
        """Withdraw what is stale, at once or, where it is much, by ``withdraw_stale``; return how much it is."""
        if family in self.numbered:
            count = self.numbered[family].drop_stale()
        else:
            stale = self._stale.pop(family, None)
            count = 0 if stale is None else len(stale)
            if stale is not None and count == len(self.tables[family]):
                self._withdraw_all(family)
            elif stale is not None:
                self._leaving[family].append(stale)
        self.withdraw_stale(family, _AT_ONCE)
        return count

    def leaving(self, family: Family) -> int:
        """Return how many paths ``withdraw_stale`` has yet to withdraw."""
        if family in self.numbered:
            return self.numbered[family].leaving
        leaving = self._leaving[family]
        return sum(map(len, leaving)) if leaving else 0

    def withdraw_stale(self, family: Family, limit: int) -> int:
        """Withdraw up to ``limit`` paths of what ``drop_stale`` has found; return how many it were."""
        if family in self.numbered:
            gone = self.numbered[family].withdraw_stale(limit)
            self.dirty[family].add(gone)
            return len(gone)
        done, leaving = 0, self._leaving[family]
        while leaving and done < limit:
            part = leaving[0].take(limit - done)
            self._withdraw(family, [prefix for prefix, _ in part])
            done += len(part)
            if not leaving[0]:
                leaving.popleft()
        return done

    def _withdraw_all(self, family: Family) -> None:
        if family in self.numbered:
            for paths in self.numbered[family].table.shards:
                self.dirty[family].add(paths)
            self.numbered[family] = NumberedPaths()
            return
        gone = self.tables[family]
        self.tables[family] = Table(LEAD[family])
        self._stale.pop(family, None)
        self._leaving[family].clear()
        for shard in gone.shards:
            self.dirty[family].add(shard)

    @property
    def negotiated(self) -> Negotiated | None:
        """What the present session is made of."""
        return None if self._session is None else self._session.negotiated

    def shards(self, family: Family) -> Sequence[Mapping[bytes, object]]:
        """Return the tables whose keys are the prefixes that the peer announces."""
        return self.numbered[family].table.shards if family in self.numbered else self.tables[family].shards

    def count(self, family: Family) -> int:
        """Return how many paths the peer announces."""
        return self.numbered[family].count if family in self.numbered else len(self.tables[family])

    def paths(self, family: Family, prefix: bytes) -> tuple[Path, ...]:
        """Return what the peer announces of a prefix: one path at most where it gives no path identifiers."""
        if family in self.numbered:
            return self.numbered[family].table.get(prefix, ())
        path = self.tables[family].get(prefix)
        return () if path is None else (path,)

    def by_hops(self, family: Family, hops: set[Hop]) -> Iterator[tuple[int, list[bytes]]]:
        """Iterate over the tables' parts: size, and the prefixes with a path by one of these next hops."""
        if family in self.numbered:
            for paths in list(self.numbered[family].table.shards):
                yield len(paths), [prefix for prefix, some in paths.items() if any(path.hop in hops for path in some)]
        for shard in list(self.tables[family].shards):
            yield len(shard), [prefix for prefix, path in shard.items() if path.hop in hops]

    def reconsider_part(self, family: Family, part: int) -> int:
        """Have the decision process look again at what the peer announces, one of ``SHARDS`` parts; return its size."""
        prefixes = list(self.shards(family)[part])
        self.dirty[family].add(prefixes)
        return len(prefixes)

    def reconsider(self, family: Family, prefixes: Iterable[bytes]) -> None:
        """Have the decision process look again at those of ``prefixes`` that the peer announces."""
        table = self.numbered[family].table if family in self.numbered else self.tables[family]
        self.dirty[family].add([prefix for prefix in prefixes if prefix in table])

    def receive_all(
        self, bodies: Iterable[bytes], first: Mapping[Family, FirstPaths], tell: Callable[[Received], object]
    ) -> None:
        """Take in the bodies of UPDATEs; ``tell`` is called at once where there is something to tell of one.

        ``first`` takes the first paths of prefixes, in the families that it has; all else is for the decision process.

        Raises BgpError 3/x where the session is to be reset; nothing of that UPDATE has been taken in then. Every
        lesser fault is in the result (RFC 7606). 6/8 (RFC 4486 section 4) is raised where a prefix gets more than
        ``MOST_PATHS``.
        """
        session = self._session
        if session is None:
            raise RuntimeError(f"UPDATE from {self.peer.name} without a session")
        families = session.negotiated.families
        plain = 4 in families and 4 not in self.numbered
        known, make, native = self._native, self._usual_native, first.get(4)
        for body in bodies:
            # By far the most that bring IPv4 routes bring nothing else
            if plain and len(body) > 4 and not body[0] and not body[1]:
                start = 4 + (body[2] << 8 | body[3])
                if start < len(body):
                    path = known.find(body[4:start], make)
                    if path is not None:
                        try:
                            self._announce(4, decode(body[start:], 32), path, native)
                        except ValueError as error:  # RFC 7606 section 5.3
                            raise BgpError(3, 10, reason=str(error)) from error
                        continue
            received = self._receive(families, body, first)
            if received is not NOTHING:
                tell(received)

    def _receive(self, families: frozenset[Family], body: bytes, first: Mapping[Family, FirstPaths]) -> Received:
        withdrawn_field, raw, nlri_field = split(body)
        if not nlri_field and not withdrawn_field:
            marker = end_of_rib(body)
            if marker is not None:
                if marker in families:
                    self.end_of_rib.add(marker)
                    self.drop_stale(marker)
                    return Received(end_of_rib=marker)
                return Received(faults=(f"End-of-RIB of {NAMES[marker]}, which was not negotiated",))
        numbered = 4 in self.numbered
        try:
            withdrawn = decode(withdrawn_field, 32, numbered) if withdrawn_field else []
            reach = decode(nlri_field, 32, numbered) if nlri_field else []
        except ValueError as error:  # RFC 7606 sections 3 (j) and 5.3
            raise BgpError(3, 10, reason=str(error)) from error
        if 4 not in families and (withdrawn or reach):
            return Received(faults=("IPv4 routes, which were not negotiated",))
        if reach:
            path = self._native.find(raw, self._usual_native)
            if path is not None:
                self._withdraw(4, withdrawn)
                self._announce(4, reach, path, first.get(4))
                return NOTHING
        elif not raw:
            self._withdraw(4, withdrawn)
            return NOTHING
        else:
            known = self._known_mp_reach(raw)
            if known is not None:
                self._withdraw(4, withdrawn)
                self._announce(known[0].family, known[0].prefixes, known[1], first.get(known[0].family))
                return NOTHING
        return self._judge(raw, withdrawn, reach)

    def _usual_native(self, raw: bytes) -> Path | None:
        """Return the path of a section of the usual form in an UPDATE with native routes, None for another section."""
        next_hop = self._parser.judge_usual(raw)
        return self._path(raw, next_hop) if next_hop else None

    def _known_mp_reach(self, raw: bytes) -> tuple[MpReach, Path] | None:
        """Return the MP_REACH_NLRI at the start of a section, and its path where all else in it is known."""
        session = self._session
        found = _leading_mp_reach(raw)
        if found is None or session is None:
            return None
        next_hop, value, rest = found
        key = next_hop + rest
        path = self._multiprotocol.get(key)
        if path is None and self._parser.judge_usual(rest) is None:
            return None
        reach = decode_mp_reach(value, session.negotiated.families, self._ipv4_over_ipv6, self.numbered)
        if reach is None or not reach.prefixes:
            return None
        if path is None:
            path = self._multiprotocol[key] = self._path(rest, reach.next_hop)
        return reach, path

    def _judge(self, raw: bytes, withdrawn: list[bytes], native: list[bytes]) -> Received:
        """Take in an UPDATE whose attribute section has not been seen before."""
        session = self._session
        assert session is not None
        families = session.negotiated.families
        parsed = self._parser.parse(raw)
        faults = [f.text for f in parsed.faults]
        reach = unreach = None
        if parsed.mp_reach is not None:
            reach = decode_mp_reach(parsed.mp_reach, families, self._ipv4_over_ipv6, self.numbered)
            if reach is None:
                faults.append("MP_REACH_NLRI of a family that was not negotiated")
        if parsed.mp_unreach is not None:
            unreach = decode_mp_unreach(parsed.mp_unreach, families, self.numbered)
            if unreach is None:
                faults.append("MP_UNREACH_NLRI of a family that was not negotiated")
        withdraw = parsed.withdraw
        if withdraw and not native and parsed.mp_reach is None and parsed.codes != 1 << MP_UNREACH:
            # RFC 7606 section 5.2: the fault may have hidden the routes that it is about
            raise BgpError(3, 1, reason=f"{'; '.join(faults)}; and no routes to treat as withdrawn")
        if native or reach is not None:  # RFC 7606 section 3 (d)
            missing = (_MANDATORY | 1 << NEXT_HOP if native else _MANDATORY) & ~parsed.codes
            if missing:
                withdraw = True
                faults += [
                    f"{attribute_name(code)} is missing" for code in (ORIGIN, AS_PATH, NEXT_HOP) if missing >> code & 1
                ]
        self._withdraw(4, withdrawn)
        if unreach is not None:
            self._withdraw(*unreach)
        if native:
            if withdraw or parsed.next_hop is None:
                self._withdraw(4, native)
            else:
                path = self._path(parsed.attributes, parsed.next_hop, parsed.own_as_count)
                if not parsed.codes & (1 << MP_REACH | 1 << MP_UNREACH):
                    self._native[raw] = path
                self._announce(4, native, path)
        if reach is not None:
            if withdraw:
                self._withdraw(reach.family, reach.prefixes)
            elif reach.prefixes:
                path = self._path(parsed.attributes, reach.next_hop, parsed.own_as_count)
                leading = _leading_mp_reach(raw)
                if leading is not None and not parsed.codes >> MP_UNREACH & 1:
                    self._multiprotocol[leading[0] + leading[2]] = path
                self._announce(reach.family, reach.prefixes, path)
        return Received(faults=tuple(faults)) if faults else NOTHING

    def _announce(self, family: Family, prefixes: list[bytes], path: Path, first: FirstPaths | None = None) -> None:
        """Set the path of prefixes, with identifiers before them where those are negotiated."""
        dirty = self.dirty[family]
        if self.numbered and family in self.numbered:
            dirty.add(self.numbered[family].announce(prefixes, path))
            if self.numbered[family].overfull:
                raise BgpError(6, 8, reason=f"more than {MOST_PATHS} paths to one prefix")
            return
        table = self.tables[family]
        shards, lead = table.shards, table.lead
        if isinstance(prefixes, Neighbours):
            for run in prefixes.runs:
                at = PLACE[hash(run[0][:lead]) >> TOP]
                table.writable(at).update(dict.fromkeys(run, path))
                if first is None or not first.announce_run(at, run, path):
                    dirty.add(run)
        elif table.shared:
            for prefix in prefixes:
                table[prefix] = path
            dirty.add(prefixes)
        elif first is not None:
            dirty.add(first.announce(table, prefixes, path))
        else:
            for prefix in prefixes:
                shards[PLACE[hash(prefix[:lead]) >> TOP]][prefix] = path
            dirty.add(prefixes)
        if family in self._stale or self._leaving[family]:
            self._freshen(family, prefixes)

    def _withdraw(self, family: Family, prefixes: list[bytes]) -> None:
        dirty = self.dirty[family]
        if self.numbered and family in self.numbered:
            dirty.add(self.numbered[family].withdraw(prefixes))
        elif prefixes:
            table = self.tables[family]
            if isinstance(prefixes, Neighbours):
                for run in prefixes.runs:
                    shard = table.writable(PLACE[hash(run[0][: table.lead]) >> TOP])
                    gone = [prefix for prefix in run if shard.pop(prefix, None) is not None]
                    dirty.add(gone if len(gone) < len(run) else run)
            else:
                dirty.add([prefix for prefix in prefixes if table.pop(prefix) is not None])
            if family in self._stale or self._leaving[family]:
                self._freshen(family, prefixes)

    def _freshen(self, family: Family, prefixes: list[bytes]) -> None:
        """The peer has said something about prefixes: they are not stale any more."""
        for old in (*self._leaving[family], self._stale.get(family)):
            if old is not None:
                for prefix in prefixes:
                    old.pop(prefix)

    def _path(self, attributes: Attributes | bytes, next_hop: bytes, own_as_count: int = 0) -> Path:
        """Return a path of ours; octets for ``attributes`` must be what ``judge_usual`` found without fault."""
        known = self._next_hops.get(next_hop)
        if known is None:
            if len(self._next_hops) >= _KNOWN_NEXT_HOPS:
                self._next_hops.clear()
            known = self._next_hops[next_hop] = self._examine(next_hop)
        path = Path(self.peer, attributes, known.hop, known.next_hops, known.fault)
        if own_as_count and own_as_count > self.settings.allow_own_as:
            path.fault = f"AS_PATH holds our own AS {self._local_as}"
        elif self.peer.ibgp:
            path.fault = self._reflected_back(path) or path.fault
        return path

    def _examine(self, next_hop: bytes) -> _KnownNextHop:
        session = self._session
        assert session is not None
        address, device = next_hop[:16], ""
        if len(next_hop) > 4 and not _is_global(address):
            address, device = next_hop[-16:], self.peer.device
        fault = ""
        if address in session.own_addresses:
            fault = f"next hop {address_text(address)} is our own address"
        elif not _is_host(address):
            fault = f"next hop {address_text(address)} is not the address of a host"
        next_hops = self._intern((NextHop(self.peer.name, address, device),))
        return _KnownNextHop(self._hop(address, device), next_hops, fault)

    def _reflected_back(self, path: Path) -> str:
        """Tell why a reflected path is a loop; empty where it is none (RFC 4456 section 8)."""
        session, raw = self._session, path.raw
        for own in self._own_identifiers:
            if raw.find(own) >= 0:
                break
        else:  # nearly always
            return ""
        assert session is not None
        if path.attributes.originator == session.router_id:
            return "ORIGINATOR_ID is our own BGP identifier"
        clusters = path.attributes.value(CLUSTER_LIST) or b""
        if session.cluster_id in [clusters[at : at + 4] for at in range(0, len(clusters), 4)]:
            return "CLUSTER_LIST holds our own cluster"
        return ""

    def _make_parser(self, four_octet_as: bool) -> AttributeParser:
        first_as = self.settings.asn if self.settings.enforce_first_as else None
        return AttributeParser(
            local_as=self._local_as, ibgp=self.peer.ibgp, four_octet_as=four_octet_as, first_as=first_as
        )


def _leading_mp_reach(raw: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Take apart a section that starts with MP_REACH_NLRI; None for another section.

    Returns the next hop with its length octet, the value of the attribute, and what follows it.
    """
    if len(raw) < 9 or raw[1] != MP_REACH or raw[0] | EXTENDED_LENGTH != OPTIONAL | EXTENDED_LENGTH:
        return None
    start = 4 if raw[0] & EXTENDED_LENGTH else 3
    stop = start + int.from_bytes(raw[2:start], "big")
    value = raw[start:stop]
    if stop > len(raw) or len(value) < 5:
        return None
    return value[3 : 4 + value[3]], value, raw[stop:]


def _is_global(address: bytes) -> bool:
    """Tell whether an IPv6 address is neither link-local nor unspecified."""
    return any(address) and not (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


def _is_host(address: bytes) -> bool:
    """Tell whether a next hop can be a host: not unspecified, loopback or multicast (RFC 4271 section 6.3)."""
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224
    return address[0] != 0xFF and any(address[:15] + bytes((address[15] & 0xFE,)))
