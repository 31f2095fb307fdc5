"""A lab for as long as a block of code runs, saved where that fails.

async with lab("two-racks") as net:
    await net.node("n1").ping("10.255.0.11")
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from labs.building import Progress
from labs.errors import LabError
from labs.lab import Lab
from labs.saving import fresh_folder, save
from labs.state import ROOT
from labs.topology import Topology


@asynccontextmanager
async def lab(
    source: str | Path | Topology,
    *,
    name: str | None = None,
    progress: Progress | None = None,
    root: Path = ROOT,
    save_to: Path | None = None,
) -> AsyncIterator[Lab]:
    """Build a lab, and take it down at the end whatever happens. Raises LabError where it came up with problems.

    When the body fails, everything about the lab is first saved into a fresh folder in ``save_to`` (the directory for
    temporary files by default); its path is printed and noted on the exception.
    """
    net = await Lab.up(source, name=name, progress=progress, root=root)
    try:
        if net.problems:
            raise LabError("\n".join(net.problems))
        yield net
    except Exception as error:
        await _save_failed(net, error, save_to)
        raise
    finally:
        await asyncio.shield(net.down())


async def _save_failed(net: Lab, error: Exception, save_to: Path | None) -> None:
    """Save a lab that failed; what goes wrong in that must not hide the failure itself."""
    try:
        async with asyncio.timeout(60):
            folder = await save(net, fresh_folder(net.name, save_to))
    except (LabError, OSError) as problem:
        told = f"lab {net.name} could not be saved: {str(problem) or 'it took longer than 60 s'}"
    else:
        told = f"lab {net.name} is saved in {folder}"
    error.add_note(told)
    print(told, file=sys.stderr)
