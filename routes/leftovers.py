"""What an earlier run left in the kernel, and the state file that tells whose it is.

The kernel's objects name gateways, not peers, and its groups not BGP next hops: the file keeps both, written before the
objects are made, so that after a kill every object is in it. What the file does not explain is unknown and goes.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from config.nexthop import NextHop
from config.prefix import FAMILIES, Family
from routes.dumps import read_nexthops, read_routes
from routes.interfaces import Interfaces
from routes.messages import RTN_UNICAST, RTN_UNREACHABLE, Nexthop, Route
from routes.netlink import DumpInterruptedError
from routes.nexthops import Registry
from routes.target import MemberKey, Target

log = logging.getLogger("podroute.routes")

_VERSION = 1


class SavedMember(NamedTuple):
    peer: str
    gateway: str
    """Hexadecimal, as all addresses here."""
    device: str
    weight: int
    id: int
    onlink: bool = False
    """Left out where an earlier version wrote the file."""


class SavedTarget(NamedTuple):
    id: int
    key: list[tuple[str, str, str]]
    """(peer, next hop, device) of each next hop."""
    members: list[SavedMember]


def snapshot(registry: Registry) -> list[SavedTarget]:
    """Return what the state file has to hold now."""
    return [
        SavedTarget(
            target.id,
            [(hop.peer, hop.address.hex(), hop.device) for hop in target.key],
            [
                SavedMember(key.peer, key.gateway.hex(), key.device, target.weights[key], member.id, key.onlink)
                for key, member in target.members.items()
            ],
        )
        for target in registry
        if not target.absent and target.heir is None
    ]


def save(path: Path, targets: list[SavedTarget]) -> None:
    """Write the state file so that a reader, also after a kill, sees the old or the new content. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps({"version": _VERSION, "targets": targets}))
    fresh.replace(path)


def load(path: Path) -> list[SavedTarget]:
    """Read the state file. One that is absent, or not as expected, explains nothing: what it knew of is swept."""
    try:
        data: Any = json.loads(path.read_text())
        if data["version"] != _VERSION:
            raise ValueError(f"version {data['version']}, expected {_VERSION}")
        return [
            SavedTarget(
                int(identifier),
                [(str(peer), str(address), str(device)) for peer, address, device in key],
                [SavedMember(str(p), str(g), str(d), int(w), int(i), *map(bool, o)) for p, g, d, w, i, *o in members],
            )
            for identifier, key, members in data["targets"]
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning(
            "cannot use the state file, routes of an earlier run will be removed",
            extra={"fields": {"file": path, "error": error}},
        )
        return []


def saved_peers(path: Path) -> set[str]:
    """Return the names of the peers whose routes an earlier run may have left, out of its state file."""
    return {peer for target in load(path) for peer, _, _ in target.key}


class Leftovers(NamedTuple):
    unknown_objects: list[int]
    routes: int
    adopted: list[Target]


class Reader:
    """Reads once, at start. ``place(route, target)`` is called for each leftover route."""

    def __init__(
        self,
        registry: Registry,
        interfaces: Interfaces,
        *,
        table: int,
        protocol: int,
        cover: Target,
        other: Target,
        pod: Callable[[int], Target],
    ) -> None:
        self._registry = registry
        self._interfaces = interfaces
        self._table, self._protocol = table, protocol
        self._cover, self._other, self._pod = cover, other, pod
        self._by_gateways: dict[frozenset[tuple[bytes, int, bool]], Target] = {}
        self._by_id: dict[int, Target] = {}

    def read(
        self,
        sock: socket.socket,
        saved: list[SavedTarget],
        peers: Collection[str] | None,
        place: Callable[[Route, Target], None],
    ) -> Leftovers:
        """Adopt what is explained. Raises OSError. ``peers`` are those that may yet confirm routes; None: any."""
        ours: dict[int, Nexthop] = {}
        for nexthop in read_nexthops(sock):
            if nexthop.protocol == self._protocol:
                ours[nexthop.id] = nexthop
            else:
                self._registry.ids.reserve(nexthop.id)
        known: set[int] = set()
        adopted = []
        for entry in saved:
            target = self._adopt(entry, ours, peers)
            if target is not None:
                adopted.append(target)
                known.update([target.id, *(member.id for member in target.members.values())])
        unknown = [i for i, nexthop in ours.items() if i not in known and nexthop.members]
        unknown += [i for i, nexthop in ours.items() if i not in known and not nexthop.members]
        for identifier in unknown:
            self._registry.ids.adopt(identifier)
        count = sum(self._read_routes(sock, family, place) for family in FAMILIES)
        return Leftovers(unknown, count, adopted)

    def _adopt(self, entry: SavedTarget, ours: dict[int, Nexthop], peers: Collection[str] | None) -> Target | None:
        key = tuple(NextHop(peer, bytes.fromhex(address), device) for peer, address, device in entry.key)
        if not any(peers is None or hop.peer in peers for hop in key):
            return None
        saved = {member.id: member for member in entry.members}
        members: dict[MemberKey, tuple[int, int, int]] = {}
        if entry.id:
            group = ours.get(entry.id)
            if group is None or not group.members or not self._registry.objects:
                return None
            for identifier, weight in group.members:
                member, nexthop = saved.get(identifier), ours.get(identifier)
                if member is None or nexthop is None:
                    return None
                link = self._interfaces.link(nexthop.ifindex)
                if link is None or (nexthop.gateway.hex(), link.name) != (member.gateway, member.device):
                    return None
                place = MemberKey(member.peer, nexthop.gateway, link.name, nexthop.onlink)
                members[place] = identifier, nexthop.ifindex, weight
        else:
            if self._registry.objects:
                return None
            for member in entry.members:
                link = self._interfaces.named(member.device)
                if link is not None:
                    place = MemberKey(member.peer, bytes.fromhex(member.gateway), member.device, member.onlink)
                    members[place] = 0, link.ifindex, member.weight
        target = self._registry.adopt(key, entry.id, members, ours[entry.id].resilience if entry.id else None)
        if entry.id:
            self._by_id[entry.id] = target
        else:
            self._by_gateways[frozenset(path.way for path in target.hops)] = target
        return target

    def _read_routes(self, sock: socket.socket, family: Family, place: Callable[[Route, Target], None]) -> int:
        count = 0
        try:
            for route in read_routes(sock, family, self._table, protocol=self._protocol):
                place(route, self._target(route))
                count += 1
        except DumpInterruptedError:
            log.info("routes changed while they were read; a comparison will find what was missed")
        return count

    def _target(self, route: Route) -> Target:
        if route.kind == RTN_UNREACHABLE:
            return self._cover
        if route.kind != RTN_UNICAST:
            return self._other
        if route.nexthop:
            return self._by_id.get(route.nexthop, self._other)
        if len(route.paths) == 1 and not route.paths[0].gateway:
            return self._pod(route.paths[0].ifindex)
        return self._by_gateways.get(frozenset(path.way for path in route.paths), self._other)
