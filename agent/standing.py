"""How this node stands with its blocks: fenced, lost, on loan; and what sessions and kernel do about it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from bgp.speaker import Speaker
from config.prefix import BITS, FAMILIES
from ipam.lasting import lasting
from ipam.records import Block
from ipam.service import Ipam
from routes.isolation import Isolated, isolate

log = logging.getLogger("podroute.agent")


class Standing:
    def __init__(self, ipam: Ipam, speaker: Speaker, *, announce: Callable[[], None]) -> None:
        """``announce`` brings what is announced in line with what may be."""
        self._ipam = ipam
        self._speaker = speaker
        self._announce = announce
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to isolate containers; whatever an earlier run left of it is brought up to date."""
        self._task = lasting(self._isolate(), "isolation", log)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def changed(self) -> None:
        """Announce what is to be announced now, let peers announce what is on loan to them, and isolate the lost."""
        self._announce()
        blocks = self._ipam.blocks()
        for family in FAMILIES:
            lent = [loan.packed for block in blocks if block.family == family for loan in block.loans]
            self._speaker.lend(family, [bytes((BITS[family],)) + packed for packed in lent])
        self._news.set()

    def seen(self, block: Block) -> str:
        """Return why a dead node's block may be in use, as far as peers tell; empty where nothing says so."""
        peers = self._speaker.peers()
        if peers and not any(peer.uptime is not None for peer in peers):
            return "no session is established here that would tell"
        for route in self._speaker.rib.explain(block.family, block.prefix).routes:
            if route.peer:
                return f"peer {route.peer} still tells of it"
        return ""

    async def _isolate(self) -> None:
        """Keep in the node what containers send from addresses that are not the node's any more."""
        while True:
            self._news.clear()
            wanted = [
                Isolated(one.family, one.packed, device)
                for lost in self._ipam.lost()
                for attachment, one in self._ipam.assigned(lost.family, lost.prefix)
                if (device := attachment.attributes.get("hostInterface"))
            ]
            try:
                problems = await asyncio.to_thread(isolate, wanted)
            except OSError as error:
                problems = [str(error)]
            for problem in problems:
                log.error("container of a lost block is not isolated", extra={"fields": {"why": problem}})
            await self._news.wait()
