"""A lab as a picture: SVG with nodes in layers, links, and the state of sessions and routes where it is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from labs.observe import NodeState

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 150, 62, 34, 92, 24
GOOD, BAD, PLAIN = "#2e7d32", "#c62828", "#607d8b"
FILL = {"podroute": "#e8f0fe", "FRR": "#fff3e0", "BIRD": "#f3e5f5", "": "#f5f5f5"}
PER_ROW = 10
"""Nodes in one row of the picture; a wider layer is folded."""

Edge = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + WIDTH / 2, self.y + HEIGHT / 2


def svg(title: str, nodes: Sequence[str], links: Iterable[Edge], states: Iterable[NodeState] = ()) -> str:
    """Draw a lab. ``links`` are pairs of node names, ``states`` what ``observe`` returned; without it no state is
    drawn. Green is an established session, red one that is not; a session without a link of its own is a dashed curve.
    """
    edges = list(dict.fromkeys((min(link), max(link)) for link in links))
    by_name = {state.name: state for state in states}
    rows = layers(nodes, edges, by_name)
    boxes = _boxes(rows)
    width = max(box.x for box in boxes.values()) + WIDTH + MARGIN
    height = max(box.y for box in boxes.values()) + HEIGHT + MARGIN
    sessions = _sessions(by_name)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height + 8:g}" width="{width:g}" '
        f'height="{height + 8:g}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for edge in edges:
        parts.append(_line(boxes, edge, PLAIN if edge not in sessions else _colour(sessions[edge]), ""))
    for edge in sorted(sessions.keys() - set(edges)):
        parts.append(_line(boxes, edge, _colour(sessions[edge]), "6 4"))
    parts += [_node(name, boxes[name], by_name.get(name)) for name in nodes]
    return "\n".join([*parts, "</svg>"]) + "\n"


def layers(nodes: Sequence[str], edges: Iterable[Edge], states: Mapping[str, NodeState]) -> list[list[str]]:
    """Return rows of names, the top one first: a node stands above the leaves by its distance from them.

    Leaves are nodes that run podroute, or else those with one link.
    """
    neighbours: dict[str, set[str]] = {name: set() for name in nodes}
    for a, z in edges:
        neighbours[a].add(z)
        neighbours[z].add(a)
    leaves = [name for name in nodes if name in states and states[name].role == "podroute"]
    leaves += [name for name in nodes if name not in leaves and len(neighbours[name]) <= 1]
    depth = dict.fromkeys(leaves or nodes, 0)
    queue = deque(depth)
    while queue:
        name = queue.popleft()
        for other in sorted(neighbours[name]):
            if other not in depth:
                depth[other] = depth[name] + 1
                queue.append(other)
    rows = [[name for name in nodes if depth.get(name, 0) == level] for level in range(max(depth.values()), -1, -1)]
    return [row for row in rows if row]


def _boxes(rows: Iterable[list[str]]) -> dict[str, _Box]:
    folded = [row[start : start + PER_ROW] for row in rows for start in range(0, len(row), PER_ROW)]
    widest = max(len(row) for row in folded)
    boxes = {}
    for level, row in enumerate(folded):
        left = MARGIN + (widest - len(row)) * (WIDTH + GAP_X) / 2
        for column, name in enumerate(row):
            boxes[name] = _Box(left + column * (WIDTH + GAP_X), MARGIN + level * (HEIGHT + GAP_Y))
    return boxes


def _sessions(states: Mapping[str, NodeState]) -> dict[Edge, list[bool]]:
    """Return for each pair of nodes which of the sessions between them are established, as either side sees them."""
    owners: dict[str, set[str]] = {}
    for state in states.values():
        for address in state.addresses:
            owners.setdefault(address, set()).add(state.name)
    found: dict[Edge, list[bool]] = {}
    for state in states.values():
        for session in state.sessions:
            for owner in owners.get(session.peer.partition("%")[0], set()) - {state.name}:
                edge = (min(state.name, owner), max(state.name, owner))
                found.setdefault(edge, []).append(session.established)
    return found


def _colour(sessions: Iterable[bool]) -> str:
    return GOOD if all(sessions) else BAD


def _line(boxes: Mapping[str, _Box], edge: Edge, colour: str, dashes: str) -> str:
    (x1, y1), (x2, y2) = boxes[edge[0]].centre, boxes[edge[1]].centre
    bend = 0.0 if y1 != y2 and not dashes else max(40.0, abs(x2 - x1) / 5)
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    middle = f"{(x1 + x2) / 2:g} {max(y1, y2) + bend - (0 if y1 == y2 else HEIGHT):g}"
    path = f"M{x1:g} {y1:g} L{x2:g} {y2:g}" if not bend else f"M{x1:g} {y1:g} Q{middle} {x2:g} {y2:g}"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'


def _node(name: str, box: _Box, state: NodeState | None) -> str:
    role = state.role if state else ""
    lines = [f'<tspan font-weight="bold">{escape(name)}</tspan>{escape(f"  {role}" if role else "")}']
    bad = False
    if state and state.role:
        up = sum(session.established for session in state.sessions)
        bad = bool(state.problem) or up < len(state.sessions)
        lines.append(escape(state.problem[:24] if state.problem else f"AS {state.asn}"))
        lines.append(f"{up}/{len(state.sessions)} up, routes {state.learned[0]} v4 {state.learned[1]} v6")
    text = "".join(
        f'<text x="{box.x + 8:g}" y="{box.y + 18 + 17 * number:g}">{line}</text>' for number, line in enumerate(lines)
    )
    tip = f"<title>{escape(_details(state))}</title>" if state else ""
    return (
        f'<g>{tip}<rect x="{box.x:g}" y="{box.y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
        f'fill="{FILL.get(role, FILL[""])}" stroke="{BAD if bad else PLAIN}"/>{text}</g>'
    )


def _details(state: NodeState) -> str:
    lines = [f"{session.peer}: {session.state}" for session in state.sessions]
    return "\n".join([state.name, *lines, *([state.problem] if state.problem else [])])
