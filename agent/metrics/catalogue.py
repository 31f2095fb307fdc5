"""What a metric is, and what was read of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Kind = Literal["gauge", "counter", "histogram", "info"]


class Metric(NamedTuple):
    """One metric as Prometheus' conventions have it: names end with their unit, counters with ``_total``."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    def of(self, value: Value, *labels: str) -> Reading:
        """Return a reading of it; ``labels`` are the values of its labels, in their order."""
        return Reading(self, value, labels)


class Histogram(NamedTuple):
    bounds: Sequence[float]
    counts: Sequence[int]
    """Observations up to each of ``bounds`` and above the one before it; at last those above all."""
    sum: float


Value = float | Histogram


class Reading(NamedTuple):
    metric: Metric
    value: Value
    labels: tuple[str, ...]


def gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"podroute_{name}", "gauge", help, labels)


def counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"podroute_{name}_total", "counter", help, labels)


def histogram(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"podroute_{name}", "histogram", help, labels)


def info(name: str, help: str, *labels: str) -> Metric:
    """Return a metric whose value is 1, and whose labels are what it says."""
    return Metric(f"podroute_{name}_info", "info", help, labels)
