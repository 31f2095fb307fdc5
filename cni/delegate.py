"""podroute as the IPAM plugin of another main plugin, ``ipam: {type: podroute}``: addresses out of the node's blocks.

The main plugin makes the interface. It wants a subnet and a gateway in it, as a bridge has one: the subnet is the
block, the gateway its second address. That one, the block's first and IPv4's last (which a subnet uses for itself and
for broadcast) are set aside when a block is first used so, under handles that no runtime can come upon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cni.errors import CniError, Code
from cni.hooks import AddressError, Addresses, Assignment, Handle
from cni.request import Request
from cni.result import Ip, Result, Route
from config import prefix
from config.prefix import BITS, Family
from config.values import GATEWAY, RESERVED_NETWORK

_DEFAULT: dict[Family, str] = {4: "0.0.0.0/0", 6: "::/0"}


class Delegate:
    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._lock = asyncio.Lock()

    async def add(self, request: Request) -> tuple[Result, Sequence[Assignment]]:
        """Give addresses to a handle that has none. Raises CniError and AddressError."""
        handle = request.handle
        if await self._addresses.lookup(handle):
            # A main plugin frees the addresses of an ADD that fails: those of the first must not be these.
            text = f"{handle.container_id} has addresses for {handle.ifname} in {handle.network} already"
            raise CniError(Code.ALREADY_ADDED, text, "DEL comes before another ADD")
        async with self._lock:
            try:
                assignments = await self._allocate(request)
            except BaseException:
                await self._addresses.release(handle)
                raise
        families: list[Family] = sorted({assignment.family for assignment in assignments})
        result = Result(
            interfaces=(),
            ips=[Ip(a.family, f"{a.address}/{a.block[0]}", _gateway(a.family, a.block), None) for a in assignments],
            routes=[Route(_DEFAULT[family], "") for family in families],
            dns=request.dns,
        )
        return result, assignments

    async def check(self, request: Request) -> None:
        """Raise CniError unless the ledger holds what the result of ADD says."""
        found = await self._addresses.lookup(request.handle)
        if found is None:
            raise CniError(Code.CHECK_FAILED, f"podroute knows nothing of {request.handle}")
        if missing := missing_addresses(request.previous, found.assignments):
            raise CniError(Code.CHECK_FAILED, f"{request.handle}: {missing[0]}", "; ".join(missing[1:]))

    async def _allocate(self, request: Request) -> Sequence[Assignment]:
        attributes = {
            "netns": request.netns,
            "plugin": request.plugin,
            "args": dict(request.arguments),
            "createdAt": datetime.now(UTC).isoformat(),
        }
        while True:
            assignments = await self._addresses.allocate(
                request.handle, addresses=request.addresses, attributes=attributes, pools=request.pools
            )
            if not assignments:
                raise AddressError("the node has no block of addresses", retry=False)
            own = {assignment.address for assignment in assignments}
            unusable: list[tuple[Assignment, str]] = []
            for assignment in assignments:
                for address, purpose in special(assignment.family, assignment.block).items():
                    if address in own:
                        unusable.append((assignment, purpose))
                    else:
                        await self._reserve(assignment, address, purpose)
            if not unusable:
                return assignments
            taken = next((a.address for a, _ in unusable if a.address in request.addresses), None)
            if taken:
                raise CniError(Code.NO_ADDRESS, f"{taken} is its block's network, gateway or broadcast address")
            await self._addresses.release(request.handle)
            for assignment, purpose in unusable:
                await self._reserve(assignment, assignment.address, purpose)

    async def _reserve(self, assignment: Assignment, address: str, purpose: str) -> None:
        handle = Handle(RESERVED_NETWORK, prefix.text(assignment.family, assignment.block), purpose)
        if await self._addresses.lookup(handle):
            return
        attributes = {"reserved": purpose, "createdAt": datetime.now(UTC).isoformat()}
        try:
            await self._addresses.allocate(handle, addresses=[address], attributes=attributes, families=())
        except AddressError as error:
            if purpose != GATEWAY:
                return  # a pod that podroute wired itself has it, and that one needs no subnet
            raise CniError(
                Code.CONFLICT,
                f"{address} cannot be the gateway of {handle.container_id}: {error}",
                'give this network a pool of its own: "ipam": {"type": "podroute", "pools": ["NAME"]}',
            ) from None


def special(family: Family, block: bytes) -> dict[str, str]:
    """Return the addresses of a block that no container can have on a subnet, and what each is for."""
    first = int.from_bytes(block[1:].ljust(BITS[family] // 8, b"\0"), "big")
    size = 1 << (BITS[family] - block[0])
    if size < 4:
        return {}
    found = {first: "network", first + 1: GATEWAY}
    if family == 4:
        found[first + size - 1] = "broadcast"
    return {_text(family, number): purpose for number, purpose in found.items()}


def missing_addresses(previous: Mapping[str, Any] | None, assignments: Sequence[Assignment]) -> list[str]:
    """Return which of the ledger's addresses the runtime does not know of, in words."""
    ips = previous.get("ips") if previous else None
    shown = (
        {str(ip.get("address")).partition("/")[0] for ip in ips if isinstance(ip, dict)}
        if isinstance(ips, list)
        else set()
    )
    return [f"prevResult lacks the address {a.address}" for a in assignments if a.address not in shown]


def _gateway(family: Family, block: bytes) -> str:
    return next((address for address, purpose in special(family, block).items() if purpose == GATEWAY), "")


def _text(family: Family, number: int) -> str:
    return prefix.address_text(number.to_bytes(BITS[family] // 8, "big"))
