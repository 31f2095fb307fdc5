"""Containers that run though the ledger does not know them: it was lost, or emptied."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from config import prefix
from config.prefix import Family
from ipam.given import Assignment, Handle
from ipam.ledger import Ledger
from ipam.pool import Pool

log = logging.getLogger("podroute.ipam")

NETWORK = "quarantine"
"""Network of the handles of such containers."""


class Running(NamedTuple):
    """An address that a container uses, as the kernel has it."""

    family: Family
    prefix: bytes
    device: str


async def quarantine(ledger: Ledger, pools: Sequence[Pool], running: Iterable[Running]) -> None:
    """Enter the addresses of such containers, so that none is given twice; they go when the container has gone."""
    by_device: dict[str, list[Assignment]] = {}
    for family, wire, device in running:
        number = int.from_bytes(wire[1:], "big")
        pool = next((p for p in pools if p.family == family and p.index(number) is not None), None)
        if pool is not None:
            block = prefix.make(family, number, pool.block_size)
            one = Assignment(family, prefix.address_text(wire[1:]), wire, pool.name, block)
            by_device.setdefault(device, []).append(one)
    for device, assignments in by_device.items():
        attributes = {"hostInterface": device, "quarantine": True, "createdAt": datetime.now(UTC).isoformat()}
        await ledger.add(Handle(NETWORK, device, "unknown"), assignments, attributes)
    if by_device:
        log.error(
            "THE LEDGER IS EMPTY THOUGH CONTAINERS RUN: their addresses are kept from others until they end",
            extra={"fields": {"ledger": ledger.path, "containers": len(by_device)}},
        )
