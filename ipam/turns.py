"""Work on one thing follows all work that came before on the same thing; work on others runs side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Turns(Generic[K]):
    def __init__(self) -> None:
        self._last: dict[K, asyncio.Task[Any]] = {}

    def take(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Future[T]:
        """Run work once all that came before for the key is done; it goes on if the caller is cancelled."""
        before = self._last.get(key)

        async def turn() -> T:
            if before is not None:
                await asyncio.wait([before])
            return await work()

        task = asyncio.get_running_loop().create_task(turn())
        self._last[key] = task

        def ended(_: asyncio.Task[T]) -> None:
            if self._last.get(key) is task:
                del self._last[key]
            if not task.cancelled():
                task.exception()  # seen, should the caller be gone

        task.add_done_callback(ended)
        return asyncio.shield(task)

    async def over(self) -> None:
        """Return when nothing is under way."""
        while self._last:
            await asyncio.wait(self._last.values())
