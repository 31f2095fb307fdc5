"""Removing labs, also those whose runner or records are gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from labs.cables import remove_from_host
from labs.errors import LabError
from labs.namespaces import Namespaces
from labs.processes import Process, await_end, marked, sharing
from labs.state import ROOT, Record


def take_down(
    name: str, *, root: Path = ROOT, record: Record | None = None, waiting: Callable[[], None] = lambda: None
) -> bool:
    """Remove a lab, complete or not, and whatever of it runs; return whether there was anything. Blocks.

    Works from its processes' marks, so that it needs no records. Raises LabError where something cannot be removed.
    """
    record = record or Record(name, root)
    record.await_runner(waiting, timeout=60)
    found = record.exists()
    for _ in range(20):
        processes = _processes(name)
        if not processes:
            break
        found = True
        for process in processes:
            process.kill()
        if left := await_end(processes, timeout=60):
            numbers = ", ".join(str(process.pid) for process in left)
            raise LabError(f"lab `{name}`: processes {numbers} do not end when they are killed")
    remove_from_host(name)
    record.remove()
    return found


def _processes(name: str) -> list[Process]:
    """Return what runs in a lab: what carries its mark, and what entered its namespaces by other means."""
    processes = marked(name)
    if not processes:
        return []
    own = {identity for process in processes for identity in Namespaces(process).identities(("mnt", "pid"))}
    own |= {identity for process in marked(name, owners=True) for identity in Namespaces(process).identities(("net",))}
    own -= Namespaces(Process(os.getpid(), 0)).identities()
    return list({*processes, *sharing(own, ("net", "mnt", "pid"))})
