"""Sessions with other nodes of the cluster, out of their records in the store.

A ``mesh`` entry selects nodes by label; each that it selects has one session per address family that both sides have an
address of, which comes and goes with the node's record and touches no other. The side with the lower address dials.
With ``reflectors`` the nodes that have a cluster ID reflect (RFC 4456): they peer with all, the others with them only.
With the store away everything stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

from agent.background import Background
from agent.peering import mesh_settings
from bgp.settings import PeerSettings
from bgp.speaker import Speaker
from bgp.status import SpeakerError
from config.model import Config
from config.values import matches
from ipam import records
from ipam.errors import IpamError
from ipam.membership import persistently
from ipam.records import NodeRecord
from ipam.service import Ipam
from ipam.store import Entry

log = logging.getLogger("podroute.agent")

_RETRY = 0.5
"""Seconds between attempts while the store has never answered."""


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
        away, and so keeps what they had announced. ``on_added`` and ``on_removed`` are told of each session's name."""
        self.sessions: dict[str, PeerSettings] = {}
        self._config = config
        self._ipam = ipam
        self._speaker = speaker
        self._memory = memory
        self._on_added = on_added
        self._on_removed = on_removed
        self._nodes: dict[str, NodeRecord] = {}
        self._remembered = ""
        self._background = Background("mesh")

    def recall(self) -> None:
        """Have the sessions of the last run. Raises StartError."""
        try:
            text = self._memory.read_text()
            entries = [Entry("", line.encode(), 0, 0) for line in text.splitlines()]
            nodes = [records.decode_node(entry) for entry in entries]
        except FileNotFoundError:
            return
        except (OSError, ValueError, IpamError) as error:
            log.warning("mesh begins anew", extra={"fields": {"file": self._memory, "why": str(error)}})
            return
        self._nodes = {records.node_key(node.name): node for node in nodes}
        self._remembered = text
        self.sessions = dict(wanted_sessions(self._config, self._nodes.values(), ""))

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
        listing = await store.list(records.NODES)
        self._nodes = {entry.key: records.decode_node(entry) for entry in listing.entries}
        await self._apply()
        async for changes in store.watch(records.NODES, listing.revision):
            if changes.complete:
                self._nodes.clear()
            for key, entry in changes.changes:
                if entry is None:
                    self._nodes.pop(key, None)
                else:
                    self._nodes[key] = records.decode_node(entry)
            await self._apply()

    async def _apply(self) -> None:
        """Have the sessions that the records ask for; those that stay as they are notice nothing."""
        wanted = wanted_sessions(self._config, self._nodes.values(), self._ipam.identity.uuid)
        for name in [name for name, settings in self.sessions.items() if wanted.get(name) != settings]:
            await self._speaker.remove_peer(name)
            del self.sessions[name]
            self._on_removed(name)
            log.info("mesh session removed", extra={"fields": {"peer": name}})
        for name, settings in wanted.items():
            if name in self.sessions:
                continue
            try:
                self._speaker.add_peer(settings)
            except SpeakerError as error:
                log.error("mesh session not possible", extra={"fields": {"peer": name, "why": str(error)}})
                continue
            self.sessions[name] = settings
            self._on_added(name)
            log.info("mesh session added", extra={"fields": {"peer": name, "address": settings.address}})
        self._remember()

    def _remember(self) -> None:
        peers = {name.split("/")[1] for name in self.sessions}
        nodes = [node for node in self._nodes.values() if node.name in peers]
        text = "".join(records.encode_node(node).decode() + "\n" for node in nodes)
        if text != self._remembered:
            hidden = self._memory.with_suffix(".new")
            try:
                hidden.write_text(text)
                hidden.replace(self._memory)
                self._remembered = text
            except OSError as error:
                log.warning("mesh not written down", extra={"fields": {"file": self._memory, "why": str(error)}})


def wanted_sessions(config: Config, nodes: Iterable[NodeRecord], own_uuid: str) -> Mapping[str, PeerSettings]:
    """Return the sessions of this node's mesh entries, by name ``MESH/NODE/FAMILY``; the first entry to select wins."""
    found: dict[str, PeerSettings] = {}
    taken: set[str] = set()
    for name, mesh in config.mesh_here().items():
        for node in nodes:
            if node.uuid == own_uuid or not matches(mesh.select, dict(node.labels)):
                continue
            if mesh.reflectors and not config.bgp.cluster_id and not node.cluster_id:
                continue  # two clients: what one tells the other comes through the reflectors
            for ours, theirs in _pairs(config.node.addresses, node.addresses):
                family = "ipv4" if ip_address(theirs).version == 4 else "ipv6"
                if family in mesh.families and theirs not in taken:
                    taken.add(theirs)
                    peer = f"{name}/{node.name}/{family}"
                    found[peer] = mesh_settings(config, peer, mesh, node, ours, theirs)
    return found


def _pairs(ours: Iterable[str], theirs: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield our and their first address of each family that both have."""
    for version in (4, 6):
        own = next((one for one in ours if ip_address(one).version == version), None)
        other = next((one for one in theirs if "%" not in one and ip_address(one).version == version), None)
        if own is not None and other is not None:
            yield own, other
