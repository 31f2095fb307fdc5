"""Single addresses that a node with a full pool borrows from a node that has some left (``ipam.borrowing``).

The borrower writes a request; the lender takes an address out of its own in its ledger, so that it never hands it out,
and enters the loan in the block's record, in one transaction with the answer. That record is the truth: the borrower
uses the address only after it has read the answer, and takes itself out of the record when it is done; the lender frees
the address when the record does not name it any more.

A loan outlives the lender's agent, and also the lender: the record of a reclaimed block stays until all is returned.
A borrower that is reclaimed has returned everything by that.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace

from config import prefix
from config.prefix import BITS, Family
from ipam import records
from ipam.cluster import QUARANTINE, put_block
from ipam.errors import IpamError, LeaseExpiredError
from ipam.given import Assignment, Handle
from ipam.holdings import Holdings
from ipam.identity import Identity
from ipam.ledger import Attachment, Ledger
from ipam.pool import Pool
from ipam.records import Block, Loan, Request
from ipam.store import Delete, Entry, Put, Range, Store, Unchanged, Write

log = logging.getLogger("podroute.ipam")

NETWORK = "-loan"
"""Network of the handles under which a lender's ledger keeps what it has lent. No network of containers can be called
so (CNI: names begin with a letter or digit)."""
PATIENCE = 3.0
"""Seconds that a lender has to answer."""
_SETTLE = 30.0
_LENDERS = 4
"""How many are asked, one after the other."""


class Lender:
    """Answers requests, and frees what was returned."""

    def __init__(
        self,
        store: Store,
        me: Identity,
        ledger: Ledger,
        holdings: Holdings,
        serving: Callable[[Family, Sequence[str]], list[Pool]],
        on_change: Callable[[], None],
        on_lost: Callable[[], Awaitable[None]],
    ) -> None:
        """``serving``: the pools of these names that give addresses here. ``on_change``: called when loans changed.
        ``on_lost``: called when what had been lent out of a block that is not ours any more is forgotten.
        """
        self._store = store
        self._me = me
        self._ledger = ledger
        self._holdings = holdings
        self._serving = serving
        self._on_change = on_change
        self._on_lost = on_lost
        self._busy = asyncio.Lock()

    async def run(self) -> None:
        """Answer what is asked; returns when what happened meanwhile can no longer be told. Raises IpamError."""
        mine = records.requests_to(self._me.name)
        listing = await self._store.list(mine)
        await self.settle()
        for request in listing.entries:
            await self._answer(request)
        async for changes in self._store.watch(mine, listing.revision):
            if changes.complete:
                return
            for _, entry in changes.changes:
                if entry is not None:
                    await self._answer(entry)

    async def settle_returns(self) -> None:
        """Free what comes back, and lend nothing: borrowing was turned off. Raises IpamError."""
        while self._ledger.by_handle.of_network(NETWORK):
            await self.settle()
            await asyncio.sleep(_SETTLE)
        await asyncio.Event().wait()

    async def remember(self, blocks: Iterable[Block]) -> None:
        """Enter loans of our blocks that the ledger does not know: it was lost. Nobody may have used them yet."""
        for block in blocks:
            for loan in block.loans:
                holder = self._ledger.by_address.get(loan.packed)
                if holder is None:
                    await self._enter(block, loan)
                elif holder.handle.network != NETWORK:
                    fields = {"address": prefix.address_text(loan.packed), "to": loan.node, "here": str(holder.handle)}
                    log.error("address is on loan and in use here: delete the container", extra={"fields": fields})

    async def settle(self) -> None:
        """Free what was returned, and what was never lent after all."""
        async with self._busy:
            lent: dict[bytes, list[Attachment]] = {}
            for one in self._ledger.by_handle.of_network(NETWORK):
                lent.setdefault(one.assignments[0].block, []).append(one)
            lost = False
            for wire, attachments in lent.items():
                lost |= await self._settle_block(attachments[0].assignments[0].family, wire, attachments)
            for (_, wire), held in list(self._holdings.blocks.items()):
                if held.block.loans and wire not in lent:  # the record was read before the last was returned
                    self._refresh(replace(held.block, loans=()))
            if lost:
                await self._on_lost()

    async def _settle_block(self, family: Family, wire: bytes, attachments: Sequence[Attachment]) -> bool:
        """Free what the block's record does not name; return whether the block is not ours any more."""
        key = records.block_key(family, wire)
        while True:
            entry = await self._store.get(key)
            block = records.decode_block(entry) if entry is not None else None
            ours = block is not None and block.uuid == self._me.uuid
            named = {loan.packed for loan in block.loans} if block is not None and ours else set()
            free = [one for one in attachments if one.assignments[0].packed not in named]
            if block is not None and ours:
                self._refresh(block)
            if not free:
                return False
            if entry is None or block is None or not ours:
                break
            # A transaction of ours whose answer was lost may be under way still: the record's new revision stops it
            touched = await self._store.transact([Unchanged(key, entry.modified)], [put_block(key, block, 0)])
            if touched.committed:
                break
        for one in free:
            await self._ledger.remove(one.handle)
            self._holdings.give_back(one.assignments[0], time.monotonic())
            self._say("address on loan returned", one.assignments[0].address, one.handle.container_id)
        return not ours

    async def _answer(self, entry: Entry) -> None:
        request = records.decode_request(entry)
        if request.lent or request.refused:
            return
        if not request.pools:
            await self._store.transact([Unchanged(entry.key, entry.modified)], [Delete(entry.key)])
            await self.settle()
            return
        async with self._busy:
            refused = await self._lend(request, entry)
        if refused:
            answer = records.encode_request(replace(request, refused=refused))
            try:
                await self._store.transact(
                    [Unchanged(entry.key, entry.modified)], [Put(entry.key, answer, request.lease)]
                )
            except LeaseExpiredError:
                return

    async def _lend(self, request: Request, entry: Entry) -> str:
        """Lend an address; return why not, nothing where it was lent or nobody waits for it any more."""
        pools = self._serving(request.family, request.pools)
        taken = self._holdings.take(pools, time.monotonic(), 0.0) or self._holdings.take_oldest(pools)
        if taken is None or taken.held.block.lender:
            if taken is not None:
                self._holdings.undo(taken)
            return "nothing is free"
        given, key = taken.assignment, records.block_key(request.family, taken.held.block.prefix)
        loan = Loan(given.packed, request.borrower, request.uuid)
        try:
            handle = await self._enter(taken.held.block, loan)
        except IpamError:
            self._holdings.undo(taken)
            raise
        refused = "the block is not the lender's any more"
        while (record := await self._store.get(key)) is not None:
            block = records.decode_block(record)
            if block.uuid != self._me.uuid:
                break
            changed = replace(block, loans=(*block.loans, loan))
            answer = records.encode_request(replace(request, lent=given.address))
            try:
                outcome = await self._store.transact(
                    [Unchanged(key, record.modified), Unchanged(entry.key, entry.modified)],
                    [put_block(key, changed, 0), Put(entry.key, answer, request.lease)],
                    [Range.key(entry.key)],
                )
            except LeaseExpiredError:
                refused = ""
                break
            if outcome.committed:
                self._refresh(changed)
                self._say("address lent", given.address, request.borrower)
                return ""
            if not outcome.read[0] or outcome.read[0][0].modified != entry.modified:
                refused = ""  # the borrower has given up
                break
        await self._ledger.remove(handle)
        self._holdings.undo(taken)
        return refused

    async def _enter(self, block: Block, loan: Loan) -> Handle:
        address = prefix.address_text(loan.packed)
        handle = Handle(NETWORK, loan.node, address)
        wire = bytes((BITS[block.family],)) + loan.packed
        await self._ledger.add(
            handle, [Assignment(block.family, address, wire, block.pool, block.prefix)], {"uuid": loan.uuid}
        )
        return handle

    def _refresh(self, block: Block) -> None:
        held = self._holdings.blocks.get((block.family, block.prefix))
        if held is not None and held.block != block:
            self._holdings.refresh(block)
            self._on_change()

    @staticmethod
    def _say(what: str, address: str, node: str) -> None:
        log.info(what, extra={"fields": {"address": address, "node": node}})


