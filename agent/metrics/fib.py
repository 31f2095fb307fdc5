"""The kernel: routes of ours in it, what waits for it, what it refused, what had to be repaired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent import views
from agent.metrics.catalogue import Reading, counter, gauge
from agent.node import Node
from config.prefix import FAMILIES, NAMES
from routes.causes import FOUND_BY, REPAIRS, RESYNCS
from routes.state import State

ROUTES = gauge("fib_routes", "Routes of podroute by what the kernel has made of them.", "family", "state")
PENDING = gauge("fib_pending_changes", "Changes of routes that the kernel has not been told of.")
FULL = gauge("fib_full", "Whether so many changes wait for the kernel that peers are not read (1) or not (0).")
FILLED = counter("fib_times_full", "How often so many changes waited for the kernel that peers were not read.")
OBJECTS = gauge("fib_next_hop_objects", "Next-hop objects of podroute; 0 on kernels without them.")
GROUPS = gauge("fib_next_hop_groups", "Next-hop groups of podroute; 0 on kernels without them.")
SILENT = gauge("fib_silent_gateways", "Gateways that do not answer (routes.checkNeighbours).")
REQUESTS = counter("fib_requests", "Changes of routes that the kernel was told of.")
REFUSALS = counter("fib_refused_requests", "Changes of routes that the kernel refused, by its error.", "error")
REPAIRED = counter("fib_repaired_routes", "Routes that were set right in the kernel, by what was wrong.", "cause")
REPAIRED_OBJECTS = counter("fib_repaired_next_hop_objects", "Next-hop objects that somebody else had changed.")
RESYNCS_DONE = counter(
    "fib_resyncs", "Full comparisons with the kernel because its answers or events were in doubt, by cause.", "cause"
)
COMPARISONS = counter("fib_comparisons", "Full comparisons with the kernel, the periodic ones among them.")

METRICS = (
    ROUTES,
    PENDING,
    FULL,
    FILLED,
    OBJECTS,
    GROUPS,
    SILENT,
    REQUESTS,
    REFUSALS,
    REPAIRED,
    REPAIRED_OBJECTS,
    RESYNCS_DONE,
    COMPARISONS,
)

_ERRORS = ("EEXIST", "EINVAL", "ENOENT", "ENOMEM", "ENOBUFS", "EPERM")
"""Told of from the start, so that the first one is an increase; others when they come."""


@dataclass(frozen=True, slots=True)
class FibFacts:
    routes: Mapping[str, Mapping[str, int]]
    """By family and state."""
    pending: int
    full: bool
    objects: int
    groups: int
    silent: int | None
    """None: nobody looks."""
    counters: Mapping[str, int]


async def look(node: Node) -> FibFacts | None:
    """Return what there is to tell; None: the FIB is not running."""
    if not node.running:
        return None
    objects, groups = node.fib.sizes()
    silent = len(node.neighbours.all_silent()) if node.neighbours.active else None
    pending, full, counters = node.fib.backlog, node.fib.full, dict(node.fib.counters)
    routes = {NAMES[family]: await views.fib_counts(node, family) for family in FAMILIES}
    return FibFacts(routes, pending, full, objects, groups, silent, counters)


def read(facts: FibFacts | None) -> Iterator[Reading]:
    if facts is None:
        return
    counters = facts.counters
    for family, counts in facts.routes.items():
        for state in State:
            yield ROUTES.of(counts.get(state.value, 0), family, state.value)
    yield PENDING.of(facts.pending)
    yield FULL.of(facts.full)
    yield FILLED.of(counters.get("full", 0))
    yield OBJECTS.of(facts.objects)
    yield GROUPS.of(facts.groups)
    if facts.silent is not None:
        yield SILENT.of(facts.silent)
    yield REQUESTS.of(counters.get("requests", 0))
    for error, count in {**dict.fromkeys(_ERRORS, 0), **_after("refused, ", counters)}.items():
        yield REFUSALS.of(count, error)
    repaired = Counter(dict.fromkeys(REPAIRS, 0))
    for cause, count in _after("repaired, ", counters).items():
        repaired[cause.partition(FOUND_BY)[0]] += count
    for cause, count in repaired.items():
        yield REPAIRED.of(count, cause)
    yield REPAIRED_OBJECTS.of(counters.get("repaired next-hop objects", 0))
    for cause, count in {**dict.fromkeys(RESYNCS, 0), **_after("resync, ", counters)}.items():
        yield RESYNCS_DONE.of(count, cause)
    yield COMPARISONS.of(counters.get("comparisons", 0))


def _after(start: str, counters: Mapping[str, int]) -> dict[str, int]:
    """Return the counters that begin so, by what follows."""
    return {name.removeprefix(start): count for name, count in counters.items() if name.startswith(start)}
