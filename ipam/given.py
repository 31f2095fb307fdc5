"""Which addresses each handle has, in memory, small: about 150 octets a handle.

A handle is known by a digest of 15 octets, and what it has is packed; names and attributes stay in the ledger's file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from operator import itemgetter
from typing import NamedTuple

from config import prefix
from config.prefix import Family


class Handle(NamedTuple):
    """Whom addresses belong to: one interface of one container in one network."""

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.network}/{self.container_id}/{self.ifname}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One address in use."""

    family: Family
    address: str
    prefix: bytes
    """The address as a host prefix, wire bytes (config.prefix)."""
    pool: str
    block: bytes
    """The block it lies in, wire bytes."""

    @property
    def packed(self) -> bytes:
        return self.prefix[1:]


_HOST = {4: b"\x20", 16: b"\x80"}
"""The length octet of a host prefix, by the octets of an address."""
_DIGEST = 15
"""Octets: with one more a digest takes sixteen more."""
_PLACES = [bytes((place,)) for place in range(256)]


class Given:
    """Assignments by handle. Packed, an assignment is its host prefix, the block's length, its pool's number and its
    place among those of the handle."""

    def __init__(self) -> None:
        self._packed: dict[bytes, bytes] = {}
        self._pools: list[str] = []
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._packed)

    def get(self, handle: Handle) -> tuple[Assignment, ...] | None:
        """Return what a handle has, in the order in which it was given; None where it has nothing."""
        packed = self._packed.get(_digest(handle))
        return None if packed is None else self._unpack(packed)

    def put(self, handle: Handle, assignments: Iterable[Assignment]) -> None:
        each = (a.prefix + self._tail(a.block[0], a.pool) + _PLACES[place] for place, a in enumerate(assignments))
        self._packed[_digest(handle)] = b"".join(each)

    def drop(self, handle: Handle) -> None:
        self._packed.pop(_digest(handle), None)

    def load(self, rows: Iterable[tuple[bytes, bytes, bytes, str, int]]) -> None:
        """Take (text of a handle, packed address, block, pool, place) over, in any order; quick where blocks repeat."""
        packed = self._packed
        last: tuple[bytes, str] = b"", ""
        tail = b""
        for text, address, block, pool, place in rows:
            if (block, pool) != last:
                last, tail = (block, pool), self._tail(block[0], pool)
            digest = blake2b(text, digest_size=_DIGEST).digest()
            one = b"".join((_HOST[len(address)], address, tail, _PLACES[place]))
            packed[digest] = packed[digest] + one if digest in packed else one

    def _tail(self, length: int, pool: str) -> bytes:
        number = self._numbers.get(pool)
        if number is None:
            number = self._numbers[pool] = len(self._pools)
            self._pools.append(pool)
        return b"%c%b" % (length, number.to_bytes(2, "big"))

    def _unpack(self, packed: bytes) -> tuple[Assignment, ...]:
        found: list[tuple[int, Assignment]] = []
        at = 0
        while at < len(packed):
            family: Family = 4 if packed[at] == 32 else 6
            end = at + 1 + packed[at] // 8
            host, length, number = packed[at:end], packed[end], int.from_bytes(packed[end + 1 : end + 3], "big")
            block = prefix.make(family, int.from_bytes(host[1:], "big"), length)
            assignment = Assignment(family, prefix.address_text(host[1:]), host, self._pools[number], block)
            found.append((packed[end + 3], assignment))
            at = end + 4
        return tuple(one for _, one in sorted(found, key=itemgetter(0)))


def handle_text(handle: Handle) -> bytes:
    """Return the text of a handle, for ``Given.load``."""
    return "\0".join(handle).encode("utf-8", "surrogatepass")


def _digest(handle: Handle) -> bytes:
    return blake2b(handle_text(handle), digest_size=_DIGEST).digest()
