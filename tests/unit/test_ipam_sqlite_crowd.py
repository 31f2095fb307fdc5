"""Agents of one machine that make the shared store at the same moment: none may take it for somebody else's file."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

from ipam.sqlite_store import SqliteStore

PROCESSES = 6
ROUNDS = 40


def _open(directory: str, barrier: Barrier, faults: multiprocessing.SimpleQueue[str]) -> None:
    import asyncio

    async def one(path: Path) -> None:
        store = SqliteStore(str(path))
        await store.open()
        await store.close()

    for number in range(ROUNDS):
        barrier.wait()
        try:
            asyncio.run(one(Path(directory) / f"{number}.db"))
        except Exception as error:
            faults.put(f"{type(error).__name__}: {error}")


def test_a_new_store_opened_by_many_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, faults = context.Barrier(PROCESSES), context.SimpleQueue()
    workers = [context.Process(target=_open, args=(str(tmp_path), barrier, faults)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    assert faults.empty(), faults.get()
