"""`podroute explain`: one prefix from what peers say to what the kernel holds, and why these differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.node import Node
from agent.views import path_json, silent_gateways
from bgp.inspection import Explanation, Route
from config.prefix import BITS, NAMES, Family, contains, make, of_address, text
from routes.differences import Row, rows
from routes.state import State

Json = dict[str, Any]


async def explain(node: Node, family: Family, asked: bytes) -> Json:
    """Explain a prefix; where nothing is known of it, the longest one that is known and covers it."""
    prefix = _known(node, family, asked)
    live = await node.fib.view.prefix(family, prefix)
    held = node.fib.route(family, prefix)
    found = rows(held, live, node.fib.protocol)
    known = node.speaker.rib.explain(family, prefix)
    return {
        "asked": text(family, asked),
        "prefix": text(family, prefix),
        "family": NAMES[family],
        "summary": [
            *await _pods(node, family, asked),
            *_decision(known),
            *_problems(known, bool(held), found),
            *silent_gateways(node, known.routes),
        ],
        "paths": [{**path_json(path), "reached": _reached(node, path)} for path in known.routes],
        "decided": known.decided,
        "exports": [
            {
                "peer": export.peer,
                "advertised": export.advertised,
                "reason": export.reason,
                "origin": export.origin,
                "pathId": export.path_id,
            }
            for export in known.exports
        ],
        "fib": [row._asdict() for row in found],
    }


def _known(node: Node, family: Family, asked: bytes) -> bytes:
    """Return the prefix itself or the longest above it that any table knows; itself if there is none."""
    bits = BITS[family]
    address = int.from_bytes(asked[1:].ljust(bits // 8, b"\0"), "big")
    for length in range(asked[0], -1, -1):
        prefix = make(family, address, length)
        if node.speaker.rib.explain(family, prefix).routes or node.fib.route(family, prefix):
            return prefix
    return asked


async def _pods(node: Node, family: Family, asked: bytes) -> list[str]:
    """Tell which block and which pod an address belongs to."""
    lines = []
    for block in node.ipam.blocks():
        if block.family == family and contains(block.prefix, asked):
            lines.append(f"in block {text(family, block.prefix)} of pool {block.pool}, which this node owns")
    for attachment in await node.ipam.attachments():
        for assignment in attachment.assignments:
            if of_address(assignment.address) == (family, asked):
                interface = attachment.attributes.get("hostInterface", "")
                where = f", behind {interface}" if interface else ""
                handle = attachment.handle
                lines.append(f"address of {handle.ifname} in container {handle.container_id} ({handle.network}){where}")
    return lines


def _decision(known: Explanation) -> Iterator[str]:
    if not known.routes:
        yield "no peer announces it, and neither do we"
        return
    used = [route for route in known.routes if route.multipath]
    if not used:
        yield "no path is eligible"
    elif len(used) > 1:
        best = f"; the one that is advertised is chosen by {known.decided}" if known.decided else ""
        yield f"{len(used)} of {len(known.routes)} paths are equal and share the traffic{best}"
    elif known.decided:
        yield f"decided by {known.decided} among {len(known.routes)} paths"


def _problems(known: Explanation, held: bool, found: list[Row]) -> Iterator[str]:
    """Say where what is desired and what the kernel holds are not the same, and why."""
    for row in found:
        if row.why:
            yield f"metric {row.metric}: {row.state}{'' if row.state == State.SHADOWED else ':'} {row.why}"
    if not held and any(route.multipath and route.peer for route in known.routes):
        yield "not yet handed to the FIB"


def _reached(node: Node, path: Route) -> str:
    """Return how the kernel's side resolved a next hop, or why it did not."""
    if not path.next_hop:
        return "-"
    _, wire = of_address(path.next_hop)
    silent = [f"; {gateway} does not answer" for gateway in node.silent(wire[1:], path.device)]
    return node.resolver.explain(wire[1:], path.device) + "".join(silent)
