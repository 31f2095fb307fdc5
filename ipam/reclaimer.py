"""Automatic reclaim: nodes that have it on give back the blocks of those among them that are dead.

A node's record says how long after the end of its lease nobody can see its blocks any more (ipam.fence sees to that).
Whoever has watched the lease be gone for as long gives the blocks back, in one transaction that holds only if the
node's record is still the one from then and the node gives no sign of life. Of several that try, one succeeds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from ipam import cluster, records
from ipam.errors import IpamError, NodeAliveError, NoSuchNodeError, StoreUnavailableError
from ipam.fence import boot_clock
from ipam.lasting import lasting
from ipam.records import Block
from ipam.store import Entry, Store

log = logging.getLogger("podroute.ipam")

LOOK = 0.5
"""Seconds between looks at the clock."""


class Gone(NamedTuple):
    since: float
    revision: int
    """Of the node's record: it is written anew whenever the node joins."""
    after: int


class Reclaimer:
    def __init__(
        self,
        store: Store,
        me: str,
        quarantine: int,
        seen: Callable[[Block], str],
        *,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """``seen``: why a block may be in use by somebody all the same; empty where nothing says so."""
        self._store = store
        self._me = me
        self._quarantine = quarantine
        self._seen = seen
        self._clock = clock
        self.gone: dict[str, Gone] = {}
        """Dead nodes that may be reclaimed once they have been gone for long enough, by name."""
        self._said: set[str] = set()

    async def run(self) -> None:
        """Work until the store refuses something. Raises IpamError."""
        self.gone.clear()
        acting = lasting(self._act(), "reclaim", log)
        try:
            while True:
                await self._follow()
        finally:
            acting.cancel()
            await asyncio.wait([acting])

    async def _follow(self) -> None:
        """Follow the leases; returns when what happened meanwhile can no longer be told."""
        listing = await self._store.list(records.LIVE)
        alive = {entry.key.rpartition("/")[2] for entry in listing.entries}
        nodes = {entry.key.rpartition("/")[2]: entry for entry in (await self._store.list(records.NODES)).entries}
        self.gone = {name: gone for name, gone in self.gone.items() if name in nodes and name not in alive}
        for name in nodes.keys() - alive:
            self._note(name, nodes[name])
        async for changes in self._store.watch(records.LIVE, listing.revision):
            if changes.complete:
                return
            for key, entry in changes.changes:
                name = key.rpartition("/")[2]
                if entry is not None:
                    self.gone.pop(name, None)
                elif node := await self._store.get(records.node_key(name)):
                    self._note(name, node)

    def _note(self, name: str, entry: Entry) -> None:
        """Remember since when a node has been seen to be gone; one that has joined in between is gone from now on."""
        known = self.gone.get(name)
        if name == self._me or (known is not None and known.revision == entry.modified):
            return
        try:
            after = records.decode_node(entry).reclaim_after
        except IpamError as error:
            log.debug("node record not understood", extra={"fields": {"node": name, "why": str(error)}})
            return
        if after:
            self.gone[name] = Gone(self._clock(), entry.modified, after)

    async def _act(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            for name, gone in list(self.gone.items()):
                if self._clock() - gone.since < gone.after:
                    continue
                try:
                    await self._reclaim(name, gone)
                except StoreUnavailableError as error:
                    log.debug("reclaim waits for the store", extra={"fields": {"node": name, "why": str(error)}})
                except (NodeAliveError, NoSuchNodeError):
                    self.gone.pop(name, None)
                except IpamError as error:
                    log.error("dead node not reclaimed", extra={"fields": {"node": name, "why": str(error)}})
                    self.gone.pop(name, None)

    async def _reclaim(self, name: str, gone: Gone) -> None:
        node = await self._store.get(records.node_key(name))
        if node is None or node.modified != gone.revision:
            self.gone.pop(name, None)
            if node is not None and await self._store.get(records.live_key(name)) is None:
                self._note(name, node)
            return
        uuid = records.decode_node(node).uuid
        touched = [block for _, block in await cluster.blocks_of(self._store, uuid)]
        # A block that lends it something is its owner's to announce
        theirs = [one for block in touched for one in ([block] if block.uuid == uuid else block.on_loan(uuid))]
        for block in theirs:
            if why := self._seen(block):
                if name not in self._said:
                    self._said.add(name)
                    fields = {"node": name, "block": block.cidr, "why": why}
                    log.warning("dead node not reclaimed yet: its block may be in use", extra={"fields": fields})
                return
        taken = await cluster.reclaim(self._store, name, quarantine=self._quarantine, revision=gone.revision)
        self._said.discard(name)
        self.gone.pop(name, None)
        log.warning(
            "DEAD NODE RECLAIMED: its lease has been gone for long enough",
            extra={
                "fields": {
                    "node": name,
                    "blocks": ", ".join(block.cidr for block in taken) or "none",
                    "after": gone.after,
                    "quarantine": self._quarantine,
                }
            },
        )
