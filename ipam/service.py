"""The node's addresses: blocks claimed in the store, addresses handed out of them, everything durable.

A block is used once the store says it is ours and the ledger knows; an address once the ledger has it on disk. After a
crash the ledger and the store are all there is, and they are enough: a block claimed at the last moment is found in the
store, an address whose commit did not happen was never handed out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from config import prefix
from config.model import Config
from config.prefix import Family
from config.values import GATEWAY, RESERVED_NETWORK
from ipam import choice, cluster, records
from ipam.choice import Usage
from ipam.errors import (
    FencedError,
    IpamError,
    NoPoolError,
    NotRunningError,
    StoreUnavailableError,
)
from ipam.fence import Fence, boot_clock
from ipam.given import Assignment, Handle
from ipam.holdings import Key, Taken
from ipam.identity import Identity, StateDirectory
from ipam.keeper import BlockKeeper, BlocksChanged, parse
from ipam.ledger import Attachment, Ledger, OwnedBlock
from ipam.loans import Borrower, Lender, offer
from ipam.membership import Companion, Membership, StoreState
from ipam.pool import Pool
from ipam.quarantine import Running, quarantine
from ipam.reclaimer import Reclaimer
from ipam.records import Block, NodeRecord
from ipam.store import Store
from ipam.stores import store_of
from ipam.turns import Turns

log = logging.getLogger("podroute.ipam")

LEDGER_FILE = "ledger.db"
COOL_DOWN = 5.0
"""Seconds that a released address rests while another one can be had."""
_FAREWELL = 10.0
"""Seconds that the store has to take in that this node is gone."""


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
        on_standing: Callable[[], None] | None = None,
        seen: Callable[[Block], str] = lambda _: "",
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """``addresses``: where peers reach this node, for its record. ``store``: an open one in place of the file's.
        ``running``: asked in a thread, where the ledger is blank, for the addresses that containers use all the same.
        ``on_standing``: called when ``fenced``, ``lost`` or the loans of ``blocks`` have changed. ``seen``: why a dead
        node's block may be in use all the same. ``clock``: seconds since the machine's start.
        """
        self._config = config
        self._addresses = addresses
        self._given_store = store
        self._running_pods = running
        self._on_standing = on_standing or (lambda: None)
        self._seen = seen
        self._clock = clock
        self._store: Store | None = store
        self._state: StateDirectory | None = None
        self._identity = Identity("", "")
        self._membership: Membership | None = None
        self._started = False
        self.ledger = Ledger(os.path.join(config.state_dir, LEDGER_FILE))
        self.reclaimer: Reclaimer | None = None
        self.keeper = BlockKeeper(
            config, self.ledger, on_blocks=on_blocks, on_standing=self._on_standing, cool_down=cool_down
        )
        self._turns: Turns[Handle] = Turns()
        self._fence = Fence(config.state_dir, config.ipam.fence_seconds, self._on_standing, clock=clock)

    async def open(self) -> None:
        """Read what an earlier run left, and touch no store yet: ``subnets`` answers. Raises IpamError.

        What is opened is closed by ``stop``, whether or not there was a ``start``.
        """
        try:
            config = self._config
            self._state = await asyncio.to_thread(StateDirectory, config.state_dir)
            self._identity = await asyncio.to_thread(self._state.identity, config.node.name)
            await self.ledger.open()
        except BaseException:
            await self.stop()
            raise

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

    async def stop(self, *, leave: bool = False) -> None:
        """Finish what is under way and close ledger and store; blocks and addresses stay ours.

        ``leave``: of a node that is removed. The store is told that it lives no more, and where nothing here has an
        address, its blocks and its record go.
        """
        self._started = False
        await self.keeper.stop()
        await self._turns.over()
        await self._fence.close()
        membership, self._membership = self._membership, None
        self.keeper.detach()
        if membership is not None:
            await membership.stop()
            if leave:
                await self._leave(membership)
        await self.ledger.close()
        if self._store is not None and self._given_store is None:
            await self._store.close()
        self._store = None
        if self._state is not None:
            self._state.close()
            self._state = None

    @property
    def identity(self) -> Identity:
        return self._identity

    def blocks(self) -> list[Block]:
        """Return the blocks that are ours, which is what the agent advertises."""
        return [held.block for held in self.keeper.holdings.blocks.values()]

    def subnets(self) -> list[str]:
        """Return the blocks that are subnets on the links of another main plugin: their gateways are kept for these."""
        blocks = (prefix.text(*key) for key in self.ledger.blocks)
        return [block for block in blocks if self.ledger.given.get(Handle(RESERVED_NETWORK, block, GATEWAY))]

    def usage(self) -> list[Usage]:
        return self.keeper.usage()

    def pools(self) -> list[Pool]:
        """Return the pools that serve this node, in the order they are used."""
        return list(self.keeper.pools)

    @property
    def fenced(self) -> bool:
        """Whether this node may not use its blocks, as they may be another's without its knowing."""
        return self._fence.fenced

    def check_fence(self) -> None:
        """Look at the clock now, rather than at the next tick."""
        self._fence.check()

    def advertised(self, block: Block) -> bool:
        """Tell whether a block is to be announced now."""
        return not self.fenced and block.pool not in self.keeper.not_advertised

    def aggregates(self) -> list[tuple[Pool, bytes, bool]]:
        """Return the super-blocks to be announced: pool, prefix, and whether in place of the blocks in them.

        Each has a block of ours in it, and belongs to this node's value of the label: a block from before the label
        was changed lies in others' part of the network. What the store did not say yet is taken to be so.
        """
        found: dict[tuple[str, bytes], tuple[Pool, bytes, bool]] = {}
        claims = self._membership.claims if self._membership is not None else None
        named = {pool.name: pool for pool in self.keeper.pools}
        for block in self.blocks():
            pool = named.get(block.pool)
            if pool is None or pool.split is None or pool.split.aggregate == "none":
                continue
            if block.lender or not self.advertised(block):
                continue
            wire = pool.part(block.prefix).prefix
            if claims is None or any(one.prefix == wire for one in claims.supers.mine(pool)):
                found[pool.name, wire] = pool, wire, pool.split.aggregate == "only"
        return list(found.values())

    def lost(self) -> list[OwnedBlock]:
        """Return blocks whose addresses containers here still use though the store does not say they are ours."""
        return list(self.keeper.lost.values())

    def store(self) -> StoreState:
        """Return how things stand with the store."""
        if self._membership is None:
            return StoreState(self._config.store.url, False, "the agent is starting or stopping", None)
        return self._membership.state

    async def lookup(self, handle: Handle) -> Attachment | None:
        return self.ledger.by_handle.get(handle)

    async def attachments(self) -> list[Attachment]:
        """Return everything that has an address."""
        return list(self.ledger.by_handle.values())

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
        self._check_running()
        return await self._turns.take(key, lambda: self._allocate(key, families, pools, addresses, attributes))

    async def release(self, handle: Handle) -> list[Assignment]:
        """Take a handle's addresses back and return them; none where it is not known. Raises LedgerError."""
        key = Handle(*handle)
        self._check_running()
        return await self._turns.take(key, lambda: self._release(key))

    def lacking(self, pools: Sequence[str] = (), *, full: bool) -> str:
        """Return why an allocation out of ``pools`` (names; none: all) would fail now; empty: it would not.

        ``full``: also where this node has blocks of all families, and nothing is free in them. Only what is known
        without asking the store.
        """
        lacks = (self.keeper.lacking(family, pools, full=full) for family in self._families(pools))
        return next(filter(None, lacks), "")

    def shared(self) -> Store:
        """Return the cluster's store, for ipam.cluster. Raises NotRunningError."""
        if self._store is None or self._membership is None:
            raise NotRunningError("the agent is starting or stopping: try again")
        if self._membership.claims is None:
            raise StoreUnavailableError(self._membership.state.problem)
        return self._store

    def holder(self, address: str) -> Attachment | None:
        """Return who has an address. Raises AddressNotInPoolError for what is none."""
        return self.ledger.by_address.get(parse(address)[1][1:])

    def owns(self, family: Family, block: bytes) -> bool:
        return (family, block) in self.keeper.holdings.blocks

    def assigned(self, family: Family, block: bytes) -> list[tuple[Attachment, Assignment]]:
        """Return the addresses of a block that are in use here, also where it is not ours any more."""
        return self.ledger.assigned(family, block)

    def picture(self, family: Family, wire: bytes) -> list[str]:
        """Return the state of each address of a block of ours, in order: used, reserved, resting or free."""
        held = self.keeper.holdings.blocks.get((family, wire))
        return [held.free.state(ordinal) for ordinal in range(held.free.size)] if held else []

    def compare_again(self) -> None:
        """Bring blocks and records together once more, soon."""
        self.keeper.compare_again()

    # Start

    async def _start(self) -> None:
        config = self._config
        if self._state is None:
            await self.open()
        self.keeper.pools = [Pool.of(name, pool) for name, pool in config.pools_here().items()]
        self.keeper.not_advertised = {name for name, pool in config.pools.items() if pool.not_advertised}
        self._fence.open()
        if self.ledger.blank and self._running_pods is not None:
            running = self._running_pods
            await quarantine(self.ledger, self.keeper.pools, await asyncio.to_thread(lambda: list(running())))
        if self._store is None:
            self._store = store_of(config.store)
        lender = Lender(
            self._store,
            self._identity,
            self.ledger,
            self.keeper.holdings,
            lambda family, names: choice.serving(self.keeper.pools, family, names, exact=True),
            self._on_standing,
            self.keeper.forget_lost,
        )
        self._membership = membership = Membership(
            self._store,
            self._identity,
            self._record(),
            self.keeper.pools,
            on_joined=self.keeper.joined,
            opened=self._given_store is not None,
            says=self._says,
            lease=config.ipam.lease,
            fence=self._fence,
            companions=self._companions(self._store, lender),
            clock=self._clock,
        )
        self.keeper.attach(membership, lender, Borrower(self._store, self._identity, lambda: membership.lease))
        if not await membership.start():
            await self.keeper.adopt_remembered(self._identity)
        self.keeper.start()
        self._fence.started()
        self._started = True

    async def _leave(self, membership: Membership) -> None:
        """Say goodbye for good, as far as the store answers in time: else its lease ends by itself."""
        assert self._store is not None
        try:
            async with asyncio.timeout(_FAREWELL):
                await membership.leave()
                if self.ledger.by_handle:
                    return
                for key in list(self.ledger.blocks):
                    await self.ledger.disown(*key)
                given = await cluster.reclaim(self._store, self._identity.name, quarantine=0)
        except (IpamError, TimeoutError) as error:
            why = str(error) or f"it took longer than {_FAREWELL:g} s"
            log.warning("the store still has this node's blocks: reclaim it", extra={"fields": {"why": why}})
        else:
            log.info("blocks given back", extra={"fields": {"blocks": ", ".join(block.cidr for block in given)}})

    def _record(self) -> NodeRecord:
        node, ipam = self._config.node, self._config.ipam
        after = ipam.reclaim_after if ipam.reclaim_after != "never" else 0
        return NodeRecord(
            node.name,
            self._identity.uuid,
            node.asn,
            node.router_id,
            node.labels,
            self._addresses,
            records.now(),
            after,
            self._config.bgp.cluster_id or "",
        )

    def _companions(self, store: Store, lender: Lender) -> list[Companion]:
        """Return what follows the store while this node is a member of the cluster."""
        found: list[Companion] = []
        ipam = self._config.ipam
        if ipam.reclaim_after != "never":
            self.reclaimer = Reclaimer(store, self._identity.name, ipam.quarantine, self._seen, clock=self._clock)
            found.append(self.reclaimer.run)
        found.append(lender.run if ipam.borrowing else lender.settle_returns)
        return found

    def _says(self) -> dict[str, bytes]:
        """Return what this node tells the cluster of itself, by key: addresses in use and to lend, by pool."""
        used: Counter[str] = Counter()
        for held in self.keeper.holdings.blocks.values():
            if not held.block.lender:  # its owner counts it
                used[held.block.pool] += held.free.used
        said = {records.usage_key(self._identity.name): _json(used)}
        if self._config.ipam.borrowing:
            said[records.offer_key(self._identity.name)] = _json(offer(self.keeper.holdings, self.keeper.pools))
        return said

    # Addresses

    async def _allocate(
        self,
        handle: Handle,
        families: Iterable[Family] | None,
        pools: Sequence[str],
        addresses: Sequence[str],
        attributes: Mapping[str, Any] | None,
    ) -> list[Assignment]:
        had = self.ledger.given.get(handle)
        if had is None and self.fenced:
            raise FencedError(
                f"node {self._config.node.name} is fenced: the store {self.store().url} has not been heard of for "
                f"{self._config.ipam.fence_seconds} s (ipam.fenceAfter), so its blocks may be given to others soon; "
                f"bring the store back ({self.store().problem or 'it has not answered yet'})"
            )
        if had is not None:
            if attributes is not None and dict(attributes) != self.ledger.by_handle[handle].attributes:
                await self.ledger.annotate(handle, attributes)
            return list(had)
        wanted = self._families(pools) if families is None else sorted(set(families))
        if not wanted and not addresses:
            raise NoPoolError(f"no pool serves node {self._config.node.name}: add one to `pools`, or check its `nodes`")
        taken: list[Taken] = []
        try:
            for address in addresses:
                taken.append(await self.keeper.take_exactly(address, pools))
            for family in wanted:
                if not any(one.held.block.family == family for one in taken):
                    taken.append(await self.keeper.take(family, pools))
            assignments = [one.assignment for one in taken]
            await self.ledger.add(handle, assignments, attributes or {})
            if handle.network == RESERVED_NETWORK:
                for one in taken:
                    one.held.free.keep(one.ordinal)
            if lost := [one.held.block for one in taken if _key(one.held.block) not in self.keeper.holdings.blocks]:
                await self.ledger.remove(handle)
                raise NotRunningError(f"block {lost[0].cidr} was lost at this moment: try again")
        except BaseException:
            for one in taken:
                self.keeper.holdings.undo(one)
            raise
        return assignments

    def _families(self, pools: Sequence[str]) -> list[Family]:
        """Return the families of which a request that names these pools, or none, gets an address."""
        mine = (
            [pool for pool in self.keeper.pools if pool.name in pools]
            or choice.automatic(self.keeper.pools)
            or self.keeper.pools
        )
        return sorted({pool.family for pool in mine})

    async def _release(self, handle: Handle) -> list[Assignment]:
        gone = await self.ledger.remove(handle)
        for assignment in gone:
            self.keeper.holdings.give_back(assignment, time.monotonic())
            self.keeper.gave_back(assignment.family, assignment.block)
        if any((one.family, one.block) in self.keeper.lost for one in gone):
            await self.keeper.forget_lost()
        return list(gone)

    def _check_running(self) -> None:
        if not self._started:
            raise NotRunningError("the agent is starting or stopping: try again")


def _json(counts: Mapping[str, int]) -> bytes:
    return json.dumps(counts, separators=(",", ":")).encode()


def _key(block: Block) -> Key:
    return block.family, block.prefix
