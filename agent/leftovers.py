"""When routes that an earlier run left have had their chance: per peer and family, at End-of-RIB or after a while.

The Fib keeps such routes so that a restart interrupts nothing; it sweeps when it is told that a peer has said all it
has to say, or never will.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from bgp.speaker import Speaker
from config.prefix import Family
from ipam.lasting import lasting
from routes.fib import Fib

log = logging.getLogger("podroute.agent")

_COMPLETE = ("received", "timed out")


class LeftoverSweep:
    def __init__(self, speaker: Speaker, fib: Fib, peers: Collection[str], *, patience: float) -> None:
        """``patience``: seconds that a peer has to come back before what it had announced goes."""
        self._speaker = speaker
        self._fib = fib
        self._absent = set(peers)
        self._patience = patience
        self._told: set[tuple[str, Family]] = set()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._patience, self._give_up)
        self._task = lasting(self._watch(), "leftovers", log)

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def expect(self, peer: str) -> None:
        """A peer was added: it has the time that is left to those that were there at the start."""
        if self._timer is None or self._timer.when() > asyncio.get_running_loop().time():
            self._absent.add(peer)

    def dismiss(self, peer: str) -> None:
        """A peer was removed: it will not come back, so nothing waits for it any more."""
        self._absent.discard(peer)
        self._told = {told for told in self._told if told[0] != peer}
        self._fib.sweep(peer, restore=False)

    async def _watch(self) -> None:
        while True:
            if self._speaker.idle:
                self._look()
            await self._speaker.changed()

    def _look(self) -> None:
        """Pass on End-of-RIBs; only while nothing is undecided, so that what came before them is in the Fib already."""
        peers = self._speaker.peers()
        names = {peer.name for peer in peers}
        self._told = {(name, family) for name, family in self._told if name in names}
        for peer in peers:
            for family, status in peer.families.items():
                if status.end_of_rib not in _COMPLETE:
                    self._told.discard((peer.name, family))
                elif family not in self._speaker.deferred and (peer.name, family) not in self._told:
                    self._told.add((peer.name, family))
                    self._absent.discard(peer.name)
                    self._fib.end_of_rib(peer.name, family)

    def _give_up(self) -> None:
        for name in self._absent:
            self._fib.sweep(name)
        self._absent.clear()
