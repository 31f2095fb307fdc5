"""What an earlier run left: the ledger's memory and the store's records of our blocks, brought together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from config import prefix
from ipam.claims import Claims
from ipam.errors import AddressInUseError
from ipam.holdings import Key
from ipam.ledger import Ledger, OwnedBlock
from ipam.loans import is_loan
from ipam.pool import Pool, span
from ipam.records import Block

log = logging.getLogger("podroute.ipam")


class Recovered(NamedTuple):
    owned: dict[Key, Block]
    """With the addresses on loan to us that are in use, as blocks of their own."""
    lost: dict[Key, OwnedBlock]
    """Blocks whose addresses are in use here though the store does not say they are ours."""
    surplus: list[Block]
    """Addresses on loan to us that nobody uses: a crash, or a lost answer, left them."""


async def recover(ledger: Ledger, claims: Claims, pools: Sequence[Pool]) -> Recovered:
    """Return what is ours; blocks in use that the store lacks are claimed again, unused ones forgotten."""
    owned: dict[Key, Block] = {(block.family, block.prefix): block for block in await claims.owned()}
    if owned and ledger.blank:
        log.error(
            "the ledger is empty though this node owns blocks: it was lost, or never had an address to remember",
            extra={"fields": {"ledger": ledger.path, "blocks": ", ".join(block.cidr for block in owned.values())}},
        )
    surplus = [block for key, block in owned.items() if block.lender and not ledger.inside(*key).used]
    for block in surplus:
        del owned[block.family, block.prefix]
    lost: dict[Key, OwnedBlock] = {}
    for key, remembered in list(ledger.blocks.items()):
        if key in owned:
            continue
        if not ledger.inside(*key).used:
            await ledger.disown(*key)
        elif (found := await _claim_again(claims, remembered, pools)) is not None:
            owned[key] = found
        else:
            lost[key] = remembered
    return Recovered(owned, lost, surplus)


async def _claim_again(claims: Claims, remembered: OwnedBlock, pools: Sequence[Pool]) -> Block | None:
    """Claim a block that the ledger has and the store has not: the store is a new one, or somebody took it."""
    fields = {"block": prefix.text(remembered.family, remembered.prefix), "pool": remembered.pool}
    pool = next((pool for pool in pools if pool.name == remembered.pool), None)
    if is_loan(remembered.family, remembered.prefix, pool):
        log.error("a container uses an address that is not on loan to this node any more", extra={"fields": fields})
        return None
    index = pool.index(span(remembered.family, remembered.prefix)[0]) if pool else None
    if pool is None or index is None or pool.block(index) != remembered.prefix:
        log.error("containers use addresses of a block that no pool here has", extra={"fields": fields})
        return None
    try:
        block = await claims.claim_exactly(pool, index)
    except AddressInUseError as error:
        log.error("containers use addresses of a block that was lost: %s", error, extra={"fields": fields})
        return None
    log.warning("block was missing in the store and is claimed again", extra={"fields": fields})
    return block
