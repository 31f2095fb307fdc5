"""The slow full comparison of the kernel with what is desired: the net under events. Runs in a thread.

What it reads of the desired tables may change while it reads, so a finding is a suspicion: acting on one that is not
true costs a request that the kernel refuses.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple

from config.prefix import Family
from routes.dumps import read_routes
from routes.messages import Route
from routes.netlink import DumpInterruptedError
from routes.table import Table


class Drift(StrEnum):
    MISSING = "missing"
    ALTERED = "altered"
    SURPLUS = "surplus"


class Finding(NamedTuple):
    drift: Drift
    prefix: bytes
    metric: int
    route: Route | None


class Survey(NamedTuple):
    """How a table differs from what is desired, others' routes included. What is in neither is as desired."""

    entries: dict[bytes, list[Route]]
    """By prefix, in the kernel's order: routes of ours that lead elsewhere, are surplus or on their way, and others'
    routes to prefixes that we desire."""
    missing: set[tuple[bytes, int]]
    """(prefix, metric)."""


def survey(sock: socket.socket, family: Family, table: int, protocol: int, tables: Mapping[int, Table]) -> Survey:
    """Compare all of a table with ``tables`` (by metric). Raises OSError."""
    entries: dict[bytes, list[Route]] = {}
    seen = dict.fromkeys(tables, 0)
    with suppress(DumpInterruptedError):
        for route in read_routes(sock, family, table):
            prefix = route.prefix
            if route.protocol == protocol:
                desired = tables.get(route.metric)
                shard = desired.shard(prefix) if desired is not None else None
                want = shard.desired.get(prefix) if shard is not None else None
                if shard is not None and want is not None and want.matches(route) and not shard.unsettled(prefix):
                    seen[route.metric] += 1
                    continue
            elif not any(prefix in desired.shard(prefix).desired for desired in tables.values()):
                continue
            entries.setdefault(prefix, []).append(route)
    short = {metric: desired for metric, desired in tables.items() if seen[metric] < _installed(desired)}
    missing = _missing(sock, family, table, protocol, short)
    return Survey(entries, {(finding.prefix, finding.metric) for finding in missing})


def compare(
    sock: socket.socket, family: Family, table: int, protocol: int, tables: Mapping[int, Table]
) -> list[Finding]:
    """Return where the kernel's routes of our protocol differ from ``tables`` (by metric). Raises OSError."""
    findings: list[Finding] = []
    seen = dict.fromkeys(tables, 0)
    with suppress(DumpInterruptedError):
        for route in read_routes(sock, family, table, protocol=protocol):
            desired = tables.get(route.metric)
            if desired is None:
                findings.append(Finding(Drift.SURPLUS, route.prefix, route.metric, route))
                continue
            shard = desired.shard(route.prefix)
            want = shard.desired.get(route.prefix)
            if want is not None and want.matches(route):
                seen[route.metric] += 1
            elif not shard.unsettled(route.prefix):
                drift = Drift.SURPLUS if want is None or want.absent else Drift.ALTERED
                findings.append(Finding(drift, route.prefix, route.metric, route))
    short = [metric for metric, desired in tables.items() if seen[metric] < _installed(desired)]
    return findings + (_missing(sock, family, table, protocol, {metric: tables[metric] for metric in short}))


def _installed(table: Table) -> int:
    return sum(not target.absent for shard in table.shards for target in list(shard.desired.values()))


def _missing(
    sock: socket.socket, family: Family, table: int, protocol: int, tables: Mapping[int, Table]
) -> list[Finding]:
    """Read again, into sets this time: they are large, so only where the numbers say that something is missing."""
    if not tables:
        return []
    seen: dict[int, set[bytes]] = {metric: set() for metric in tables}
    with suppress(DumpInterruptedError):
        for route in read_routes(sock, family, table, protocol=protocol):
            if route.metric in seen:
                seen[route.metric].add(route.prefix)
    return [
        Finding(Drift.MISSING, prefix, metric, None)
        for metric, desired in tables.items()
        for shard in desired.shards
        for prefix, want in list(shard.desired.items())
        if prefix not in seen[metric] and not want.absent and want.ready and not shard.unsettled(prefix)
    ]
