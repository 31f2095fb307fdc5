"""Which sessions a mesh asks for: worked out node by node, and anew only for nodes whose record has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address

from agent.peering import mesh_password, mesh_settings
from bgp.settings import PeerSettings
from config.model import Config
from config.values import matches
from ipam.records import NodeRecord


class MeshSessions:
    """The nodes of the cluster, by any key, and the sessions that ``config`` wants with them."""

    def __init__(self, config: Config) -> None:
        """Raises StartError where a password file cannot be read; it is read once."""
        self.own_uuid = ""
        """The node with it is this one."""
        self._config = config
        self._passwords = {name: mesh_password(name, mesh) for name, mesh in config.mesh_here().items()}
        self._nodes: dict[str, NodeRecord] = {}
        self._of: dict[str, dict[str, PeerSettings]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._nodes

    def nodes(self) -> Mapping[str, NodeRecord]:
        return self._nodes

    def put(self, key: str, node: NodeRecord) -> None:
        self._nodes[key] = node
        self._of[key] = self._sessions_with(node)

    def remove(self, key: str) -> None:
        if self._nodes.pop(key, None) is not None:
            del self._of[key]

    def wanted(self) -> dict[str, PeerSettings]:
        """Return the sessions by name, ``MESH/NODE/FAMILY``.

        Of two nodes with one address the one that started last has it: a machine was set up anew under another name.
        """
        found: dict[str, PeerSettings] = {}
        taken = set(self._config.node.addresses)
        for key in sorted(self._nodes, key=lambda key: self._nodes[key].seen_at, reverse=True):
            for name, settings in self._of[key].items():
                if settings.address not in taken:
                    found[name] = settings
                    taken.add(settings.address)
        return found

    def _sessions_with(self, node: NodeRecord) -> dict[str, PeerSettings]:
        """Return what this node's mesh entries want with a node; the first entry to select it wins."""
        found: dict[str, PeerSettings] = {}
        if node.uuid == self.own_uuid:
            return found
        taken: set[str] = set()
        for name, mesh in self._config.mesh_here().items():
            if not matches(mesh.select, dict(node.labels)):
                continue
            if mesh.reflectors and not self._config.bgp.cluster_id and not node.cluster_id:
                continue  # two clients: what one tells the other comes through the reflectors
            for ours, theirs in _pairs(self._config.node.addresses, node.addresses):
                family = "ipv4" if ip_address(theirs).version == 4 else "ipv6"
                if family in mesh.families and theirs not in taken:
                    taken.add(theirs)
                    peer = f"{name}/{node.name}/{family}"
                    password = self._passwords[name]
                    found[peer] = mesh_settings(self._config, peer, mesh, node, ours, theirs, password)
        return found


def _pairs(ours: Iterable[str], theirs: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield our and their first address of each family that both have."""
    for version in (4, 6):
        own = next((one for one in ours if ip_address(one).version == version), None)
        other = next((one for one in theirs if "%" not in one and ip_address(one).version == version), None)
        if own is not None and other is not None:
            yield own, other
