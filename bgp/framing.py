"""Cutting a TCP byte stream into BGP messages (RFC 4271 sections 4.1 and 6.1)."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final

from bgp.messages import BgpError, MessageType

MARKER = b"\xff" * 16
HEADER_SIZE: Final = 19
STANDARD_LIMIT = 4096
EXTENDED_LIMIT = 65535
"""Longest message where the extended message capability is in force (RFC 8654)."""

_HEADER = Struct("!16sHB")

_MINIMUM: dict[int, int] = {
    MessageType.OPEN: 29,
    MessageType.UPDATE: 23,
    MessageType.NOTIFICATION: 21,
    MessageType.KEEPALIVE: 19,
    MessageType.ROUTE_REFRESH: 19,
}
"""RFC 4271 section 6.1; a ROUTE-REFRESH has an error code of its own for its length (RFC 7313 section 5)."""

_UPDATE: Final = int(MessageType.UPDATE)
_SHORTEST_UPDATE: Final = _MINIMUM[MessageType.UPDATE]

_MAXIMUM: dict[int, int] = {MessageType.OPEN: STANDARD_LIMIT, MessageType.KEEPALIVE: HEADER_SIZE}
"""RFC 8654 section 4 keeps OPEN short, RFC 4271 section 4.4 KEEPALIVE empty."""


def frame(kind: int, body: bytes) -> bytes:
    """Return a whole message: marker, length, type and body."""
    return _HEADER.pack(MARKER, HEADER_SIZE + len(body), kind) + body


class Framer:
    """Collects what a connection delivers and hands out whole messages.

    ``limit`` is the longest message accepted, in octets; it may be raised between two messages, when the
    session has negotiated extended messages.
    """

    def __init__(self, limit: int = STANDARD_LIMIT) -> None:
        self.limit = limit
        self._buffer = b""
        self._position = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take received octets and return an iterator over the whole messages so far, as ``(type, body)``.

        What the iterator is not asked for stays for the next call. It raises BgpError 1/1, 1/2 or 1/3
        (RFC 4271 section 6.1); the stream is of no use afterwards.
        """
        rest = self._buffer[self._position :] if self._position else self._buffer
        self._buffer = rest + data if rest else bytes(data)
        self._position = 0
        return self.messages()

    @property
    def ready(self) -> bool:
        """There is a whole message that has not been handed out, or a fault to be found."""
        left = len(self._buffer) - self._position
        if left < HEADER_SIZE:
            return False
        length = int.from_bytes(self._buffer[self._position + 16 : self._position + 18], "big")
        return left >= length or not HEADER_SIZE <= length <= self.limit

    @property
    def pending(self) -> int:
        """Octets received and not handed out."""
        return len(self._buffer) - self._position

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """Return an iterator over the whole messages that are left, as ``feed`` does."""
        buffer, start = self._buffer, self._position
        size = len(buffer)
        while size - start >= HEADER_SIZE:
            marker, length, kind = _HEADER.unpack_from(buffer, start)
            if marker != MARKER:
                raise BgpError(1, 1, reason=f"marker is {marker.hex()}, expected all ones")
            if not HEADER_SIZE <= length <= self.limit:
                self._bad_length(length, kind, HEADER_SIZE, self.limit)
            if kind != _UPDATE or length < _SHORTEST_UPDATE:
                self._check(length, kind)
            end = start + length
            if size < end:
                return
            self._position = end
            yield kind, buffer[start + HEADER_SIZE : end]
            start = end

    def updates(self, budget: int) -> list[bytes]:
        """Return the bodies of the UPDATEs that come next, as many as start within ``budget`` octets.

        Empty where another message comes first, a fault, or nothing whole: ``messages`` says which.
        """
        bodies: list[bytes] = []
        marker, limit = MARKER, self.limit
        buffer, start = self._buffer, self._position
        last = min(len(buffer) - HEADER_SIZE, start + budget - 1)
        while start <= last:
            length = buffer[start + 16] << 8 | buffer[start + 17]
            end = start + length
            if buffer[start + 18] != _UPDATE or buffer[start : start + 16] != marker:
                break
            if not _SHORTEST_UPDATE <= length <= limit or end > len(buffer):
                break
            bodies.append(buffer[start + HEADER_SIZE : end])
            start = end
        self._position = start
        return bodies

    def _check(self, length: int, kind: int) -> None:
        """Raise BgpError for a type that does not exist, or may not have this length."""
        minimum = _MINIMUM.get(kind)
        if minimum is None:
            raise BgpError(1, 3, bytes((kind,)), f"unknown message type {kind}")
        maximum = _MAXIMUM.get(kind, self.limit)
        if not minimum <= length <= maximum:
            self._bad_length(length, kind, minimum, maximum)

    @staticmethod
    def _bad_length(length: int, kind: int, minimum: int, maximum: int) -> None:
        raise BgpError(
            1,
            2,
            length.to_bytes(2, "big"),
            f"message of type {kind} is {length} octets long, expected {minimum} to {maximum}",
        )
