"""Sessions with other nodes of the cluster, out of their records in the store.

A ``mesh`` entry selects nodes by label; each that it selects has one session per address family that both sides have an
address of, which comes and goes with the node's record and touches no other. The side with the lower address dials.
With ``reflectors`` the nodes that have a cluster ID reflect (RFC 4456): they peer with all, the others with them only.
With the store away everything stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.background import Background
from agent.mesh_sessions import MeshSessions
from bgp.settings import PeerSettings
from bgp.speaker import Speaker
from bgp.status import SpeakerError
from config.model import Config
from ipam import records
from ipam.errors import IpamError
from ipam.membership import persistently
from ipam.service import Ipam
from ipam.store import Change, Entry

log = logging.getLogger("podroute.agent")

_RETRY = 0.5
"""Seconds between attempts while the store has never answered."""
_STRETCH = 20
"""Nodes or sessions dealt with in one turn of the event loop; a few milliseconds of work."""


class Mesh:
    def __init__(
        self,
        config: Config,
        ipam: Ipam,
        speaker: Speaker,
        *,
        memory: Path,
        on_added: Callable[[str], None],
        on_removed: Callable[[str], None],
    ) -> None:
        """``memory`` is a file for the other nodes' records: a restart goes on with their sessions, also with the store
        away, and so keeps what they had announced. ``on_added`` and ``on_removed`` are told of each session's name.
        Raises StartError where a password file cannot be read.
        """
        self.sessions: dict[str, PeerSettings] = {}
        self._config = config
        self._ipam = ipam
        self._speaker = speaker
        self._memory = memory
        self._on_added = on_added
        self._on_removed = on_removed
        self._known = MeshSessions(config)
        self._texts: dict[str, str] = {}
        """The records as the file for them has them."""
        self._refused: dict[str, int] = {}
        """Revisions of the records that are not understood."""
        self._remembered = ""
        self._background = Background("mesh")

    def recall(self) -> None:
        """Have the sessions of the last run."""
        try:
            text = self._memory.read_text()
            entries = [Entry("", line.encode(), 0, 0) for line in text.splitlines()]
            nodes = [records.decode_node(entry) for entry in entries]
        except FileNotFoundError:
            return
        except (OSError, ValueError, IpamError) as error:
            log.warning("mesh begins anew", extra={"fields": {"file": self._memory, "why": str(error)}})
            return
        for node, line in zip(nodes, text.splitlines(keepends=True), strict=True):
            self._known.put(records.node_key(node.name), node)
            self._texts[records.node_key(node.name)] = line
        self._remembered = text
        self.sessions = self._known.wanted()

    def begin(self) -> None:
        """Add what was recalled to the speaker, which waits for these peers as for all others then."""
        for name, settings in self.sessions.items():
            self._speaker.add_peer(settings)
            self._on_added(name)

    def start(self) -> None:
        if self._config.mesh_here():
            self._background.start(persistently(self._follow, _RETRY))

    async def stop(self) -> None:
        await self._background.stop()

    async def _follow(self) -> None:
        """Follow the node records; returns only by raising IpamError."""
        store = self._ipam.shared()
        self._known.own_uuid = self._ipam.identity.uuid
        listing = await store.list(records.NODES)
        await self._take([Change(entry.key, entry) for entry in listing.entries], complete=True)
        async for changes in store.watch(records.NODES, listing.revision):
            await self._take(changes.changes, complete=changes.complete)

    async def _take(self, changes: Sequence[Change], *, complete: bool) -> None:
        """Have the sessions that changed records ask for; ``complete``: these are all records that there are."""
        if complete:
            for key in self._known.nodes().keys() - {change.key for change in changes}:
                self._drop(key)
        for number, (key, entry) in enumerate(changes, 1):
            if entry is None:
                self._drop(key)
            else:
                self._put(entry)
            if not number % _STRETCH:
                await asyncio.sleep(0)
        await self._apply()

    def _put(self, entry: Entry) -> None:
        """Note a record; one that is not understood leaves things as they are with that node."""
        try:
            node = records.decode_node(entry)
        except IpamError as error:
            if self._refused.get(entry.key) != entry.modified:
                self._refused[entry.key] = entry.modified
                left = "its sessions stay as they are" if entry.key in self._known else "there is no session with it"
                log.error("node record not understood: %s", left, extra={"fields": {"why": str(error)}})
            return
        if self._known.nodes().get(entry.key) != node:
            self._known.put(entry.key, node)
            self._texts[entry.key] = records.encode_node(node).decode() + "\n"

    def _drop(self, key: str) -> None:
        self._known.remove(key)
        self._texts.pop(key, None)
        self._refused.pop(key, None)

    async def _apply(self) -> None:
        """Have the sessions that the records ask for; those that stay as they are notice nothing."""
        wanted = self._known.wanted()
        gone = {
            name: settings
            for name, settings in self.sessions.items()
            if (now := wanted.get(name)) is not settings and now != settings
        }
        for name in gone:
            del self.sessions[name]
        # A connection that is being closed takes its time: only who needs its name or address waits for it
        leaving = {settings.address for settings in gone.values()}
        new = {name: settings for name, settings in wanted.items() if name not in self.sessions}
        later = {name: settings for name, settings in new.items() if name in gone or settings.address in leaving}
        await self._add({name: settings for name, settings in new.items() if name not in later})
        await asyncio.gather(*map(self._speaker.remove_peer, gone))
        for name in gone:
            self._on_removed(name)
            log.info("mesh session removed", extra={"fields": {"peer": name}})
        await self._add(later)
        self._remember()

    async def _add(self, sessions: dict[str, PeerSettings]) -> None:
        for number, (name, settings) in enumerate(sessions.items(), 1):
            try:
                self._speaker.add_peer(settings)
            except SpeakerError as error:
                log.error("mesh session not possible", extra={"fields": {"peer": name, "why": str(error)}})
                continue
            self.sessions[name] = settings
            self._on_added(name)
            log.info("mesh session added", extra={"fields": {"peer": name, "address": settings.address}})
            if not number % _STRETCH:
                await asyncio.sleep(0)

    def _remember(self) -> None:
        peers = {name.split("/")[1] for name in self.sessions}
        keys = (key for key, node in self._known.nodes().items() if node.name in peers)
        text = "".join(map(self._texts.__getitem__, keys))
        if text != self._remembered:
            hidden = self._memory.with_suffix(".new")
            try:
                hidden.write_text(text)
                hidden.replace(self._memory)
                self._remembered = text
            except OSError as error:
                log.warning("mesh not written down", extra={"fields": {"file": self._memory, "why": str(error)}})
