"""The garbage collector stays away from what is large and old."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator

import pytest

from agent import garbage
from agent.garbage import GarbageCollector


class Thing:
    def __init__(self) -> None:
        self.other: Thing | None = None


@pytest.fixture
async def collector() -> AsyncIterator[GarbageCollector]:
    collector = GarbageCollector()
    before = gc.get_threshold()
    collector.start()
    yield collector
    collector.stop()
    assert gc.get_threshold() == before
    assert not gc.get_freeze_count()


async def test_full_collections_are_not_automatic(collector: GarbageCollector) -> None:
    full = gc.get_stats()[2]["collections"]
    kept = [[n] for n in range(300_000)]
    assert gc.get_stats()[2]["collections"] == full
    assert len(kept) == 300_000


async def test_cycles_that_grew_old_are_freed_while_there_is_little(
    collector: GarbageCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "LIMIT", 1 << 30)
    thing = Thing()
    thing.other = thing
    there = weakref.ref(thing)
    gc.collect(0)
    gc.collect(1)  # into the oldest generation
    del thing
    assert there() is not None
    collector.tidy()
    assert there() is None
    assert collector.longest > 0
    assert collector.seconds >= collector.longest


async def test_much_is_set_aside_instead(collector: GarbageCollector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LIMIT", 1000)
    kept = [[n] for n in range(2000)]
    gc.collect(1)
    frozen, full = gc.get_freeze_count(), gc.get_stats()[2]["collections"]
    collector.tidy()
    assert gc.get_freeze_count() >= frozen + len(kept)
    assert gc.get_stats()[2]["collections"] == full
