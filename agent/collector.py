"""Collects the addresses of containers that vanished: after two looks and a grace time, never those of a live one.

A host end lives as long as its pod's network namespace, so an attachment without one, and without its namespace, is
nobody's. What is looked at is looked at again under the handle's lock before anything is released.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable

from agent.background import Background
from cni.errors import CniError
from cni.hooks import AddressError, Handle
from cni.verbs import Verbs
from ipam.ledger import Attachment
from ipam.service import Ipam

log = logging.getLogger("podroute.agent")


class Collector:
    def __init__(self, ipam: Ipam, verbs: Verbs, grace: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``grace``: seconds between the first look that finds a container gone and the release of its addresses."""
        self._ipam = ipam
        self._verbs = verbs
        self._grace = grace
        self._clock = clock
        self._gone_since: dict[Handle, float] = {}
        self._background = Background("collector")

    def start(self) -> None:
        self._background.start(self._run())

    async def stop(self) -> None:
        await self._background.stop()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._grace / 2)
            try:
                await self.look()
            except (AddressError, CniError, OSError) as error:
                log.warning("no look at vanished containers", extra={"fields": {"why": str(error)}})

    async def look(self) -> list[Handle]:
        """Look once; release and return what was found gone before and has been for the grace time."""
        links = {link.name for link in await self._verbs.links()}
        now = self._clock()
        gone = {Handle(*one.handle) for one in await self._ipam.attachments() if vanished(one, links)}
        self._gone_since = {handle: self._gone_since.get(handle, now) for handle in gone}
        due = [handle for handle, since in self._gone_since.items() if since != now and now - since >= self._grace]
        return [handle for handle in due if await self._verbs.remove_gone(handle)]


def vanished(attachment: Attachment, links: set[str]) -> bool:
    """Tell whether neither the host end nor the namespace of a container is there."""
    name, netns = attachment.attributes.get("hostInterface"), attachment.attributes.get("netns")
    return bool(name) and name not in links and not (netns and os.path.exists(netns))
