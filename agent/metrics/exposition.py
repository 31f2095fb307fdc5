"""Readings in the text formats of Prometheus and OpenMetrics, with those of the process that the library adds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agent.metrics.catalogue import Histogram, Metric, Reading


class _Families(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Family]:
        return self._families


def expose(metrics: Iterable[Metric], readings: Iterable[Reading], accept: str) -> tuple[bytes, str]:
    """Return the exposition, in the order of ``metrics``, and its content type; ``accept``: the header of HTTP."""
    families = {metric: Family(_base(metric), metric.help, metric.kind) for metric in metrics}
    for reading in readings:
        for name, labels, value in _samples(reading):
            families[reading.metric].add_sample(name, labels, value)
    encode, content_type = choose_encoder(accept)
    process = ProcessCollector(registry=None).collect()
    return encode(_Families([*families.values(), *process])), content_type


def _base(metric: Metric) -> str:
    """Return the name of the family that a metric's samples are of (OpenMetrics)."""
    return metric.name.removesuffix({"counter": "_total", "info": "_info"}.get(metric.kind, ""))


def _samples(reading: Reading) -> Iterator[tuple[str, dict[str, str], float]]:
    name, value = reading.metric.name, reading.value
    labels = dict(zip(reading.metric.labels, reading.labels, strict=True))
    if not isinstance(value, Histogram):
        yield name, labels, float(value)
        return
    counts = list(accumulate(value.counts))
    for bound, count in zip((*map(str, value.bounds), "+Inf"), counts, strict=True):
        yield f"{name}_bucket", {**labels, "le": bound}, count
    yield f"{name}_count", labels, counts[-1]
    yield f"{name}_sum", labels, value.sum
