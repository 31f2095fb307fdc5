"""How a node goes: silently, to come back (graceful); with its traffic led away first (drain); for good (purge)."""

from __future__ import annotations

import asyncio
import logging
from typing import Literal

from bgp.messages import Notification
from bgp.notifications import SHUTDOWN, shutdown_text
from bgp.speaker import Speaker

log = logging.getLogger("podroute.agent")

Mode = Literal["graceful", "drain", "purge"]

_PATIENCE = 5.0
"""Seconds that peers have to acknowledge what a node that goes tells them."""
_TEXTS: dict[Mode, str] = {"drain": "node drained", "purge": "node removed"}


async def take_leave(speaker: Speaker, mode: Mode, drain_time: float) -> Notification | None:
    """Lead traffic away as ``mode`` wants; return what the sessions are to be ended with, None: without a word.

    ``drain`` announces everything as GRACEFUL_SHUTDOWN, waits ``drain_time`` seconds for peers to find other ways, and
    withdraws (RFC 8326 section 4); ``purge`` withdraws at once.
    """
    if mode == "graceful":
        return None
    if mode == "drain":
        speaker.shut_gracefully()
        await _told(speaker)
        log.info("draining: peers prefer other ways now", extra={"fields": {"seconds": drain_time}})
        await asyncio.sleep(drain_time)
    speaker.withdraw()
    await _told(speaker)
    return Notification(6, SHUTDOWN, shutdown_text(_TEXTS[mode]))


async def _told(speaker: Speaker) -> None:
    names = [peer.name for peer in speaker.peers()]
    try:
        async with asyncio.timeout(_PATIENCE):
            await asyncio.gather(*(speaker.flushed(name) for name in names))
    except TimeoutError:
        log.warning("not all peers took our last words in time", extra={"fields": {"seconds": _PATIENCE}})
