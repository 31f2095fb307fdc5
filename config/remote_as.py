"""Which AS numbers a peer may be in: one, or for a range of peers several, or all that are ours or are not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, PlainValidator

from config.values import REFUSED_AS, refused, wrong

_SPAN = re.compile(r"([0-9]{1,10})-([0-9]{1,10})")
_LARGEST = 4294967294
_RIGHT = f"an AS number, 1 to {_LARGEST} as one integer"
_LISTED = f'external, internal, {_RIGHT}, or a list of numbers and ranges such as [65011, "65020-65029"]'


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


def _parsed(value: Any) -> RemoteAs:
    if value in ("internal", "external"):
        return RemoteAs(kind=value)
    if isinstance(value, list) and value:
        return RemoteAs(tuple(sorted(_span(item) for item in value)))
    if isinstance(value, int) and not isinstance(value, bool):
        return RemoteAs.of(_number(value, value))
    raise wrong(value, _LISTED if isinstance(value, list) else _RIGHT)


def _span(item: Any) -> tuple[int, int]:
    found = _SPAN.fullmatch(item) if isinstance(item, str) else None
    if found:
        first, last = _number(int(found[1]), item), _number(int(found[2]), item)
        if first < last:
            return first, last
    elif isinstance(item, int) and not isinstance(item, bool):
        return _number(item, item), item
    raise wrong(item, 'an AS number or a range of them in quotes, "65020-65029"')


def _number(number: int, value: Any) -> int:
    if number in REFUSED_AS:
        raise refused(f"is {number}, must be an AS number that may be used: {REFUSED_AS[number]}")
    if not 1 <= number <= _LARGEST:
        raise wrong(value, _RIGHT)
    return number


RemoteAsField = Annotated[RemoteAs, PlainValidator(_parsed), PlainSerializer(lambda value: value.written)]
