"""A store for tests that counts what is asked of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial

from ipam.errors import StoreUnavailableError
from ipam.store import Changes, Choice, Condition, Entry, Listing, Outcome, Range, Store, Write


class Counting:
    """A store as one node sees it: counts round trips, and loses questions and answers where it is told to."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.trips = 0
        self.lost = ""
        """``answer``: transactions are carried out, and not answered; ``question``: they wait in ``late``."""
        self.late: list[Callable[[], Awaitable[Outcome]]] = []

    @property
    def url(self) -> str:
        return self._inner.url

    async def get(self, key: str) -> Entry | None:
        self.trips += 1
        return await self._inner.get(key)

    async def list(self, wanted: Range) -> Listing:
        self.trips += 1
        return await self._inner.list(wanted)

    async def transact(
        self,
        conditions: Sequence[Condition],
        writes: Sequence[Write],
        otherwise: Sequence[Range] = (),
        choices: Sequence[Choice] = (),
    ) -> Outcome:
        self.trips += 1
        transact = partial(self._inner.transact, conditions, writes, otherwise, choices)
        if self.lost == "question":
            self.late.append(transact)
            raise StoreUnavailableError("no answer")
        outcome = await transact()
        if self.lost == "answer":
            raise StoreUnavailableError("no answer")
        return outcome

    def watch(self, wanted: Range, since: int) -> AsyncGenerator[Changes, None]:
        return self._inner.watch(wanted, since)

    async def grant(self, seconds: int) -> int:
        return await self._inner.grant(seconds)

    async def keep_alive(self, lease: int) -> bool:
        return await self._inner.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        await self._inner.revoke(lease)

    async def open(self) -> None:
        await self._inner.open()

    async def close(self) -> None:
        await self._inner.close()
