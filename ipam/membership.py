"""A node's place in the cluster: joined once the store has answered, alive as long as its lease is.

The store may be away at any time, also at the start. Then the node goes on with what it has, and joins when the store
answers; whatever happened to its blocks meanwhile it finds out by joining again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ipam import records
from ipam.claims import Claims
from ipam.errors import IpamError, LeaseExpiredError, StoreUnavailableError
from ipam.fence import Fence, boot_clock
from ipam.identity import Identity
from ipam.lasting import lasting
from ipam.pool import Pool
from ipam.records import NodeRecord
from ipam.store import Put, Store

log = logging.getLogger("podroute.ipam")

RETRY = 2.0
"""Seconds between attempts to reach a store that is away."""

Joined = Callable[[Claims, list[Pool]], Awaitable[None]]
Companion = Callable[[], Coroutine[None, None, None]]
"""Work that follows the store for as long as the node is a member."""


class StoreState(NamedTuple):
    """How things stand with the store."""

    url: str
    joined: bool
    """Whether the store has ever answered since the agent's start."""
    problem: str
    """Why it is away; empty: it is not."""
    confirmed: float | None
    """When the store last confirmed that this node is alive, in seconds since the machine's start."""


@dataclass
class _Alive:
    since: float
    """When the store was last asked, of the times it said that this node is alive."""


class Membership:
    """Keeps one node a member. ``on_joined`` is called each time it has joined, also again after it counted as dead."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        node: NodeRecord,
        pools: Sequence[Pool],
        *,
        on_joined: Joined,
        says: Callable[[], Mapping[str, bytes]],
        fence: Fence,
        companions: Sequence[Companion] = (),
        opened: bool = False,
        lease: int,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """``says``: what the cluster is to know of this node while it lives, by key. ``lease``: seconds after its last
        sign of life until the node counts as dead."""
        self._store = store
        self._identity = identity
        self._node = node
        self._pools = pools
        self._on_joined = on_joined
        self._seconds = lease
        self._says = says
        self._said: dict[str, bytes] = {}
        self._fence = fence
        self._clock = clock
        self._companions = [*companions, self._watch_pools]
        self._accompanying: list[asyncio.Task[None]] = []
        self._pools_since = 0
        self._lease = self._granted = 0
        self._open = opened
        self._task: asyncio.Task[None] | None = None
        self._problem = ""
        self._confirmed: float | None = None
        self._again = asyncio.Event()
        self.claims: Claims | None = None
        """Dealings with the store; None: not joined yet."""

    @property
    def state(self) -> StoreState:
        return StoreState(self._store.url, self.claims is not None, self._problem, self._confirmed)

    @property
    def lease(self) -> int:
        """What this node's records are bound to now."""
        return self._granted

    async def start(self) -> bool:
        """Join, and stay joined; return whether the store was there. Raises IpamError where waiting would not help."""
        try:
            await self._join()
        except (StoreUnavailableError, LeaseExpiredError) as error:  # the latter: a start that took long
            self._away(error)
        self._task = lasting(self._stay(), "membership", log)
        return self.claims is not None

    async def stop(self) -> None:
        """Stop, and say goodbye to nobody: a node that is started again soon was never dead."""
        tasks = [self._task, *self._accompanying] if self._task else self._accompanying
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def leave(self) -> None:
        """Have the node count as dead from now on, once it has stopped. Raises IpamError."""
        if self.claims is None:
            raise StoreUnavailableError(self._problem)
        await self._store.revoke(self._lease)

    def join_again(self) -> None:
        """Compare with the store once more, as something was left undecided or has been changed by others."""
        self._again.set()

    async def _join(self) -> None:
        if not self._open:
            await self._store.open()
            self._open = True
        started = self._clock()
        self._fence.promise(started)
        self._granted = lease = await self._store.grant(self._seconds)
        claims = Claims(self._store, self._identity)
        async with self._kept_alive(lease, started) as alive:
            await claims.register(self._node, lease)
            pools = await claims.seed(self._pools)
            await self._on_joined(claims, pools)
            await self._say(lease)
        old, self._lease = self._lease, lease
        self.claims = claims
        # Whatever the store said while this node was alive all the time still holds
        self._fence.kept(alive.since)
        self._back(alive.since)
        if not self._accompanying:
            self._pools_since = claims.pools_as_of
            self._accompanying = [
                lasting(persistently(work, RETRY), "follower of the store", log) for work in self._companions
            ]
        if old:
            await self._store.revoke(old)

    @contextlib.asynccontextmanager
    async def _kept_alive(self, lease: int, granted: float) -> AsyncIterator[_Alive]:
        """Keep a lease alive while something takes its time."""
        alive = _Alive(granted)

        async def keep() -> None:
            while True:
                await asyncio.sleep(self._seconds / 3)
                now = self._clock()
                with contextlib.suppress(IpamError):  # whoever needs the store finds out
                    if await self._store.keep_alive(lease):
                        alive.since = now

        keeping = asyncio.get_running_loop().create_task(keep(), name="lease")
        try:
            yield alive
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def _stay(self) -> None:
        while True:
            if self._problem:
                await asyncio.sleep(RETRY)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds / 3):
                        await self._again.wait()
            try:
                if self.claims is None or self._again.is_set():
                    self._again.clear()
                    try:
                        await self._join()
                    except BaseException:
                        self._again.set()  # what was to be compared still is
                        raise
                    continue
                now = self._clock()
                if await self._store.keep_alive(self._lease):
                    self._fence.confirmed(now)
                    await self._say(self._lease)
                    self._back(now)
                else:
                    log.warning("this node counted as dead in the store, joining again")
                    await self._join()
            except LeaseExpiredError:
                continue
            except IpamError as error:
                self._away(error)

    async def _say(self, lease: int) -> None:
        """Write what has changed of what the cluster is to know."""
        says = dict(self._says())
        before = self._said if lease == self._lease else {}
        if news := [Put(key, value, lease) for key, value in says.items() if before.get(key) != value]:
            await self._store.transact([], news)
        self._said = says

    async def _watch_pools(self) -> None:
        """Join again when somebody changes a pool."""
        async for changes in self._store.watch(records.POOLS, self._pools_since):
            self._pools_since = changes.revision
            self.join_again()

    def _away(self, error: IpamError) -> None:
        if not self._problem:
            log.error(
                "store away: owned blocks serve on, no other can be claimed",
                extra={"fields": {"store": self._store.url, "why": str(error)}},
            )
        self._problem = str(error)

    def _back(self, when: float) -> None:
        self._confirmed = when
        if self._problem:
            self._problem = ""
            log.warning("store is back", extra={"fields": {"store": self._store.url}})


async def persistently(work: Companion, pause: float) -> None:
    """Do work that ends only with what the store refuses, over and over, so many seconds apart."""
    while True:
        try:
            await work()
        except IpamError as error:
            log.debug("store followed anew", extra={"fields": {"why": str(error)}})
        await asyncio.sleep(pause)
