"""NLRI in bulk: between the octets of an UPDATE and prefixes as wire bytes (RFC 4271 section 4.3, RFC 4760 section 5).

This is the hottest code of the speaker, so a prefix never becomes an object here. Where path identifiers were
negotiated (RFC 7911) a route is four octets of identifier with the prefix behind them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from struct import iter_unpack

from bgp.containers import Neighbours
from config.prefix import LEAD, Run

PATH_ID = 4
"""Octets of a path identifier (RFC 7911 section 3)."""
_LEAD = {32: LEAD[4], 128: LEAD[6]}
_RUN = 16
"""Fewer prefixes are as fast one by one."""


def longest(numbered: bool) -> int:
    """Return how many octets the NLRI of one route takes at most."""
    return 17 + PATH_ID if numbered else 17


def decode(data: bytes, bits: int, numbered: bool = False) -> list[bytes]:
    """Return the prefixes of an NLRI field, host bits masked, in the order received.

    ``bits`` is the address size, 32 or 128. ``numbered``: each prefix has its path identifier before it, PATH_ID octets
    (RFC 7911 section 3). Raises ValueError for a length beyond ``bits`` and for a field cut short.
    """
    size = len(data)
    if not size:
        return []
    if numbered:
        return _one_by_one(data, bits, PATH_ID)
    length = data[0]
    step = 1 + (length + 7 >> 3)
    if size == step and not length & 7 and length <= bits:
        return [data]
    # Where every step-th octet is the same length octet, the whole field is prefixes of that length, by induction.
    if not length & 7 and length <= bits and size % step == 0 and data[::step].count(length) * step == size:
        alike = list(chain.from_iterable(iter_unpack(f"{step}s", data)))
        if len(alike) < _RUN or step <= _LEAD[bits]:
            return alike
        runs = _runs(data, step, _LEAD[bits], alike)
        return Neighbours(alike, runs) if runs else alike
    return _one_by_one(data, bits, 0)


def _one_by_one(data: bytes, bits: int, lead: int) -> list[bytes]:
    """Decode prefixes with ``lead`` octets before each."""
    size = len(data)
    found: list[bytes] = []
    append = found.append
    at = 0
    while at < size:
        start = at + lead
        if start >= size:
            raise ValueError("path identifier without a prefix")
        length = data[start]
        end = start + 1 + (length + 7 >> 3)
        if length > bits:
            raise ValueError(f"prefix length {length} exceeds {bits}")
        if end > size:
            raise ValueError(f"prefix of length {length} is cut short")
        host = 0xFF >> (length & 7) if length & 7 else 0
        if host and data[end - 1] & host:
            append(data[at : end - 1] + bytes((data[end - 1] & ~host,)))
        else:
            append(data[at:end])
        at = end
    return found


def _runs(data: bytes, step: int, lead: int, prefixes: list[bytes]) -> list[Run]:
    """Cut prefixes of one length, ``step`` octets each, where their leading octets change; nothing if that is often."""
    runs: list[Run] = []
    columns = [data[at::step] for at in range(1, lead)]
    start, left = 0, len(prefixes)
    while left:
        length = left - max(len(column.lstrip(column[:1])) for column in columns)
        runs.append(Run(prefixes[start : start + length]))
        if len(runs) * _RUN > len(prefixes):
            return []
        columns = [column[length:] for column in columns]
        start, left = start + length, left - length
    return runs if len(set(prefixes)) == len(prefixes) else []


def chunks(prefixes: Iterable[bytes], room: int) -> Iterator[bytes]:
    """Join prefixes, with path identifiers or without, into NLRI fields of at most ``room`` octets each, in order.

    A prefix takes up to ``longest`` octets; ``room`` must hold one.
    """
    pending: list[bytes] = []
    size = 0
    for prefix in prefixes:
        size += len(prefix)
        if size > room and pending:
            yield b"".join(pending)
            pending.clear()
            size = len(prefix)
        pending.append(prefix)
    if pending:
        yield b"".join(pending)
