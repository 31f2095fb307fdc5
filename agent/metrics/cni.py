"""Containers: how many there are, and what became of the runtime's calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent import views
from agent.metrics.catalogue import Histogram, Reading, counter, gauge, histogram
from agent.node import Node
from cni.calls import BOUNDS

PODS = gauge("cni_pods", "Pods that podroute has wired on this node.")
REQUESTS = counter(
    "cni_requests", "Calls of the CNI plugin by verb and error code; code 0: it succeeded.", "verb", "code"
)
DURATION = histogram(
    "cni_request_duration_seconds", "How long the agent took to answer calls of the CNI plugin.", "verb"
)

METRICS = (PODS, REQUESTS, DURATION)

_VERBS = ("ADD", "DEL", "CHECK")
"""Told of from the start, so that the first one is an increase; others when they come."""


@dataclass(frozen=True, slots=True)
class CniFacts:
    pods: int | None
    """None: the agent is not running, so that nobody knows."""
    results: Mapping[tuple[str, int], int]
    durations: Mapping[str, Histogram]


async def look(node: Node) -> CniFacts:
    calls = node.cni.verbs.calls
    return CniFacts(
        len(await views.pod_attachments(node)) if node.running else None,
        dict(calls.results),
        {verb: Histogram(BOUNDS, list(of.counts), of.seconds) for verb, of in calls.durations.items()},
    )


def read(facts: CniFacts) -> Iterator[Reading]:
    if facts.pods is not None:
        yield PODS.of(facts.pods)
    for (verb, code), count in {**dict.fromkeys(((verb, 0) for verb in _VERBS), 0), **facts.results}.items():
        yield REQUESTS.of(count, verb, str(code))
    none = Histogram(BOUNDS, [0] * (len(BOUNDS) + 1), 0.0)
    for verb, durations in {**dict.fromkeys(_VERBS, none), **facts.durations}.items():
        yield DURATION.of(durations, verb)
