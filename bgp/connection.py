"""One TCP connection under asyncio: octets in both directions with back-pressure, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

from bgp.sockets import Endpoint, endpoint_of, unacknowledged

READ_SIZE = 64 * 1024
"""Octets taken in one turn of the event loop: some 16,000 prefixes, milliseconds of work."""
WRITE_HIGH, WRITE_LOW = 128 * 1024, 32 * 1024
LINGER = 2.0
"""Seconds that a closing connection may take to deliver what is written and to see the peer's end."""

CLOSED = "the peer closed the connection"
CLOSINGS = frozenset(
    {CLOSED, *(f"connection lost: {os.strerror(number)}" for number in (errno.ECONNRESET, errno.EPIPE))}
)
"""How a connection that the peer has closed ends, by what was on its way then."""


class Connection(asyncio.BufferedProtocol):
    """The transport of one session.

    ``received`` gets the octets as they come, ``lost`` the reason for people when the connection is gone without our
    doing, ``writable`` is called when a full send buffer has drained. None of them is called after ``finish``.
    ``buffer`` is what reads go through, READ_SIZE long; all connections of one event loop may share it.
    """

    def __init__(
        self,
        sock: socket.socket,
        buffer: bytearray,
        *,
        received: Callable[[bytes], None],
        lost: Callable[[str], None],
        writable: Callable[[], None],
    ) -> None:
        self.local: Endpoint = endpoint_of(sock, sock.getsockname())
        self.remote: Endpoint = endpoint_of(sock, sock.getpeername())
        self.can_write = True
        self.written = 0
        """Octets that were handed to ``write``."""
        self._sock = sock
        self._received, self._lost, self._writable = received, lost, writable
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._finished = False
        self._deadline: asyncio.TimerHandle | None = None
        self._gone = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        """Put the socket under the event loop. Raises OSError."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, sock=self._sock)
        except BaseException:
            self.abort()
            self._sock.close()
            raise

    def write(self, data: bytes) -> None:
        """Send, or keep for sending while the peer is slow; ``can_write`` says whether there should be more."""
        if self._transport is not None and not self._finished:
            self.written += len(data)
            self._transport.write(data)

    def reading(self, wanted: bool) -> None:
        """Take octets from the peer, or let them wait in TCP, which slows the peer down."""
        if self._transport is not None and not self._finished and not self._transport.is_closing():
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    @property
    def unsent(self) -> int:
        """Octets that TCP has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def unacknowledged(self) -> int:
        """Octets written that the peer's TCP has not acknowledged."""
        if self._transport is None or self._transport.is_closing():
            return 0
        return self.unsent + unacknowledged(self._sock.fileno())

    def finish(self) -> None:
        """End the connection: what is written still goes out, then our half is closed and the peer's end awaited.

        Closing at once would answer what the peer has in flight with a reset, and that could overtake a NOTIFICATION.
        """
        if self._finished:
            return
        self._finished = True
        transport = self._transport
        if transport is None:
            self._sock.close()
            self._settle()
        elif not transport.is_closing():
            try:
                transport.write_eof()
            except OSError:  # the peer has reset the connection, which the event loop has yet to see
                transport.abort()
            else:
                self._abort_later()

    def abort(self) -> None:
        """End the connection now, with a reset."""
        self._finished = True
        if self._transport is not None:
            self._transport.abort()

    async def finished(self) -> None:
        """Wait until the connection is gone; after ``finish`` that takes LINGER seconds at most."""
        await self._gone

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        if self._finished:
            transport.abort()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self._finished:
            self._received(bytes(memoryview(self._buffer)[:nbytes]))

    def eof_received(self) -> bool:
        if not self._finished:
            self._finished = True
            self._abort_later()
            self._lost(CLOSED)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        if not self._finished:
            self._finished = True
            self._lost(_explain(exc))

    def pause_writing(self) -> None:
        self.can_write = False

    def resume_writing(self) -> None:
        self.can_write = True
        if not self._finished:
            self._writable()

    def _abort_later(self) -> None:
        assert self._transport is not None
        self._deadline = asyncio.get_running_loop().call_later(LINGER, self._transport.abort)

    def _settle(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not self._gone.done():
            self._gone.set_result(None)


def _explain(error: Exception | None) -> str:
    if isinstance(error, OSError) and error.errno:
        return f"connection lost: {os.strerror(error.errno)}"
    return f"connection lost: {error}" if error else "connection lost"
