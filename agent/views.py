"""The node as JSON: what the API answers. Families, prefixes and addresses are text here, times seconds or ISO 8601."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
from typing import Any

from agent.node import Node
from bgp.inspection import Route
from bgp.messages import ADD_PATH_TEXT
from bgp.status import NotificationRecord, PeerStatus, RangeStatus
from cni import hooks
from config import prefix
from config.compiled import form
from config.prefix import FAMILIES, NAMES, Family, of_address
from ipam.ledger import Attachment
from ipam.loans import NETWORK as LOANS
from routes.differences import FibRoute, rows
from routes.live import KernelRoute
from routes.state import State
from routes.sysctl import findings

Json = dict[str, Any]

_SLICE = 0.005
"""Seconds of counting in one turn of the event loop."""


async def status(node: Node) -> Json:
    config = node.config.node
    waiting = node.waiting_for()
    peers = node.speaker.peers()
    return {
        "node": {
            "name": config.name,
            "uuid": node.ipam.identity.uuid,
            "as": config.asn,
            "routerId": config.router_id,
            "labels": dict(config.labels),
        },
        "version": version("podroute"),
        "form": {"name": form().name, "detail": form().detail},
        "state": node.state,
        "since": _time(node.started_at),
        "uptime": time.time() - node.started_at,
        "converged": not waiting,
        "waitingFor": waiting,
        "peers": {
            "configured": len(peers),
            "established": sum(peer.uptime is not None for peer in peers),
            "refusedConnections": node.speaker.refused,
        },
        "listenRanges": [_range(made) for made in node.speaker.ranges()],
        "store": _store(node),
        "blocks": [prefix.text(block.family, block.prefix) for block in node.ipam.blocks()],
        "pods": len(await node.ipam.attachments()),
        "fib": {NAMES[family]: await fib_counts(node, family) for family in FAMILIES},
        "repairs": dict(node.fib.counters) if node.running else {},
        "silentGateways": node.neighbours.all_silent(),
        "findings": await findings_of(node),
    }


def _store(node: Node) -> Json:
    store = node.ipam.store()
    return {
        "url": store.url,
        "state": "away" if store.problem else "connected",
        "problem": store.problem or None,
        "fenced": node.ipam.fenced,
        "lostBlocks": [prefix.text(lost.family, lost.prefix) for lost in node.ipam.lost()],
    }


def peers(node: Node) -> list[Json]:
    return [_peer(peer) for peer in node.speaker.peers()]


async def blocks(node: Node) -> list[Json]:
    advertised: dict[tuple[Family, bytes], list[str]] = {}
    for block in node.ipam.blocks():
        announced = node.origination.of(block)
        exports = node.speaker.rib.explain(*announced).exports if announced is not None else ()
        told = [export.peer for export in exports if export.advertised]
        advertised[block.family, block.prefix] = list(dict.fromkeys(told))
    return [
        {
            "prefix": prefix.text(usage.block.family, usage.block.prefix),
            "family": NAMES[usage.block.family],
            "pool": usage.block.pool,
            "owner": usage.block.owner,
            "generation": usage.block.generation,
            "claimedAt": usage.block.claimed_at,
            "used": usage.used,
            "reserved": usage.reserved,
            "free": usage.free,
            "size": usage.size,
            "advertisedTo": advertised.get((usage.block.family, usage.block.prefix), []),
        }
        for usage in node.ipam.usage()
    ]


async def pod_attachments(node: Node) -> list[Attachment]:
    """Return what has addresses as a container, and is not being deleted."""
    return [
        attachment
        for attachment in await node.ipam.attachments()
        if not attachment.attributes.get("reserved")
        and attachment.handle.network != LOANS
        and not node.cni.deletes(hooks.Handle(*attachment.handle))
    ]


async def pods(node: Node) -> list[Json]:
    found = []
    for attachment in await pod_attachments(node):
        attributes = attachment.attributes
        arguments = attributes.get("args") or {}
        names = [arguments.get("K8S_POD_NAMESPACE"), arguments.get("K8S_POD_NAME")]
        found.append(
            {
                "network": attachment.handle.network,
                "containerId": attachment.handle.container_id,
                "ifname": attachment.handle.ifname,
                "name": "/".join(name for name in names if name),
                "addresses": [assignment.address for assignment in attachment.assignments],
                "hostIfname": attributes.get("hostInterface", ""),
                "mac": attributes.get("mac", ""),
                "netns": attributes.get("netns", ""),
                "createdAt": _time(attachment.created),
            }
        )
    return found


async def routes(node: Node, family: Family, only: bytes | None) -> AsyncIterator[list[Json]]:
    """Yield slices of all routes, between which other work may be done; there are empty ones while they are sorted.

    The kernel is read, now: that of a full table takes a thread some seconds. With ``only``, every path to that
    prefix, those that policy keeps out included. Raises OSError.
    """
    if only is not None:
        live = await node.fib.view.prefix(family, only) if node.running else []
        explained = node.speaker.rib.explain(family, only).routes
        held = node.fib.route(family, only) if node.running else []
        if explained or held or any(entry.protocol == node.fib.protocol for entry in live):
            yield [_route(node, family, prefix.text(family, only), list(explained), held, live)]
        return
    if not node.running:
        for some in node.speaker.rib.inspection.loc_rib(family):
            yield [_route(node, family, text, list(p), [], []) for text, p in groupby(some, key=attrgetter("prefix"))]
        return

    async with node.fib.view.whole(family) as table:

        def shown(wire: bytes, text: str, paths: Iterable[Route]) -> Json:
            held = node.fib.route(family, wire)
            return _route(node, family, text, list(paths), held, table.of(wire, held))

        for some in node.speaker.rib.inspection.loc_rib(family):
            by_prefix = groupby(some, key=attrgetter("prefix"))
            yield [shown(prefix.parse(text)[1], text, paths) for text, paths in by_prefix]
        beside = {*node.fib.unlearned(family), *table.surplus()}
        unknown = [p for p in sorted(beside) if not node.speaker.rib.explain(family, p).routes]
        yield [shown(p, prefix.text(family, p), ()) for p in unknown]


def _route(
    node: Node, family: Family, text: str, paths: list[Route], held: list[FibRoute], live: list[KernelRoute]
) -> Json:
    found = rows(held, live, node.fib.protocol)
    ours = [row for row in found if row.state != "foreign"]
    # Where a prefix has several routes, the one that is not as it should be is the one to show
    shown = max(ours, key=lambda row: row.state != State.INSTALLED, default=None)
    return {
        "prefix": text,
        "family": NAMES[family],
        "paths": [path_json(path) for path in paths],
        "kernel": shown.state if shown else "-",
        "desired": list(shown.desired) if shown else [],
        "installed": list(shown.kernel) if shown else [],
        "metric": shown.metric if shown else None,
        "problem": (shown.why if shown else "") or "; ".join(silent_gateways(node, paths)),
        "fib": [row._asdict() for row in found],
    }


def silent_gateways(node: Node, paths: Iterable[Route]) -> list[str]:
    """Say which gateways of the paths that carry the traffic do not answer, a line each."""
    hops = [(of_address(path.next_hop)[1][1:], path.device) for path in paths if path.multipath and path.next_hop]
    return [f"{gateway} does not answer" for gateway in dict.fromkeys(g for hop in hops for g in node.silent(*hop))]


def path_json(path: Route) -> Json:
    return {
        "peer": path.peer,
        "pathId": path.path_id,
        "owner": ", ".join(path.owners),
        "source": path.source,
        "used": path.multipath,
        "best": path.best,
        "nextHop": path.next_hop,
        "gateways": [f"{address} dev {device}" for address, device in path.gateways],
        "asPath": path.as_path,
        "origin": path.origin,
        "localPref": path.local_pref,
        "med": path.med,
        "communities": [*path.communities, *path.extended_communities, *path.large_communities],
        "accepted": path.accepted,
        "rule": path.rule,
        "reason": path.ineligible or (f"not best: {path.lost}" if path.lost else ""),
    }


def _peer(peer: PeerStatus) -> Json:
    return {
        "name": peer.name,
        "address": peer.address,
        "port": peer.port,
        "localAddress": peer.local_address,
        "as": peer.expected_as,
        "receivedAs": peer.received_as,
        "localAs": peer.local_as,
        "external": peer.external,
        "passive": peer.passive,
        "dynamic": peer.listen_range is not None,
        "listenRange": peer.listen_range,
        "incoming": peer.incoming,
        "state": peer.state,
        "since": _time(peer.since),
        "for": max(time.time() - peer.since, 0.0),
        "problem": peer.reason,
        "identifier": peer.identifier,
        "holdTime": peer.hold_time,
        "keepalive": peer.keepalive,
        "establishedCount": peer.established_count,
        "lastSent": _notification(peer.last_sent),
        "lastReceived": _notification(peer.last_received),
        "messages": {"in": peer.messages_in, "out": peer.messages_out},
        "capabilities": list(peer.capabilities),
        "hostname": peer.hostname,
        "software": peer.software,
        "families": {
            NAMES[family]: {
                "negotiated": status.negotiated,
                "nextHop": status.next_hop,
                "endOfRib": status.end_of_rib,
                "received": status.received,
                "accepted": status.accepted,
                "stale": status.stale,
                "advertised": status.advertised,
                "addPath": ADD_PATH_TEXT[status.add_path],
                "problem": status.problem,
            }
            for family, status in peer.families.items()
        },
    }


def _range(made: RangeStatus) -> Json:
    return {
        "name": made.name,
        "prefix": made.prefix,
        "as": made.remote_as,
        "peers": made.peers,
        "limit": made.limit,
        "refusedConnections": made.refused,
    }


def _notification(record: NotificationRecord | None) -> Json | None:
    if record is None:
        return None
    return {"code": record.code, "subcode": record.subcode, "text": record.text, "at": _time(record.at)}


async def fib_counts(node: Node, family: Family) -> dict[str, int]:
    """Return how many routes there are by state, in slices: a full table would hold the event loop for long."""
    total: Counter[str] = Counter()
    until = time.monotonic() + _SLICE
    for counts in node.fib.counts(family) if node.running else ():
        total.update({state.value: count for state, count in counts.items()})
        if time.monotonic() > until:
            await asyncio.sleep(0)
            until = time.monotonic() + _SLICE
    return dict(+total)


async def findings_of(node: Node) -> list[str]:
    """Return what would break routing here though it is not the agent's to change."""
    found = [f"{problem.path}: {problem.text}" for problem in node.overlaps()]
    found += node.fib.findings if node.running else []
    return found + await asyncio.to_thread(findings, node.uplinks())


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
