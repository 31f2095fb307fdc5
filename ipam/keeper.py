"""The node's blocks: claimed as they are needed, addresses taken out of them, given back when they are empty.

What the store says is used only once the ledger remembers it, and forgotten there before it is given back: after a
crash the two are enough to know what is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from config import prefix
from config.model import Config
from config.prefix import BITS, FAMILIES, NAMES, Family
from config.values import matches
from ipam import choice
from ipam.choice import Usage
from ipam.claims import Claims
from ipam.errors import (
    AddressInUseError,
    AddressNotInPoolError,
    BlockLimitError,
    IpamError,
    NameTakenError,
    NotRunningError,
    PoolChangedError,
    StoreUnavailableError,
)
from ipam.holdings import Holdings, IdleBlocks, Key, Taken
from ipam.identity import Identity
from ipam.lasting import lasting
from ipam.ledger import Ledger, OwnedBlock
from ipam.loans import Borrower, Lender, is_loan
from ipam.membership import Membership
from ipam.pool import Pool
from ipam.records import Block
from ipam.recovery import recover

log = logging.getLogger("podroute.ipam")

_ARRIVAL = 2.0
"""Seconds that a stop waits for a claim or release of a block under way."""

ClaimResult = Literal["granted", "exhausted", "failed"]
"""``exhausted``: the pools have no block left; ``failed``: the store did not answer, or refused."""

BlocksChanged = Callable[[Sequence[Block], Sequence[Block]], None]
"""Called with blocks granted and blocks released."""


class BlockKeeper:
    """Belongs to one event loop. ``attach`` brings it together with the store before anything else is called."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        *,
        on_blocks: BlocksChanged | None,
        on_standing: Callable[[], None],
        cool_down: float,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._on_blocks = on_blocks
        self._on_standing = on_standing
        self._cool_down = cool_down
        self.pools: list[Pool] = []
        """Those that serve this node, in the order they are used."""
        self.not_advertised: set[str] = set()
        """Pools whose blocks are not announced, also of those that serve this node no more: it may have blocks yet."""
        self.holdings = Holdings()
        self.lost: dict[Key, OwnedBlock] = {}
        """Blocks whose addresses containers here use though the store does not say they are ours."""
        self.claimed: Counter[ClaimResult] = Counter()
        """What became of the claims of blocks so far."""
        self._growing = {family: asyncio.Lock() for family in FAMILIES}
        self._idle = IdleBlocks()
        self._dry: set[frozenset[str]] = set()
        """Names of pools out of which no block could be had when one was asked for last."""
        self._background: dict[str, asyncio.Task[Any]] = {}
        self._membership: Membership | None = None
        self.lender: Lender | None = None
        self._borrower: Borrower | None = None

    def attach(self, membership: Membership, lender: Lender, borrower: Borrower) -> None:
        self._membership, self.lender, self._borrower = membership, lender, borrower

    def start(self) -> None:
        """Give back, from now on, what has been empty for a while."""
        self._in_background("tend", self._tend())

    async def stop(self) -> None:
        """Let a block that is on its way to or from the store arrive, unless the store takes long over it, and stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ARRIVAL):
                for lock in self._growing.values():
                    async with lock:
                        pass
        self.detach()  # who waits for a block is told so
        for task in list(self._background.values()):
            task.cancel()
            await asyncio.wait([task])

    def detach(self) -> None:
        """Have no dealings with the store any more."""
        self._membership = None

    @property
    def busy(self) -> bool:
        """Whether blocks or loans are on their way without anybody waiting for them."""
        return bool(self._background.keys() - {"tend"})

    def usage(self) -> list[Usage]:
        return [
            Usage(held.block, held.free.used, held.free.reserved, held.free.size)
            for held in self.holdings.blocks.values()
        ]

    def gave_back(self, family: Family, block: bytes) -> None:
        """An address of a block was released: one on loan goes back at once."""
        held = self.holdings.blocks.get((family, block))
        if held is not None and held.block.lender:
            self._in_background(f"return {NAMES[family]}", self._return_loans(family))

    def compare_again(self) -> None:
        """Bring blocks and records together once more, soon."""
        if self._membership is not None:
            self._membership.join_again()

    async def adopt_remembered(self, me: Identity) -> None:
        """Go on with the blocks that the ledger remembers, as the store is away."""
        pools = {pool.name: pool for pool in self.pools}
        blocks = [
            Block(b.family, b.prefix, b.pool, me.name, me.uuid, b.generation, lender="?" if loan else "")
            for b in self._ledger.blocks.values()
            for loan in (is_loan(b.family, b.prefix, pools.get(b.pool)),)
        ]
        async with self._growing[4], self._growing[6]:
            await self._adopt(blocks)

    async def joined(self, claims: Claims, pools: Sequence[Pool]) -> None:
        """Bring what we have in line with what the store says, and have one block per family."""
        async with self._growing[4], self._growing[6]:
            labels = self._config.node.labels
            self.pools = [pool for pool in pools if matches(pool.nodes, labels)]
            self.not_advertised = {pool.name for pool in pools if pool.not_advertised}
            for pool in self.pools:
                if pool.split:
                    await claims.supers.read(pool)
            found = await recover(self._ledger, claims, self.pools)
            self.lost = found.lost
            for loan in found.surplus:
                held = self.holdings.blocks.get(_key(loan))
                if held is not None and held.free.used:  # taken, and on its way into the ledger
                    found.owned[_key(loan)] = loan
                else:
                    await self._return(loan)
            self._drop([key for key in self.holdings.blocks if key not in found.owned])
            if self.lender is not None:
                # Of a block that serves already the ledger knows more than the record as it was read
                new = [block for key, block in found.owned.items() if key not in self.holdings.blocks]
                await self.lender.remember(new)
            await self._adopt(list(found.owned.values()))
            if self.lender is not None:
                await self.lender.settle()
            await self.forget_lost()  # what was released meanwhile, or had been lent by a block that was lost
            usable = choice.labelled(choice.automatic(self.pools), labels)
            by_family = {family: [pool for pool in usable if pool.family == family] for family in FAMILIES}
            wants = {f: pools for f, pools in by_family.items() if pools and not self.holdings.serves(pools)}
            if wants:
                await self._claim(claims, wants)

    def _drop(self, keys: Sequence[Key]) -> None:
        """Give up blocks that the store says are not ours: others may use their addresses."""
        gone = [self.holdings.remove(key).block for key in keys]
        for block in gone:
            log.error(
                "BLOCK LOST: the store says it is not this node's any more; it is withdrawn, and containers here that "
                "use its addresses are cut off: delete them",
                extra={"fields": {"block": block.cidr, "pool": block.pool}},
            )
        if gone and self._on_blocks is not None:
            self._on_blocks([], gone)

    async def _claim(self, claims: Claims, wants: Mapping[Family, Sequence[Pool]]) -> bool:
        """Claim one block per family and use it; return whether there was one for each."""
        with self._counted():
            found = await claims.claim(list(wants.values()))
        await self._grant([block for block in found if block is not None])
        for family, block in zip(wants, found, strict=True):
            names = [pool.name for pool in wants[family]]
            self.claimed["exhausted" if block is None else "granted"] += 1
            if block is not None:
                self._dry.discard(frozenset(names))
                continue
            self._dry.add(frozenset(names))
            log.warning("no free block", extra={"fields": {"family": NAMES[family], "pools": ", ".join(names)}})
        return None not in found

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a claim that fails."""
        try:
            yield
        except IpamError:
            self.claimed["failed"] += 1
            raise

    async def _grant(self, blocks: Sequence[Block]) -> None:
        await self._adopt(blocks)
        for block in blocks:
            log.info("block granted", extra={"fields": {"block": block.cidr, "pool": block.pool}})

    async def _adopt(self, blocks: Sequence[Block]) -> None:
        """Use blocks that the store has for us, once the ledger remembers them."""
        news = [OwnedBlock(block.family, block.prefix, block.pool, block.generation) for block in blocks]
        if fresh := [block for block in news if self._ledger.blocks.get((block.family, block.prefix)) != block]:
            await self._ledger.own(fresh)
        granted = []
        wall, mono = time.time(), time.monotonic()
        for block in blocks:
            key = (block.family, block.prefix)
            self.lost.pop(key, None)
            if key in self.holdings.blocks:
                self.holdings.refresh(block)
                continue
            pool = next((pool for pool in self.pools if pool.name == block.pool), None)
            inside = self._ledger.inside(*key)
            # A clock that was set back must not make an address rest longer than once
            resting = [(address, mono - max(0.0, wall - at)) for address, at in inside.released]
            self.holdings.add(block, inside.used, inside.kept, resting, pool)
            granted.append(block)
        if granted and self._on_blocks is not None:
            self._on_blocks(granted, [])

    async def forget_lost(self) -> None:
        """Forget lost blocks of which no container has an address any more."""
        for key in [key for key in self.lost if not self._ledger.inside(*key).used]:
            if self.lost.pop(key, None) is not None:
                await self._ledger.disown(*key)
        self._on_standing()

    async def take(self, family: Family, names: Sequence[str]) -> Taken:
        """Take a free address: one that has rested, else, with many free ones, the one that rested longest.

        Where few are free another block is claimed rather than an address given again at once; a node with much coming
        and going would otherwise collect blocks that it does not need.
        """
        pools = self._serving(family, names)
        if found := self._rested(pools):
            self.look_ahead(family, pools)
            return found
        async with self._growing[family]:
            if found := self._rested(pools):  # whoever had the lock before us may have claimed
                return found
            refusal: IpamError
            try:
                self._check_limit(family)
                if await self._claim(self.claims(), {family: pools}) and (found := self._rested(pools)):
                    return found
                if found := await self._borrow(family, pools):
                    return found
                refusal = choice.exhausted(pools, self.usage(), self._config.node.name)
            except StoreUnavailableError as error:
                have = "is full" if self.holdings.serves(pools) else "is missing"
                refusal = StoreUnavailableError(
                    f"this node's {NAMES[family]} block {have} and no other one can be claimed: {error}"
                )
            except BlockLimitError as error:
                refusal = error
            except (PoolChangedError, NameTakenError):
                self.compare_again()
                raise
            if found := self.holdings.take_oldest(pools):
                return found
            raise refusal

    def lacking(self, family: Family, names: Sequence[str], *, full: bool) -> str:
        """Return why nobody would get an address now; empty: somebody would, as far as is known.

        ``full``: also where there are blocks, and nothing is free in them. Where nothing is free a block is asked for,
        lest a node that is sent no containers for this never learn that there is one again.
        """
        own = self.holdings.count(family)
        if self._config.ipam.borrowing or (own and not full):
            return ""
        node = self._config.node.name
        try:
            pools = self._serving(family, names)
            if self.holdings.free(pools):
                return ""
            self._check_limit(family)
            self.claims()
        except IpamError as error:
            return str(error)
        self.look_ahead(family, pools)
        if frozenset(pool.name for pool in pools) in self._dry:
            return str(choice.exhausted(pools, self.usage(), node))
        return "" if own else f"node {node} has no {NAMES[family]} block yet"

    async def _borrow(self, family: Family, pools: Sequence[Pool]) -> Taken | None:
        """Take an address that another node lends, where borrowing is on and nothing of our own is left."""
        if not self._config.ipam.borrowing or self._borrower is None or self.holdings.resting(pools):
            return None
        asking = asyncio.get_running_loop().create_task(self._borrower.borrow(family, pools))
        self._background[f"borrow {NAMES[family]}"] = asking
        try:
            loan = await asking
        except asyncio.CancelledError:
            if self._membership is None:
                raise NotRunningError("the agent is stopping: try again") from None
            asking.cancel()
            raise
        except IpamError:
            self.compare_again()  # something may be on loan to us now
            raise
        finally:
            del self._background[f"borrow {NAMES[family]}"]
        if loan is None:
            return None
        await self._adopt([loan])
        return self.holdings.take_exactly(_key(loan), int.from_bytes(loan.prefix[1:], "big"))

    def _check_limit(self, family: Family) -> None:
        limit = self._config.ipam.blocks_per_node
        own = self.holdings.count(family)
        if limit is not None and own >= limit:
            raise BlockLimitError(
                f"every address of this node's {own} {NAMES[family]} blocks is in use, and ipam.blocksPerNode allows "
                f"{limit}: delete containers, or raise it in the file of node {self._config.node.name}"
            )

    def look_ahead(self, family: Family, pools: Sequence[Pool]) -> None:
        """Fetch another block while an eighth of one is left, or one address, so that nobody waits for it."""
        few = max(1, min(1 << (BITS[family] - pool.block_size) for pool in pools) // 8)
        limit = self._config.ipam.blocks_per_node
        if self.holdings.free(pools) > few or (limit is not None and self.holdings.count(family) >= limit):
            return

        async def fetch() -> None:
            async with self._growing[family]:
                if self.holdings.free(pools) <= few:
                    with contextlib.suppress(IpamError):  # whoever needs the block finds out, and says so
                        await self._claim(self.claims(), {family: pools})

        self._in_background(f"prefetch {NAMES[family]}", fetch())

    def _in_background(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run work that nobody waits for, unless the same is under way."""
        if name in self._background:
            work.close()
            return
        task = lasting(work, name, log)
        self._background[name] = task
        task.add_done_callback(lambda _: self._background.pop(name, None))

    async def _tend(self) -> None:
        """Give empty blocks back that have been so for a while; one per family stays."""
        after = self._config.ipam.idle_after
        while True:
            await asyncio.sleep(min(after / 4, 60.0))
            now = time.monotonic()
            for family in FAMILIES:
                async with self._growing[family]:
                    await self.give_back_idle(family, now, after)
                await self._return_loans(family)

    async def give_back_idle(self, family: Family, now: float, after: float) -> None:
        for block in self._idle.due(self.holdings, family, now, after):
            if not self.holdings.blocks[_key(block)].free.used:  # nor in the meantime
                await self._give_back(block)

    async def _return_loans(self, family: Family) -> None:
        """Return borrowed addresses that no container has any more."""
        async with self._growing[family]:
            for loan in self.holdings.unused_loans(family):
                if not self.holdings.blocks[_key(loan)].free.used:
                    await self._return(loan)

    async def _return(self, loan: Block) -> None:
        """Return one borrowed address: as with a block, first nobody uses it here."""
        if self._borrower is None:
            return
        if _key(loan) in self.holdings.blocks:
            self.holdings.remove(_key(loan))
            if self._on_blocks is not None:
                self._on_blocks([], [loan])
        try:
            await self._ledger.disown(*_key(loan))
            await self._borrower.give_back(loan, next((p for p in self.pools if p.name == loan.pool), None))
        except IpamError as error:
            log.warning("loan not returned", extra={"fields": {"address": loan.cidr, "why": str(error)}})
            self.compare_again()

    async def _give_back(self, block: Block) -> None:
        """Give an unused block up: first nobody uses it here, at last the store says so. A crash may undo it."""
        try:
            claims = self.claims()
        except IpamError:
            return
        self.holdings.remove(_key(block))
        if self._on_blocks is not None:
            self._on_blocks([], [block])
        try:
            await self._ledger.disown(*_key(block))
            await claims.give_back(block)
        except IpamError as error:
            log.warning("block not given back", extra={"fields": {"block": block.cidr, "why": str(error)}})
            self.compare_again()
            return
        log.info("block given back: it was empty", extra={"fields": {"block": block.cidr, "pool": block.pool}})

    def _rested(self, pools: Sequence[Pool]) -> Taken | None:
        found = self.holdings.take(pools, time.monotonic(), self._cool_down)
        if found is None and not self.holdings.crowded(pools):
            found = self.holdings.take_oldest(pools)
        return found

    async def take_exactly(self, address: str, names: Sequence[str]) -> Taken:
        family, wire = parse(address)
        number = int.from_bytes(wire[1:], "big")
        pools = self._serving(family, names, exact=True)
        pool = next((pool for pool in pools if pool.index(number) is not None), None)
        if pool is None:
            usable = ", ".join(f"{pool.name} ({pool.cidr})" for pool in pools)
            raise AddressNotInPoolError(f"address {address} is in no pool that serves this node: {usable}")
        key: Key = (family, prefix.make(family, number, pool.block_size))
        if key not in self.holdings.blocks:
            async with self._growing[family]:
                if key not in self.holdings.blocks:
                    await self._claim_for(address, pool, number)
        taken = self.holdings.take_exactly(key, number)
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
            with self._counted():
                block = await self.claims().claim_exactly(pool, index)
        except AddressInUseError as error:
            raise AddressInUseError(f"address {address} cannot be had here: {error}") from error
        self.claimed["granted"] += 1
        await self._grant([block])

    def _serving(self, family: Family, names: Sequence[str], *, exact: bool = False) -> list[Pool]:
        found = choice.serving(self.pools, family, names, exact=exact)
        if not found:
            if self._membership is not None and self._membership.claims is None:
                problem = self._membership.state.problem
                raise StoreUnavailableError(f"no {NAMES[family]} pool is known yet, as {problem}")
            raise choice.none_serves(self.pools, family, names, self._config.node.name)
        usable = choice.labelled(found, self._config.node.labels)
        if not usable:
            raise choice.no_label(found, self._config.node.name)
        return usable

    def claims(self) -> Claims:
        """Return the dealings with the store; NotRunningError, or StoreUnavailableError before it first answered."""
        if self._membership is None:
            raise NotRunningError("the agent is stopping: try again")
        if self._membership.claims is None:
            raise StoreUnavailableError(self._membership.state.problem)
        return self._membership.claims


def _key(block: Block) -> Key:
    return block.family, block.prefix


def parse(address: str) -> tuple[Family, bytes]:
    """Return an address as a host prefix. Raises AddressNotInPoolError for what is none."""
    try:
        return prefix.of_address(address)
    except ValueError:
        raise AddressNotInPoolError(f'"{address}" is no IPv4 or IPv6 address') from None
