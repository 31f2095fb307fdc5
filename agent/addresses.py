"""The node's addresses as the CNI side sees them: cni and ipam do not know each other, they meet here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cni import hooks
from config.prefix import Family
from ipam.errors import IpamError
from ipam.given import Handle
from ipam.ledger import Attachment
from ipam.service import Ipam


class IpamAddresses:
    """Implements ``cni.hooks.Addresses`` with the node's Ipam."""

    def __init__(self, ipam: Ipam) -> None:
        self._ipam = ipam

    async def allocate(
        self,
        handle: hooks.Handle,
        *,
        addresses: Sequence[str],
        attributes: Mapping[str, Any],
        pools: Sequence[str] = (),
        families: Collection[Family] | None = None,
    ) -> Sequence[hooks.Assignment]:
        if pools and families is None:
            families = {pool.family for pool in self._ipam.pools() if pool.name in pools}
            if not families:
                known = ", ".join(pool.name for pool in self._ipam.pools()) or "none"
                text = f"no pool called {' or '.join(pools)} serves this node; there is {known}"
                raise hooks.AddressError(text, retry=False)
        try:
            return await self._ipam.allocate(
                Handle(*handle), addresses=addresses, attributes=attributes, pools=pools, families=families
            )
        except IpamError as error:
            raise hooks.AddressError(str(error), retry=error.retry) from error

    async def release(self, handle: hooks.Handle) -> Sequence[hooks.Assignment]:
        try:
            return await self._ipam.release(Handle(*handle))
        except IpamError as error:
            raise hooks.AddressError(str(error), retry=error.retry) from error

    async def lookup(self, handle: hooks.Handle) -> hooks.Attachment | None:
        found = await self._ipam.lookup(Handle(*handle))
        return None if found is None else _attachment(found)

    async def attachments(self) -> Sequence[hooks.Attachment]:
        return [_attachment(found) for found in await self._ipam.attachments()]


def _attachment(found: Attachment) -> hooks.Attachment:
    return hooks.Attachment(hooks.Handle(*found.handle), found.assignments, found.attributes)
