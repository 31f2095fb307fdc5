"""Everything in the RIBs that belongs to one peer."""

from __future__ import annotations

from collections.abc import Iterable

from bgp.adj_rib_in import AdjRibIn, RibPeer
from bgp.adj_rib_out import ExportGroup
from bgp.interning import Interned
from bgp.paths import Path
from bgp.policy import Changes, ImportPolicy
from config.prefix import Family


class PeerRib:
    def __init__(self, settings: RibPeer, adj_in: AdjRibIn) -> None:
        self.settings = settings
        self.adj_in = adj_in
        self.policy = ImportPolicy(settings.import_policy)
        self.groups: dict[Family, ExportGroup] = {}
        """Where the peer is a member while its session is up."""
        self.accepted: dict[Family, int] = {4: 0, 6: 0}
        """How many of its paths are in the Loc-RIB, ineligible ones included."""
        self.refused: dict[Family, dict[bytes, bytes]] = {4: {}, 6: {}}
        """Prefixes that are not accepted because they are ours, and which of ours they touch."""
        self.imported: Interned[tuple[Path, Changes], Path] = Interned()
        """What import policy made of a path."""

    @property
    def busy(self) -> bool:
        """The decision process has prefixes of this peer to look at."""
        return self.waiting(self.adj_in.dirty) > 0

    def waiting(self, families: Iterable[Family]) -> int:
        """How many prefixes of these families the decision process has yet to look at."""
        return sum(self.adj_in.dirty[family].waiting + self.adj_in.leaving(family) for family in families)
