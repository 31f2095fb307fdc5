"""Which AS numbers a peer may be in: one, or for a range of peers several, or all that are ours or are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class RemoteAs:
    """AS numbers listed in ``spans``, or all that are ``internal`` or ``external`` as seen from our own."""

    spans: tuple[tuple[int, int], ...] = ()
    """First and last number of each, in order; empty where ``kind`` says it all."""
    kind: Literal["listed", "internal", "external"] = "listed"

    @classmethod
    def of(cls, asn: int) -> RemoteAs:
        """Return the one AS ``asn``."""
        return cls(((asn, asn),))

    @property
    def only(self) -> int | None:
        """The one AS number there is, None for more."""
        if len(self.spans) == 1 and self.spans[0][0] == self.spans[0][1]:
            return self.spans[0][0]
        return None

    def admits(self, asn: int, local_as: int) -> bool:
        """Tell whether a peer in ``asn`` is one of those meant by a speaker in ``local_as``."""
        if self.kind == "listed":
            return any(first <= asn <= last for first, last in self.spans)
        return (asn == local_as) is (self.kind == "internal")

    def external(self, local_as: int) -> bool:
        """Tell whether some of these numbers are not ``local_as``."""
        return self.kind == "external" or (self.kind == "listed" and self.only != local_as)

    def known(self, local_as: int) -> int | None:
        """Return the AS number where there is but one as seen from ``local_as``."""
        return local_as if self.kind == "internal" else self.only

    @property
    def written(self) -> int | str | list[int | str]:
        """As an operator writes it."""
        if self.kind != "listed":
            return self.kind
        return self.only or [first if first == last else f"{first}-{last}" for first, last in self.spans]

    def __str__(self) -> str:
        written = self.written
        return ", ".join(map(str, written)) if isinstance(written, list) else str(written)
