"""The node's addresses: blocks claimed in the store, addresses handed out of them, everything durable.

A block is used once the store says it is ours and the ledger knows; an address once the ledger has it on disk. After a
crash the ledger and the store are all there is, and they are enough: a block claimed at the last moment is found in the
store, an address whose commit did not happen was never handed out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from config import prefix
from config.model import Config
from config.prefix import BITS, FAMILIES, NAMES, Family
from config.values import matches
from ipam import choice, records
from ipam.choice import Usage
from ipam.claims import Claims
from ipam.errors import (
    AddressInUseError,
    AddressNotInPoolError,
    BlockLimitError,
    IpamError,
    NameTakenError,
    NoPoolError,
    NotRunningError,
    PoolChangedError,
    StoreUnavailableError,
)
from ipam.given import Assignment, Handle
from ipam.holdings import Holdings, IdleBlocks, Key, Taken
from ipam.identity import Identity, StateDirectory
from ipam.ledger import Attachment, Ledger, OwnedBlock
from ipam.membership import Membership, StoreState
from ipam.pool import Pool
from ipam.quarantine import Running, quarantine
from ipam.records import Block, NodeRecord
from ipam.recovery import addresses_in_use, recover, resting_addresses
from ipam.store import Store
from ipam.stores import store_of

log = logging.getLogger("podroute.ipam")

LEDGER_FILE = "ledger.db"
_ARRIVAL = 2.0
"""Seconds that a stop waits for a claim or release of a block under way."""
COOL_DOWN = 5.0
"""Seconds that a released address rests while another one can be had."""

T = TypeVar("T")
BlocksChanged = Callable[[Sequence[Block], Sequence[Block]], None]
"""Called with blocks granted and blocks released; with none of either where pools have changed."""


class Ipam:
    """Addresses for the containers of one node. All calls belong to one event loop."""

    def __init__(
        self,
        config: Config,
        *,
        on_blocks: BlocksChanged | None = None,
        addresses: Sequence[str] = (),
        cool_down: float = COOL_DOWN,
        store: Store | None = None,
        running: Callable[[], Iterable[Running]] | None = None,
    ) -> None:
        """``addresses``: where peers reach this node, for its record. ``store``: an open one in place of the file's.
        ``running``: asked in a thread, where the ledger is blank, for the addresses that containers use all the same.
        """
        self._config = config
        self._on_blocks = on_blocks
        self._addresses = addresses
        self._cool_down = cool_down
        self._given_store = store
        self._running_pods = running
        self._idle = IdleBlocks()
        self._prefetches: dict[Family, asyncio.Task[None]] = {}
        self._tending: asyncio.Task[None] | None = None
        self._store: Store | None = store
        self._state: StateDirectory | None = None
        self._identity = Identity("", "")
        self._membership: Membership | None = None
        self._started = False
        self._ledger = Ledger(os.path.join(config.state_dir, LEDGER_FILE))
        self._pools: list[Pool] = []
        self._holdings = Holdings()
        self._lost: dict[Key, OwnedBlock] = {}
        self._growing = {family: asyncio.Lock() for family in FAMILIES}
        self._turns: dict[Handle, asyncio.Task[Any]] = {}

    async def start(self) -> None:
        """Join the cluster, find what an earlier run left, and have one block per family that a pool here serves.

        A pool without a free block is no error yet: the first allocation that needs one is. With the store away the
        blocks that the ledger remembers serve, and the node joins once the store answers. Raises IpamError; nothing is
        left open then.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Finish what is under way and close ledger and store; blocks and addresses stay ours."""
        self._started = False
        await self._arrived()
        for task in (self._tending, *self._prefetches.values()):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        while self._turns:
            await asyncio.wait(self._turns.values())
        membership, self._membership = self._membership, None
        if membership is not None:
            await membership.stop()
        await self._ledger.close()
        if self._store is not None and self._given_store is None:
            await self._store.close()
        self._store = None
        if self._state is not None:
            self._state.close()
            self._state = None

    async def _arrived(self) -> None:
        """Let a block that is on its way to or from the store arrive, unless the store takes long over it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ARRIVAL):
                for lock in self._growing.values():
                    async with lock:
                        pass

    @property
    def identity(self) -> Identity:
        return self._identity

    def blocks(self) -> list[Block]:
        """Return the blocks that are ours, which is what the agent advertises."""
        return [held.block for held in self._holdings.blocks.values()]

    def usage(self) -> list[Usage]:
        return [Usage(held.block, held.free.used, held.free.size) for held in self._holdings.blocks.values()]

    def pools(self) -> list[Pool]:
        """Return the pools that serve this node, in the order they are used."""
        return list(self._pools)

    def advertised(self, block: Block) -> bool:
        """Tell whether a block's pool is one to be announced."""
        return not any(pool.name == block.pool and pool.not_advertised for pool in self._pools)

    def aggregates(self) -> list[tuple[Pool, bytes, bool]]:
        """Return the super-blocks to be announced: pool, prefix, and whether in place of the blocks in them.

        Each has a block of ours in it, and belongs to this node's value of the label: a block from before the label
        was changed lies in others' part of the network. What the store did not say yet is taken to be so.
        """
        found: dict[tuple[str, bytes], tuple[Pool, bytes, bool]] = {}
        claims = self._membership.claims if self._membership is not None else None
        named = {pool.name: pool for pool in self._pools}
        for block in self.blocks():
            pool = named.get(block.pool)
            if pool is None or pool.split is None or pool.split.aggregate == "none" or pool.not_advertised:
                continue
            wire = pool.part(block.prefix).prefix
            if claims is None or any(one.prefix == wire for one in claims.supers.mine(pool)):
                found[pool.name, wire] = pool, wire, pool.split.aggregate == "only"
        return list(found.values())

    def lost(self) -> list[OwnedBlock]:
        """Return blocks whose addresses containers here still use though the store does not say they are ours."""
        return list(self._lost.values())

    def store(self) -> StoreState:
        """Return how things stand with the store."""
        if self._membership is None:
            return StoreState(self._config.store.url, False, "the agent is starting or stopping", None)
        return self._membership.state

    async def lookup(self, handle: Handle) -> Attachment | None:
        return self._ledger.by_handle.get(handle)

    async def attachments(self) -> list[Attachment]:
        """Return everything that has an address."""
        return list(self._ledger.by_handle.values())

    async def allocate(
        self,
        handle: Handle,
        *,
        families: Iterable[Family] | None = None,
        pools: Sequence[str] = (),
        addresses: Sequence[str] = (),
        attributes: Mapping[str, Any] | None = None,
    ) -> list[Assignment]:
        """Give a handle one address per family, all or none; what it returns is on disk.

        ``families``: without it, every family that a pool here serves. ``pools``: names to choose from. ``addresses``:
        certain ones, each instead of one chosen for its family. A handle that has addresses gets the same again, with
        the new attributes. Cancelled, it still happens: release the handle. Raises IpamError.
        """
        key = Handle(*handle)
        return await self._in_turn(key, lambda: self._allocate(key, families, pools, addresses, attributes))

    async def release(self, handle: Handle) -> list[Assignment]:
        """Take a handle's addresses back and return them; none where it is not known. Raises LedgerError."""
        key = Handle(*handle)
        return await self._in_turn(key, lambda: self._release(key))

    def shared(self) -> Store:
        """Return the cluster's store, for ipam.cluster. Raises NotRunningError."""
        if self._store is None or self._membership is None:
            raise NotRunningError("the agent is starting or stopping: try again")
        if self._membership.claims is None:
            raise StoreUnavailableError(self._membership.state.problem)
        return self._store

    def holder(self, address: str) -> Attachment | None:
        """Return who has an address. Raises AddressNotInPoolError for what is none."""
        return self._ledger.by_address.get(_parse(address)[1][1:])

    def owns(self, family: Family, block: bytes) -> bool:
        return (family, block) in self._holdings.blocks

    def assigned(self, block: Block) -> list[tuple[Attachment, Assignment]]:
        """Return the addresses of a block that are in use here, also where it is not ours any more."""
        return [
            (attachment, one)
            for attachment in self._ledger.by_handle.values()
            for one in attachment.assignments
            if (one.family, one.block) == _key(block)
        ]

    def picture(self, family: Family, wire: bytes) -> list[str]:
        """Return the state of each address of a block of ours, in order: used, reserved, resting or free."""
        held = self._holdings.blocks.get((family, wire))
        return [held.free.state(ordinal) for ordinal in range(held.free.size)] if held else []

    def compare_again(self) -> None:
        """Bring blocks and records together once more, soon."""
        if self._membership is not None:
            self._membership.join_again()

    # Start

    async def _start(self) -> None:
        config, node = self._config, self._config.node
        self._state = await asyncio.to_thread(StateDirectory, config.state_dir)
        self._identity = await asyncio.to_thread(self._state.identity, node.name)
        self._pools = [Pool.of(name, pool) for name, pool in config.pools_here().items()]
        await self._ledger.open()
        if self._ledger.blank and self._running_pods is not None:
            running = self._running_pods
            await quarantine(self._ledger, self._pools, await asyncio.to_thread(lambda: list(running())))
        if self._store is None:
            self._store = store_of(config.store)
        ours = self._pools
        uuid, seen_at = self._identity.uuid, records.now()
        self._membership = Membership(
            self._store,
            self._identity,
            NodeRecord(
                node.name,
                uuid,
                node.asn,
                node.router_id,
                node.labels,
                self._addresses,
                seen_at,
                config.bgp.cluster_id or "",
            ),
            ours,
            on_joined=self._joined,
            opened=self._given_store is not None,
            usage=self._summary,
            lease=config.ipam.lease,
        )
        if not await self._membership.start():
            await self._adopt_remembered()
        self._tending = asyncio.get_running_loop().create_task(self._tend(), name="blocks")
        self._started = True

    def _summary(self) -> dict[str, int]:
        """Return how many addresses are in use, by pool."""
        used: Counter[str] = Counter()
        for held in self._holdings.blocks.values():
            used[held.block.pool] += held.free.used
        return dict(used)

    async def _adopt_remembered(self) -> None:
        """Go on with the blocks that the ledger remembers, as the store is away."""
        me = self._identity
        blocks = [
            Block(b.family, b.prefix, b.pool, me.name, me.uuid, b.generation) for b in self._ledger.blocks.values()
        ]
        used, resting = addresses_in_use(self._ledger), resting_addresses(self._ledger, self._ledger.blocks)
        async with self._growing[4], self._growing[6]:
            await self._adopt(blocks, used, resting)

    async def _joined(self, claims: Claims, pools: Sequence[Pool]) -> None:
        """Bring what we have in line with what the store says, and have one block per family."""
        async with self._growing[4], self._growing[6]:
            labels = self._config.node.labels
            before, self._pools = self._pools, [pool for pool in pools if matches(pool.nodes, labels)]
            for pool in self._pools:
                if pool.split:
                    await claims.supers.read(pool)
            found = await recover(self._ledger, claims, self._pools)
            self._lost = found.lost
            self._drop([key for key in self._holdings.blocks if key not in found.owned])
            await self._adopt(list(found.owned.values()), found.used, found.resting)
            usable = choice.labelled(choice.automatic(self._pools), labels)
            by_family = {family: [pool for pool in usable if pool.family == family] for family in FAMILIES}
            wants = {f: pools for f, pools in by_family.items() if pools and not self._holdings.serves(pools)}
            if wants:
                await self._claim(claims, wants)
            if before != self._pools and self._on_blocks is not None:
                self._on_blocks([], [])

    def _drop(self, keys: Sequence[Key]) -> None:
        """Give up blocks that the store says are not ours: others may use their addresses."""
        gone = [self._holdings.remove(key).block for key in keys]
        for block in gone:
            log.error(
                "BLOCK LOST: the store says it is not this node's any more; it is withdrawn, and containers here that "
                "use its addresses are cut off: delete them",
                extra={"fields": {"block": block.cidr, "pool": block.pool}},
            )
        if gone and self._on_blocks is not None:
            self._on_blocks([], gone)

    # Blocks

    async def _claim(self, claims: Claims, wants: Mapping[Family, Sequence[Pool]]) -> bool:
        """Claim one block per family and use it; return whether there was one for each."""
        found = await claims.claim(list(wants.values()))
        await self._grant([block for block in found if block is not None])
        for family, block in zip(wants, found, strict=True):
            if block is None:
                names = ", ".join(pool.name for pool in wants[family])
                log.warning("no free block", extra={"fields": {"family": NAMES[family], "pools": names}})
        return None not in found

    async def _grant(self, blocks: Sequence[Block]) -> None:
        await self._adopt(blocks)
        for block in blocks:
            log.info("block granted", extra={"fields": {"block": block.cidr, "pool": block.pool}})

    async def _adopt(
        self,
        blocks: Sequence[Block],
        used: Mapping[Key, Iterable[int]] | None = None,
        resting: Mapping[Key, Iterable[tuple[int, float]]] | None = None,
    ) -> None:
        """Use blocks that the store has for us, once the ledger remembers them."""
        if any((block.family, block.prefix) in self._lost for block in blocks):
            used = addresses_in_use(self._ledger)
        news = [OwnedBlock(block.family, block.prefix, block.pool, block.generation) for block in blocks]
        if fresh := [block for block in news if self._ledger.blocks.get((block.family, block.prefix)) != block]:
            await self._ledger.own(fresh)
        granted = []
        for block in blocks:
            key = (block.family, block.prefix)
            self._lost.pop(key, None)
            if key in self._holdings.blocks:
                self._holdings.refresh(block)
                continue
            pool = next((pool for pool in self._pools if pool.name == block.pool), None)
            self._holdings.add(block, (used or {}).get(key, ()), (resting or {}).get(key, ()), pool)
            granted.append(block)
        if granted and self._on_blocks is not None:
            self._on_blocks(granted, [])

    # Addresses

    def _in_turn(self, handle: Handle, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Future[T]:
        """Run work on a handle after all that came before for the same one; it goes on if the caller is cancelled."""
        if not self._started:
            raise NotRunningError("the agent is starting or stopping: try again")
        before = self._turns.get(handle)

        async def turn() -> T:
            if before is not None:
                await asyncio.wait([before])
            return await work()

        task = asyncio.get_running_loop().create_task(turn())
        self._turns[handle] = task

        def ended(_: asyncio.Task[T]) -> None:
            if self._turns.get(handle) is task:
                del self._turns[handle]
            if not task.cancelled():
                task.exception()  # seen, should the caller be gone

        task.add_done_callback(ended)
        return asyncio.shield(task)

    async def _allocate(
        self,
        handle: Handle,
        families: Iterable[Family] | None,
        pools: Sequence[str],
        addresses: Sequence[str],
        attributes: Mapping[str, Any] | None,
    ) -> list[Assignment]:
        had = self._ledger.given.get(handle)
        if had is not None:
            if attributes is not None and dict(attributes) != self._ledger.by_handle[handle].attributes:
                await self._ledger.annotate(handle, attributes)
            return list(had)
        mine = [pool for pool in self._pools if pool.name in pools] or choice.automatic(self._pools) or self._pools
        wanted = sorted({pool.family for pool in mine} if families is None else set(families))
        if not wanted and not addresses:
            raise NoPoolError(f"no pool serves node {self._config.node.name}: add one to `pools`, or check its `nodes`")
        taken: list[Taken] = []
        try:
            for address in addresses:
                taken.append(await self._take_exactly(address, pools))
            for family in wanted:
                if not any(one.held.block.family == family for one in taken):
                    taken.append(await self._take(family, pools))
            assignments = [one.assignment for one in taken]
            await self._ledger.add(handle, assignments, attributes or {})
            if lost := [one.held.block for one in taken if _key(one.held.block) not in self._holdings.blocks]:
                await self._ledger.remove(handle)
                raise NotRunningError(f"block {lost[0].cidr} was lost at this moment: try again")
        except BaseException:
            for one in taken:
                self._holdings.undo(one)
            raise
        return assignments

    async def _release(self, handle: Handle) -> list[Assignment]:
        gone = await self._ledger.remove(handle)
        for assignment in gone:
            self._holdings.give_back(assignment, time.monotonic())
        return list(gone)

    async def _take(self, family: Family, names: Sequence[str]) -> Taken:
        """Take a free address: one that has rested, else, with many free ones, the one that rested longest.

        Where few are free another block is claimed rather than an address given again at once; a node with much coming
        and going would otherwise collect blocks that it does not need.
        """
        pools = self._serving(family, names)
        if found := self._rested(pools):
            self._look_ahead(family, pools)
            return found
        async with self._growing[family]:
            if found := self._rested(pools):  # whoever had the lock before us may have claimed
                return found
            refusal: IpamError
            try:
                self._check_limit(family)
                if await self._claim(self._running(), {family: pools}) and (found := self._rested(pools)):
                    return found
                refusal = choice.exhausted(pools, self.usage(), self._config.node.name)
            except StoreUnavailableError as error:
                have = "is full" if self._holdings.serves(pools) else "is missing"
                text = f"this node's {NAMES[family]} block {have} and no other one can be claimed: {error}"
                refusal = StoreUnavailableError(text)
            except BlockLimitError as error:
                refusal = error
            except (PoolChangedError, NameTakenError):
                if self._membership is not None:
                    self._membership.join_again()
                raise
            if found := self._holdings.take_oldest(pools):
                return found
            raise refusal

    def _check_limit(self, family: Family) -> None:
        limit = self._config.ipam.blocks_per_node
        own = sum(of == family for of, _ in self._holdings.blocks)
        if limit is not None and own >= limit:
            raise BlockLimitError(
                f"every address of this node's {own} {NAMES[family]} blocks is in use, and ipam.blocksPerNode allows "
                f"{limit}: delete containers, or raise it in the file of node {self._config.node.name}"
            )

    def _look_ahead(self, family: Family, pools: Sequence[Pool]) -> None:
        """Fetch another block while an eighth of one is left, or one address, so that nobody waits for it."""
        few = max(1, min(1 << (BITS[family] - pool.block_size) for pool in pools) // 8)
        limit = self._config.ipam.blocks_per_node
        if (
            self._holdings.free(pools) > few
            or family in self._prefetches
            or (limit is not None and sum(of == family for of, _ in self._holdings.blocks) >= limit)
        ):
            return

        async def fetch() -> None:
            async with self._growing[family]:
                if self._holdings.free(pools) <= few:
                    with contextlib.suppress(IpamError):  # whoever needs the block finds out, and says so
                        await self._claim(self._running(), {family: pools})

        task = asyncio.get_running_loop().create_task(fetch(), name="prefetch")
        self._prefetches[family] = task
        task.add_done_callback(lambda _: self._prefetches.pop(family, None))

    async def _tend(self) -> None:
        """Give empty blocks back that have been so for a while; one per family stays."""
        after = self._config.ipam.idle_after
        while True:
            await asyncio.sleep(min(after / 4, 60.0))
            now = time.monotonic()
            for family in FAMILIES:
                async with self._growing[family]:
                    await self._give_back_idle(family, now, after)

    async def _give_back_idle(self, family: Family, now: float, after: float) -> None:
        for block in self._idle.due(self._holdings, family, now, after):
            await self._give_back(block)

    async def _give_back(self, block: Block) -> None:
        """Give an unused block up: first nobody uses it here, at last the store says so. A crash may undo it."""
        try:
            claims = self._running()
        except IpamError:
            return
        self._holdings.remove(_key(block))
        if self._on_blocks is not None:
            self._on_blocks([], [block])
        try:
            await self._ledger.disown(*_key(block))
            await claims.give_back(block)
        except IpamError as error:
            log.warning("block not given back", extra={"fields": {"block": block.cidr, "why": str(error)}})
            if self._membership is not None:
                self._membership.join_again()
            return
        log.info("block given back: it was empty", extra={"fields": {"block": block.cidr, "pool": block.pool}})

    def _rested(self, pools: Sequence[Pool]) -> Taken | None:
        found = self._holdings.take(pools, time.monotonic(), self._cool_down)
        if found is None and not self._holdings.crowded(pools):
            found = self._holdings.take_oldest(pools)
        return found

    async def _take_exactly(self, address: str, names: Sequence[str]) -> Taken:
        family, wire = _parse(address)
        number = int.from_bytes(wire[1:], "big")
        pools = self._serving(family, names, exact=True)
        pool = next((pool for pool in pools if pool.index(number) is not None), None)
        if pool is None:
            usable = ", ".join(f"{pool.name} ({pool.cidr})" for pool in pools)
            raise AddressNotInPoolError(f"address {address} is in no pool that serves this node: {usable}")
        key: Key = (family, prefix.make(family, number, pool.block_size))
        if key not in self._holdings.blocks:
            async with self._growing[family]:
                if key not in self._holdings.blocks:
                    await self._claim_for(address, pool, number)
        taken = self._holdings.take_exactly(key, number)
        if taken is None:
            holder = self._ledger.by_address.get(wire[1:])
            by = f"by {holder.handle}" if holder else "by a request that is under way"
            raise AddressInUseError(f"address {address} is in use {by}")
        return taken

    async def _claim_for(self, address: str, pool: Pool, number: int) -> None:
        """Claim the block of one address that was asked for."""
        index = pool.index(number)
        assert index is not None
        try:
            block = await self._running().claim_exactly(pool, index)
        except AddressInUseError as error:
            raise AddressInUseError(f"address {address} cannot be had here: {error}") from error
        await self._grant([block])

    def _serving(self, family: Family, names: Sequence[str], *, exact: bool = False) -> list[Pool]:
        found = choice.serving(self._pools, family, names, exact=exact)
        if not found:
            if self._membership is not None and self._membership.claims is None:
                problem = self._membership.state.problem
                raise StoreUnavailableError(f"no {NAMES[family]} pool is known yet, as {problem}")
            raise choice.none_serves(self._pools, family, names, self._config.node.name)
        usable = choice.labelled(found, self._config.node.labels)
        if not usable:
            raise choice.no_label(found, self._config.node.name)
        return usable

    def _running(self) -> Claims:
        """Return the dealings with the store; NotRunningError, or StoreUnavailableError before it first answered."""
        if self._membership is None:
            raise NotRunningError("the agent is stopping: try again")
        if self._membership.claims is None:
            raise StoreUnavailableError(self._membership.state.problem)
        return self._membership.claims


def _key(block: Block) -> Key:
    return block.family, block.prefix


def _parse(address: str) -> tuple[Family, bytes]:
    try:
        return prefix.of_address(address)
    except ValueError:
        raise AddressNotInPoolError(f'"{address}" is no IPv4 or IPv6 address') from None
