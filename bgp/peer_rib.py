"""Everything in the RIBs that belongs to one peer."""

from __future__ import annotations

from collections.abc import Iterable

from bgp.adj_rib_in import AdjRibIn, RibPeer
from bgp.adj_rib_out import ExportGroup
from bgp.first_paths import FirstPaths
from bgp.interning import Interned
from bgp.loc_rib import Changes as LocRibChanges
from bgp.loc_rib import LocRib
from bgp.own_prefixes import OwnPrefixes
from bgp.paths import Path
from bgp.policy import Changes, ImportPolicy
from config.prefix import Family

_FEW = 64
"""So many refused prefixes are looked at whenever UPDATEs arrive."""


class PeerRib:
    def __init__(self, settings: RibPeer, adj_in: AdjRibIn) -> None:
        self.settings = settings
        self.adj_in = adj_in
        self.policy = ImportPolicy(settings.import_policy)
        self.groups: dict[Family, ExportGroup] = {}
        """Where the peer is a member while its session is up."""
        self.accepted: dict[Family, int] = {4: 0, 6: 0}
        """How many of its paths are in the Loc-RIB, ineligible ones included."""
        self._first: dict[Family, int] = {4: 0, 6: 0}
        """How many of its paths have been taken without a decision since the beginning."""
        self.refused: dict[Family, dict[bytes, bytes]] = {4: {}, 6: {}}
        """Prefixes that are not accepted because they are ours, and which of ours they touch; empty where the peer's
        path could not be used anyway."""
        self.imported: Interned[tuple[Path, Changes], Path] = Interned()
        """What import policy made of a path."""

    @property
    def busy(self) -> bool:
        """The decision process has prefixes of this peer to look at."""
        return self.waiting(self.adj_in.dirty) > 0

    def waiting(self, families: Iterable[Family]) -> int:
        """How many prefixes of these families the decision process has yet to look at."""
        return sum(self.adj_in.dirty[family].waiting + self.adj_in.leaving(family) for family in families)

    def told(self, family: Family) -> int:
        """Return of how many prefixes the peer has said something since the beginning, each as often as it did."""
        return self.adj_in.dirty[family].added + self._first[family]

    def first_paths(
        self, loc: LocRib, own: OwnPrefixes, changes: LocRibChanges, *, room: int, exported: bool
    ) -> FirstPaths | None:
        """Return what takes up to ``room`` first paths of this peer; None: about these, too, there is to decide.

        The caller hands it to ``took`` afterwards. ``exported``: somebody wants to know the best paths.
        """
        leads, refused = own.leads, self.refused[loc.family]
        if leads is None or len(refused) > _FEW or not self.policy.passes_all(loc.family):
            return None
        leads |= {prefix[1:2] for prefix in refused}
        return FirstPaths(loc, changes, leads, room=room, exported=exported)

    def took(self, first: FirstPaths) -> int:
        """Take note of what was taken as first paths, and return how much it is."""
        self.accepted[first.family] += first.gained
        self._first[first.family] += first.gained
        return first.gained
