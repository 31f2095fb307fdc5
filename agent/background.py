"""The one task that a part of the agent runs from its start to its stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from ipam.lasting import lasting

log = logging.getLogger("podroute.agent")


class Background:
    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self, work: Coroutine[None, None, None]) -> None:
        self._task = lasting(work, self._name, log)

    async def stop(self) -> None:
        """End the work; does nothing where there is none."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
