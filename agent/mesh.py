"""Sessions with other nodes of the cluster, out of their records in the store.

A ``mesh`` entry selects nodes by label; each that it selects has one session per address family that both sides have an
address of, which comes and goes with the node's record and touches no other. The side with the lower address dials.
With the store away everything stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import ip_address

from agent.peering import mesh_settings
from bgp.settings import PeerSettings
from bgp.speaker import Speaker
from bgp.status import SpeakerError
from config.model import Config
from config.values import matches
from ipam import records
from ipam.errors import IpamError
from ipam.records import NodeRecord
from ipam.service import Ipam

log = logging.getLogger("podroute.agent")

_RETRY = 0.5
"""Seconds between attempts while the store has never answered."""


class Mesh:
    def __init__(self, config: Config, ipam: Ipam, speaker: Speaker) -> None:
        self._config = config
        self._ipam = ipam
        self._speaker = speaker
        self._sessions: dict[str, PeerSettings] = {}
        self._nodes: dict[str, NodeRecord] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._config.mesh_here():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="mesh")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except IpamError as error:
                log.debug("mesh waits for the store", extra={"fields": {"why": str(error)}})
            await asyncio.sleep(_RETRY)

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
        for name in [name for name, settings in self._sessions.items() if wanted.get(name) != settings]:
            await self._speaker.remove_peer(name)
            del self._sessions[name]
            log.info("mesh session removed", extra={"fields": {"peer": name}})
        for name, settings in wanted.items():
            if name in self._sessions:
                continue
            try:
                self._speaker.add_peer(settings)
            except SpeakerError as error:
                log.error("mesh session not possible", extra={"fields": {"peer": name, "why": str(error)}})
                continue
            self._sessions[name] = settings
            log.info("mesh session added", extra={"fields": {"peer": name, "address": settings.address}})


def in_mesh(session: str, meshes: Collection[str]) -> bool:
    """Tell from its name whether a session is one of these mesh entries."""
    name, separator, _ = session.partition("/")
    return bool(separator) and name in meshes


def wanted_sessions(config: Config, nodes: Iterable[NodeRecord], own_uuid: str) -> Mapping[str, PeerSettings]:
    """Return the sessions of this node's mesh entries, by name ``MESH/NODE/FAMILY``; the first entry to select wins."""
    found: dict[str, PeerSettings] = {}
    taken: set[str] = set()
    for name, mesh in config.mesh_here().items():
        for node in nodes:
            if node.uuid == own_uuid or not matches(mesh.select, dict(node.labels)):
                continue
            for ours, theirs in _pairs(config.node.addresses, node.addresses):
                family = "ipv4" if ip_address(theirs).version == 4 else "ipv6"
                if family in mesh.families and theirs not in taken:
                    taken.add(theirs)
                    peer = f"{name}/{node.name}/{family}"
                    found[peer] = mesh_settings(config, peer, mesh, node.asn, ours, theirs)
    return found


def _pairs(ours: Iterable[str], theirs: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield our and their first address of each family that both have."""
    for version in (4, 6):
        own = next((one for one in ours if ip_address(one).version == version), None)
        other = next((one for one in theirs if "%" not in one and ip_address(one).version == version), None)
        if own is not None and other is not None:
            yield own, other
