"""Who is waited for before an earlier run's routes go: also peers that come and leave while the agent runs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from agent.leftovers import LeftoverSweep
from config.prefix import Family


class Parts:
    """A speaker and a Fib that note what they are told."""

    def __init__(self) -> None:
        self.idle = True
        self.deferred: frozenset[Family] = frozenset()
        self.complete: dict[str, str] = {}
        self.told: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def peers(self) -> list[Any]:
        return [
            SimpleNamespace(name=name, families={4: SimpleNamespace(end_of_rib=state)})
            for name, state in self.complete.items()
        ]

    async def changed(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def tell(self, **complete: str) -> None:
        self.complete |= complete
        self._changed.set()

    def end_of_rib(self, peer: str, family: Family) -> None:
        self.told.append(("end of RIB", peer))

    def sweep(self, peer: str, *, restore: bool = True) -> None:
        self.told.append(("given up" if restore else "removed", peer))


async def settled(parts: Parts, count: int) -> list[tuple[str, str]]:
    async with asyncio.timeout(60):
        while len(parts.told) < count:  # noqa: ASYNC110 (a few turns of the loop)
            await asyncio.sleep(0)
    return sorted(parts.told)


async def test_a_peer_that_is_added_has_the_time_of_the_others_and_one_that_is_removed_none() -> None:
    parts = Parts()
    sweep = LeftoverSweep(cast(Any, parts), cast(Any, parts), ["a", "b"], patience=0.05)
    sweep.expect("c")  # of the mesh: before the start
    sweep.start()
    sweep.expect("d")
    sweep.dismiss("b")
    assert parts.told == [("removed", "b")]
    parts.tell(a="received", c="")
    assert await settled(parts, 4) == [
        ("end of RIB", "a"),
        ("given up", "c"),
        ("given up", "d"),
        ("removed", "b"),
    ]
    sweep.expect("e")  # too late: nothing of it can be left
    parts.tell(c="received")
    assert ("end of RIB", "c") in await settled(parts, 5)
    await sweep.stop()
    assert all(peer != "e" for _, peer in parts.told)


async def test_a_peer_that_comes_again_is_told_of_again() -> None:
    parts = Parts()
    sweep = LeftoverSweep(cast(Any, parts), cast(Any, parts), ["a"], patience=60)
    sweep.start()
    parts.tell(a="received")
    await settled(parts, 1)
    sweep.dismiss("a")
    sweep.expect("a")
    parts.tell(a="received")
    assert await settled(parts, 3) == [("end of RIB", "a"), ("end of RIB", "a"), ("removed", "a")]
    await sweep.stop()
