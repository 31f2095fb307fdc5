"""The one task that a part of the agent runs from its start to its stop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Background:
    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self, work: Coroutine[None, None, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work, name=self._name)

    async def stop(self) -> None:
        """End the work; does nothing where there is none."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
