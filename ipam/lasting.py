"""Tasks that last as long as what they belong to: one that ends by itself is a fault of ours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine


def lasting(work: Coroutine[None, None, None], name: str, log: logging.Logger) -> asyncio.Task[None]:
    """Run work in a task; what it raises is logged at once, whether anybody waits for the task or not."""

    def ended(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.critical("%s has failed: restart the agent, which interrupts nothing", name, exc_info=error)

    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(ended)
    return task
