"""The prefixes that start here, each with its owners, and the guard that keeps peers from taking them over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bgp.containers import Neighbours
from bgp.policy import Source
from config.prefix import Family, Run, contains

_GUARDED: tuple[Source, ...] = ("block", "exception")
"""Sources of prefixes that are ours alone. What configuration adds may be announced by several nodes (anycast)."""

_PRECEDENCE: tuple[Source, ...] = ("block", "exception", "aggregate", "static")


class OwnPrefixes:
    """Originated prefixes of one family. A prefix stays until its last owner has gone."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._owners: dict[bytes, dict[str, Source]] = {}
        self._guarded: dict[bytes, None] = {}
        self._lent: frozenset[bytes] = frozenset()
        self.guard_changes = 0
        """Counts how often what the guard keeps out has changed."""
        self.guards = False
        """There is something that peers may not announce."""
        self._leads: frozenset[bytes] = frozenset()
        self._any_lead = False

    def add(self, prefix: bytes, owner: str, source: Source) -> None:
        """Add an owner of a prefix, or change the source that an owner names."""
        self._owners.setdefault(prefix, {})[owner] = source
        self._arm(prefix)

    def remove(self, prefix: bytes, owner: str) -> bool:
        """Remove an owner; tell whether the prefix still has one. An unknown owner is no error."""
        owners = self._owners.get(prefix, {})
        owners.pop(owner, None)
        if not owners:
            self._owners.pop(prefix, None)
        self._arm(prefix)
        return bool(owners)

    def source(self, prefix: bytes) -> Source:
        """Return where a prefix comes from; KeyError where it does not start here."""
        sources = self._owners[prefix].values()
        return min(sources, key=_PRECEDENCE.index)

    def owners(self, prefix: bytes) -> dict[str, Source]:
        """Return the owners of a prefix and their sources; empty where it does not start here."""
        return dict(self._owners.get(prefix, {}))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._owners)

    def __contains__(self, prefix: bytes) -> bool:
        return prefix in self._owners

    @property
    def leads(self) -> frozenset[bytes] | None:
        """The first octets of all prefixes for which ``violated`` may have something to say; None: they may be any."""
        return None if self._any_lead else self._leads

    def touched(self, prefixes: Iterable[bytes]) -> list[bytes]:
        """Return those of many prefixes for which ``violated`` may have something to say."""
        if not self._guarded:
            return []
        leads = self._leads
        if self._any_lead or (isinstance(prefixes, Run) and prefixes[0][1:2] in leads):
            return list(prefixes)
        if isinstance(prefixes, Run):
            return []
        if isinstance(prefixes, Neighbours):
            return [prefix for run in prefixes.runs for prefix in self.touched(run)]
        return [prefix for prefix in prefixes if prefix[1:2] in leads]

    def violated(self, prefix: bytes) -> bytes | None:
        """Return the guarded prefix that ``prefix`` is, or is a more specific of; None where there is none."""
        if (prefix[1:2] not in self._leads and not self._any_lead) or prefix in self._lent:
            return None
        return next((own for own in self._guarded if contains(own, prefix)), None)

    def lend(self, prefixes: Iterable[bytes]) -> None:
        """Let peers announce these, and no others, although they are more specifics of our own."""
        lent = frozenset(prefixes)
        if lent != self._lent:
            self._lent = lent
            self.guard_changes += 1

    def _arm(self, prefix: bytes) -> None:
        """Follow a change of the owners of a prefix."""
        guarded = any(source in _GUARDED for source in self._owners.get(prefix, {}).values())
        if guarded == (prefix in self._guarded):
            return
        self.guard_changes += 1
        if guarded:
            self._guarded[prefix] = None
        else:
            del self._guarded[prefix]
        self.guards = bool(self._guarded)
        self._leads = frozenset(p[1:2] for p in self._guarded)
        self._any_lead = any(p[0] < 8 for p in self._guarded)
