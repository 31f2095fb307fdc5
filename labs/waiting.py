"""Waiting in coroutines for what blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def off_loop(function: Callable[[], T], *, abandon: bool = False) -> T:
    """Await a blocking function in a thread of its own: there may be many at once, and they may wait long.

    Where the awaiting task is cancelled it still waits for the function's end, unless ``abandon`` is true.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: object) -> None:
        if not future.done():
            setter(value)

    def body() -> None:
        try:
            outcome: tuple[Callable[[Any], None], object] = (future.set_result, function())
        except BaseException as error:
            outcome = (future.set_exception, error)
        # The loop may have ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=body, daemon=True).start()
    if abandon:
        return await future
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()
        raise


async def together(tasks: Iterable[Awaitable[T]]) -> list[T]:
    """Await all tasks, wait for the last of them even where one fails, then raise the first error."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    values: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        values.append(result)
    return values


async def side_by_side(tasks: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines that may wait for each other; when one fails the others are cancelled, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
