"""One TCP connection with the speaker under test, and the observer that sees what it passes on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from struct import pack

from tests.conformance.bgp import wire

PATIENCE = 15.0
"""Seconds that a speaker may take for anything without a timer in it."""
RETRY = 0.3


class EndedError(Exception):
    """The connection is gone; ``how`` is ``CODE/SUBCODE`` of the NOTIFICATION, or ``closed``."""

    def __init__(self, how: str, data: bytes = b"") -> None:
        super().__init__(how)
        self.how = how
        self.data = data


class NotRunError(Exception):
    """The case could not be put to the speaker."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the speaker under test is, and who the suite is to it."""

    address: str
    asn: int
    outside_as: int
    """AS of the suite on external sessions."""
    internal: bool
    """Routes are sent on internal sessions and watched on an external one; else the other way round."""
    sources: tuple[str, ...]
    """Addresses that are configured as peers for sending."""
    observer: str | None = None
    """The address that is configured as the peer to watch on."""
    active: str | None = None
    """The address that is configured as a peer to which the speaker connects by itself."""
    port: int = 179
    next_hop6: str = "2001:db8:ffff::9"

    @property
    def local_as(self) -> int:
        return self.asn if self.internal else self.outside_as

    @property
    def observer_as(self) -> int:
        return self.outside_as if self.internal else self.asn


@dataclass(eq=False)
class Connection:
    """Sends octets and hands out messages. ``source`` is the suite's address."""

    target: Target
    source: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    opening: wire.Opening | None = None
    """The speaker's, once it has been read."""

    @classmethod
    async def dial(cls, target: Target, source: str, *, patience: float = PATIENCE) -> Connection:
        """Connect, again and again until the speaker takes the connection and sends its OPEN. Raises NotRunError."""
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            try:
                connection = await cls.connect(target, source)
            except OSError as error:
                failure = EndedError(f"no connection: {error.strerror or error}")
            else:
                try:
                    await connection.read_opening()
                    return connection
                except EndedError as error:
                    await connection.close()
                    failure = error
            if asyncio.get_running_loop().time() > deadline:
                raise NotRunError(f"the speaker takes no connection from {source}: {failure.how}")
            await asyncio.sleep(RETRY)

    @classmethod
    async def connect(cls, target: Target, source: str) -> Connection:
        """Connect once, and read nothing. Raises OSError."""
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(target.address, target.port, local_addr=(source, 0))
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(target, source, reader, writer)

    async def read_opening(self) -> wire.Opening:
        """Read the speaker's OPEN, which must come first. Raises EndedError."""
        kind, body = await self.read()
        if kind != wire.OPEN:
            raise EndedError(f"message of type {kind} instead of an OPEN")
        self.opening = wire.decode_opening(body)
        return self.opening

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with suppress(OSError):  # what the speaker had to say about it is read first
            await self.writer.drain()

    async def read(self, *, patience: float = PATIENCE) -> tuple[int, bytes]:
        """Return the next message as ``(type, body)``.

        Raises EndedError at the end and for a NOTIFICATION, TimeoutError.
        """
        async with asyncio.timeout(patience):
            try:
                head = await self.reader.readexactly(19)
                body = await self.reader.readexactly(int.from_bytes(head[16:18], "big") - 19)
            except (asyncio.IncompleteReadError, OSError):
                raise EndedError("closed") from None
        if head[18] == wire.NOTIFICATION:
            raise EndedError(f"{body[0]}/{body[1]}", body[2:])
        return head[18], body

    async def ending(self, *, patience: float = PATIENCE) -> EndedError | None:
        """Read on to the end of the connection; None where it does not end in time."""
        try:
            async with asyncio.timeout(patience):
                while True:
                    await self.read(patience=patience)
        except EndedError as ended:
            return ended
        except TimeoutError:
            return None

    async def hello(self, **options: object) -> None:
        """Send a good OPEN."""
        await self.send(wire.message(wire.OPEN, good_open(self.target, self.source, **options)))  # type: ignore[arg-type]

    async def confirm(self) -> None:
        """Send a KEEPALIVE and wait for one: the session is established. Raises EndedError, TimeoutError."""
        await self.send(wire.message(wire.KEEPALIVE))
        while (await self.read())[0] != wire.KEEPALIVE:
            pass

    async def close(self) -> None:
        """End the connection with a reset, so that neither side keeps anything of it."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def cease(self) -> None:
        """End the connection politely (RFC 4486: Administrative Shutdown), then close it."""
        await self.send(wire.message(wire.NOTIFICATION, b"\6\2"))
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


def good_open(
    target: Target,
    source: str,
    *,
    hold_time: int = 90,
    identifier: str | None = None,
    as_number: int | None = None,
    wide: bool = True,
    extra: bytes = b"",
) -> bytes:
    """Return the body of an OPEN that the speaker accepts; ``wide`` is the 4-octet AS capability."""
    asn = target.local_as if as_number is None else as_number
    capabilities = wire.multiprotocol(1) + wire.multiprotocol(2) + wire.capability(2)
    if wide:
        capabilities += wire.four_octet_as(asn)
    return wire.opening(asn, hold_time, identifier or source, wire.parameter(capabilities + extra))


async def established(target: Target, source: str, **options: object) -> Connection:
    """Return an established session. Raises NotRunError."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while True:
        connection = await Connection.dial(target, source)
        try:
            await connection.hello(**options)
            await connection.confirm()
        except (EndedError, TimeoutError) as error:
            await connection.close()
            if asyncio.get_running_loop().time() > deadline:
                raise NotRunError(f"no session from {source}: {error}") from None
            await asyncio.sleep(RETRY)
        else:
            return connection


@dataclass
class Observer:
    """A session on which the suite only listens: what the speaker announces at the moment, by prefix."""

    connection: Connection
    routes: dict[str, wire.Attributes] = field(default_factory=dict)
    end_of_rib: set[int] = field(default_factory=set)
    fault: str = ""
    """Why nothing is seen any more; empty while all is well."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Read for as long as the session lasts."""
        try:
            while True:
                kind, body = await self.connection.read(patience=600)
                if kind == wire.UPDATE:
                    self._take(wire.decode_update(body))
        except EndedError as ended:
            self.fault = f"the observer's session ended: {ended.how}"
        except (ValueError, IndexError) as error:
            self.fault = f"the observer received an UPDATE that cannot be read: {error}"
        finally:
            self._tell()

    async def until(self, holds: Callable[[], bool], *, patience: float = PATIENCE) -> bool:
        """Wait until ``holds()``; False: not in time. Raises NotRunError where the observer is blind."""
        try:
            async with asyncio.timeout(patience):
                while not holds():
                    if self.fault:
                        raise NotRunError(self.fault)
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _take(self, update: wire.Update) -> None:
        for prefix in update.withdrawn:
            self.routes.pop(prefix, None)
        for prefix in update.announced:
            self.routes[prefix] = update.attributes
        if update.end_of_rib is not None:
            self.end_of_rib.add(update.end_of_rib)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