class Borrower:
    """Asks for addresses, and returns them."""

    def __init__(self, store: Store, me: Identity, lease: Callable[[], int]) -> None:
        """``lease``: what this node's records are bound to now."""
        self._store = store
        self._me = me
        self._lease = lease
        # A number of an earlier run may be in the store still
        self._numbers = itertools.count(time.monotonic_ns())

    async def borrow(self, family: Family, pools: Sequence[Pool]) -> Block | None:
        """Return an address as a block of its own, None where nobody lends one. It is ours when this returns.

        Where the store fails, or the caller is cancelled, one may be on loan to us that we do not know of: compare.
        """
        names = tuple(pool.name for pool in pools)
        for lender in await self._lenders(names):
            key = records.request_key(lender, self._me.name, next(self._numbers))
            request = Request(self._me.name, self._me.uuid, self._lease(), family, names)
            asked = await self._store.transact(
                [Unchanged(key, 0)], [Put(key, records.encode_request(request), request.lease)]
            )
            answer = await self._answer(key, asked.revision)
            if answer is not None and (found := await self._lent(answer, family, pools)) is not None:
                fields = {"address": answer.lent, "lender": lender, "pool": found.pool}
                log.info("address borrowed", extra={"fields": fields})
                return found
        return None

    async def give_back(self, loan: Block, pool: Pool | None) -> None:
        """Take ourselves out of the block's record. Raises StoreUnavailableError: then it may have happened or not."""
        if pool is None:
            return  # its blocks are gone with it
        key = _block_key(loan, pool)
        while (entry := await self._store.get(key)) is not None:
            block = records.decode_block(entry)
            left = tuple(one for one in block.loans if (one.packed, one.uuid) != (loan.prefix[1:], self._me.uuid))
            if left == block.loans:
                return
            writes: list[Write] = []
            if block.uuid:
                request = Request(self._me.name, self._me.uuid, self._lease(), loan.family, ())
                notice = records.request_key(block.owner, self._me.name, next(self._numbers))
                writes.append(Put(notice, records.encode_request(request), request.lease))
            lease = 0 if block.uuid or left else await self._store.grant(QUARANTINE)
            writes.append(put_block(key, replace(block, loans=left), lease))
            if (await self._store.transact([Unchanged(key, entry.modified)], writes)).committed:
                fields = {"address": prefix.address_text(loan.prefix[1:]), "lender": block.owner}
                log.info("borrowed address returned", extra={"fields": fields})
                return

    async def _lenders(self, pools: Sequence[str]) -> list[str]:
        """Return the live nodes that have most to lend out of these pools."""
        offers: dict[str, int] = {}
        for entry in (await self._store.list(records.OFFERS)).entries:
            name = entry.key.rpartition("/")[2]
            offered = json.loads(entry.value)
            if name != self._me.name and (free := sum(offered.get(pool, 0) for pool in pools)):
                offers[name] = free
        return sorted(offers, key=lambda name: (-offers[name], name))[:_LENDERS]

    async def _answer(self, key: str, since: int) -> Request | None:
        """Wait for an answer, and clear it away; None where there is none in time, and will be none."""
        try:
            async with asyncio.timeout(PATIENCE), aclosing(self._store.watch(Range.key(key), since)) as watch:
                async for changes in watch:
                    if any(_answered(change.entry) for change in changes.changes):
                        break
        except TimeoutError:
            pass
        while (entry := await self._store.get(key)) is not None:
            if (await self._store.transact([Unchanged(key, entry.modified)], [Delete(key)])).committed:
                return records.decode_request(entry)
        return None

    async def _lent(self, answer: Request, family: Family, pools: Sequence[Pool]) -> Block | None:
        """Return what an answer brings, as the block's record has it."""
        if not answer.lent:
            return None
        wire = prefix.of_address(answer.lent)[1]
        number = int.from_bytes(wire[1:], "big")
        pool = next((pool for pool in pools if pool.index(number) is not None), None)
        if pool is None:
            return None
        entry = await self._store.get(_block_key(Block(family, wire, pool.name, "", ""), pool))
        loans = records.decode_block(entry).on_loan(self._me.uuid) if entry is not None else []
        return next((loan for loan in loans if loan.prefix == wire), None)


def is_loan(family: Family, wire: bytes, pool: Pool | None) -> bool:
    """Tell whether a block of ours is an address on loan, for when the store cannot be asked."""
    return wire[0] == BITS[family] and (pool is None or pool.block_size < BITS[family])


def _block_key(loan: Block, pool: Pool) -> str:
    """Return the key of the block that an address on loan lies in."""
    number = int.from_bytes(loan.prefix[1:], "big")
    return records.block_key(loan.family, prefix.make(loan.family, number, pool.block_size))


def _answered(entry: Entry | None) -> bool:
    if entry is None:
        return True
    request = records.decode_request(entry)
    return bool(request.lent or request.refused)


def offer(holdings: Holdings, pools: Iterable[Pool]) -> dict[str, int]:
    """Return how many addresses a node has to lend, by pool."""
    return {pool.name: free for pool in pools if not pool.disabled and (free := holdings.free([pool]))}
