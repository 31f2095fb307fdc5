"""Runs cases against one speaker, several at once, each from an address of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress

from tests.conformance.bgp import wire
from tests.conformance.bgp.cases import Case, Result
from tests.conformance.bgp.session import Connection, EndedError, NotRunError, Observer, Target, established

WORKERS = 8
CASE_TIME = 60.0
"""Seconds after which a case is given up."""
_KEEPALIVE = 2.0


class Suite:
    """The suite's end: the addresses it may speak from, established sessions to be used again, and the observer."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.observer: Observer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._watching = asyncio.Lock()
        self._live: set[Connection] = set()
        """Established sessions that are kept alive."""
        self._sources: asyncio.Queue[str] = asyncio.Queue()
        for source in target.sources:
            self._sources.put_nowait(source)
        self._sessions: dict[bool, list[Connection]] = {True: [], False: []}
        self._numbers = 0
        self.active_lock = asyncio.Lock()
        """The one peer to which the speaker connects is used by one case at a time."""

    async def start(self) -> None:
        """Establish the observer's session. Raises NotRunError."""
        self._tasks.append(asyncio.create_task(self._keep_alive()))
        await self._watch()

    async def _watch(self) -> None:
        """Establish the observer's session if it is not. Raises NotRunError."""
        async with self._watching:
            if self.target.observer is None or (self.observer is not None and not self.observer.fault):
                return
            if self.observer is not None:
                self._live.discard(self.observer.connection)
                await self.observer.connection.close()
            await self._begin_to_watch(self.target.observer)

    async def _begin_to_watch(self, source: str) -> None:
        # An internal suite watches on an external session and the other way round.
        connection = await established(self.target, source, as_number=self.target.observer_as)
        self.observer = Observer(connection)
        self._live.add(connection)
        self._tasks.append(asyncio.create_task(self.observer.run()))

    async def stop(self) -> None:
        for connection in [c for idle in self._sessions.values() for c in idle]:
            await connection.cease()
        for task in self._tasks:
            task.cancel()
            await asyncio.wait([task])
        if self.observer is not None:
            await self.observer.connection.cease()

    def number(self) -> int:
        """Return a number that no other case has: its prefix comes from it."""
        self._numbers += 1
        return self._numbers

    @asynccontextmanager
    async def source(self) -> AsyncIterator[str]:
        """Lend an address to speak from; the one that has rested longest."""
        source = await self._sources.get()
        try:
            yield source
        finally:
            self._sources.put_nowait(source)

    @asynccontextmanager
    async def session(self, *, wide: bool = True) -> AsyncIterator[Connection]:
        """Lend an established session with (``wide``) or without 4-octet AS; it is used again unless it ended."""
        idle = self._sessions[wide]
        while idle and idle[-1].reader.at_eof():
            await self._give_up(idle.pop())
        connection = idle.pop() if idle else await self._establish(wide)
        try:
            yield connection
        except BaseException:
            await self._give_up(connection)
            raise
        else:
            idle.append(connection)

    async def run(
        self, cases: Iterable[Case], done: Callable[[Result], None], alone: Callable[[], Awaitable[None]]
    ) -> None:
        """Run cases; ``done`` gets each result as it comes.

        What could not be run, or may have suffered from a case that took the speaker down, is run once more, one by
        one, when ``alone`` has returned: then no other suite uses the speaker. What still could not be run gets new
        sessions and a last try.
        """
        waiting = [case for case in cases if case.expected(internal=self.target.internal) is not None]
        waiting.reverse()
        again: list[Case] = []

        async def work() -> None:
            while waiting:
                result = await self._run(waiting.pop())
                if result.met or not result.outcome.startswith(("closed", "not run")):
                    done(result)
                else:
                    again.append(result.case)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(WORKERS, len(self.target.sources))):
                group.create_task(work())
        await alone()
        for case in again:
            result = await self._run(case)
            if result.outcome.startswith("not run"):
                await self._forget()
                result = await self._run(case)
            done(result)

    async def _run(self, case: Case) -> Result:
        start = time.monotonic()
        try:
            async with asyncio.timeout(CASE_TIME):
                await self._watch()
                outcome = await case.run(self)
        except EndedError as ended:
            outcome = describe(ended)
            if ended.how == "closed" and self.observer is not None:
                with suppress(NotRunError):  # a speaker that dies takes the observer's session along
                    await self.observer.until(lambda: False, patience=0.5)
                if self.observer.fault:
                    outcome = "closed, with all other sessions"
        except NotRunError as error:
            outcome = f"not run: {error}"
        except TimeoutError:
            outcome = "not run: no answer"
        return Result(case, self.target.internal, outcome, time.monotonic() - start)

    async def _forget(self) -> None:
        """End all sessions: a speaker that was taken down may have half of them."""
        for idle in self._sessions.values():
            while idle:
                await self._give_up(idle.pop())
        if self.observer is not None:
            await self.observer.connection.close()
            self.observer.fault = "closed by the suite"

    async def _establish(self, wide: bool) -> Connection:
        source = await self._sources.get()
        try:
            connection = await established(self.target, source, wide=wide)
        except BaseException:
            self._sources.put_nowait(source)
            raise
        self._live.add(connection)
        return connection

    async def _keep_alive(self) -> None:
        while True:
            for connection in tuple(self._live):
                await connection.send(wire.message(wire.KEEPALIVE))
            await asyncio.sleep(_KEEPALIVE)

    async def _give_up(self, connection: Connection) -> None:
        self._live.discard(connection)
        await connection.close()
        self._sources.put_nowait(connection.source)


def describe(ended: EndedError) -> str:
    """Return the outcome that the end of a connection is."""
    return "closed" if ended.how == "closed" else f"reset {ended.how}"
