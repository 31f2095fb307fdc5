"""Addresses: blocks that this node owns, how full they are, and the store that they come from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from agent.metrics.catalogue import Reading, counter, gauge
from agent.node import Node
from ipam.choice import Usage
from ipam.fence import boot_clock
from ipam.keeper import ClaimResult

BLOCKS = gauge("ipam_blocks", "Blocks that this node owns.", "pool")
ADDRESSES = gauge(
    "ipam_addresses", "Addresses of this node's blocks by state: used, reserved or free.", "pool", "state"
)
BORROWED = gauge("ipam_borrowed_addresses", "Addresses on loan from other nodes' blocks.", "pool")
LENT = gauge("ipam_lent_addresses", "Addresses of this node's blocks that other nodes have on loan.", "pool")
LOST = gauge("ipam_lost_blocks", "Blocks that containers here use though the store says they are not this node's.")
FENCED = gauge(
    "ipam_fenced", "Whether this node may not use its blocks, as the store is away for too long (1) or not (0)."
)
CLAIMS = counter("ipam_claims", "Claims of blocks by what became of them: granted, exhausted or failed.", "result")
REACHABLE = gauge("ipam_store_reachable", "Whether the store answers (1) or is away (0).")
CONTACT = gauge("ipam_store_last_contact_timestamp_seconds", "When the store last confirmed that this node is alive.")

METRICS = (BLOCKS, ADDRESSES, BORROWED, LENT, LOST, FENCED, CLAIMS, REACHABLE, CONTACT)


@dataclass(frozen=True, slots=True)
class IpamFacts:
    pools: Sequence[str]
    usage: Sequence[Usage]
    lost: int
    fenced: bool
    claims: Mapping[ClaimResult, int]
    reachable: bool
    contact: float | None
    """Seconds since the epoch; None: there was none yet."""


async def look(node: Node) -> IpamFacts:
    store = node.ipam.store()
    return IpamFacts(
        [pool.name for pool in node.ipam.pools()],
        node.ipam.usage(),
        len(node.ipam.lost()),
        node.ipam.fenced,
        Counter(node.ipam.keeper.claimed),
        store.joined and not store.problem,
        None if store.confirmed is None else time.time() - (boot_clock() - store.confirmed),
    )


def read(facts: IpamFacts) -> Iterator[Reading]:
    for pool in dict.fromkeys([*facts.pools, *(one.block.pool for one in facts.usage)]):
        here = [one for one in facts.usage if one.block.pool == pool]
        own = [one for one in here if not one.block.lender]
        yield BLOCKS.of(len(own), pool)
        yield ADDRESSES.of(sum(one.used for one in own), pool, "used")
        yield ADDRESSES.of(sum(one.reserved for one in own), pool, "reserved")
        yield ADDRESSES.of(sum(one.free for one in own), pool, "free")
        yield BORROWED.of(len(here) - len(own), pool)
        yield LENT.of(sum(len(one.block.loans) for one in own), pool)
    yield LOST.of(facts.lost)
    yield FENCED.of(facts.fenced)
    for result in get_args(ClaimResult):
        yield CLAIMS.of(facts.claims.get(result, 0), result)
    yield REACHABLE.of(facts.reachable)
    if facts.contact is not None:
        yield CONTACT.of(facts.contact)
