"""Several paths to one prefix (RFC 7911), to speakers that offer to receive them.

``accept``      what the suite announced last, and did not withdraw, is passed on
``stale``       what it replaced or withdrew is passed on still
``withdraw``    nothing is passed on
``reset c/s``   the session ended
``not offered`` the speaker takes no path identifiers; it need not
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from struct import pack

from tests.conformance.bgp import wire
from tests.conformance.bgp.cases import Case, Expected, any_of
from tests.conformance.bgp.session import Connection, EndedError, NotRunError, established
from tests.conformance.bgp.suite import Suite
from tests.conformance.bgp.updates import NEW_AS, OLD_AS, Scene, prefixes

GROUP = "ADD-PATH"
CAPABILITY, RECEIVE, SEND = 69, 1, 2
OPTIONAL = any_of("not offered")
ACCEPT, WITHDRAW, RESET = any_of("accept"), any_of("withdraw"), any_of("reset")


@dataclass(frozen=True, slots=True)
class Talk:
    """What the octets of a row are made from. ``numbered``: NLRI have path identifiers."""

    scene: Scene
    numbered: bool = True

    def nlri(self, number: int) -> bytes:
        prefix = wire.nlri(self.scene.prefix6 if self.scene.six else self.scene.prefix)
        return pack("!I", number) + prefix if self.numbered else prefix

    def announce(self, number: int, last: int = NEW_AS) -> bytes:
        section = b"".join(value for _, value in sorted(self.scene.good(last).items()))
        if self.scene.six:
            hop = wire.packed(self.scene.target.next_hop6)
            return wire.update(wire.mp_reach(self.nlri(number), hop) + section)
        return wire.update(section, self.nlri(number))

    def withdraw(self, number: int) -> bytes:
        if self.scene.six:
            return wire.update(wire.mp_unreach(self.nlri(number)))
        return wire.update(withdrawn=self.nlri(number))


Build = Callable[[Talk], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Row:
    """Messages in order; ``mode`` is the suite's Send/Receive value (section 4)."""

    build: Build
    mode: int = SEND
    six: bool = False

    async def run(self, suite: Suite) -> str:
        async with suite.source() as source:
            value = b"".join(pack("!HBB", afi, 1, self.mode) for afi in (1, 2))
            connection = await established(suite.target, source, extra=wire.capability(CAPABILITY, value))
            try:
                return await self._play(suite, connection)
            finally:
                await connection.close()

    async def _play(self, suite: Suite, connection: Connection) -> str:
        if not _receives(connection):
            return "not offered"
        number = suite.number()
        scene = Scene(suite.target, connection.source, *prefixes(suite.target, number), wide=True, six=self.six)
        last, _ = prefixes(suite.target, number, sentinel=True)
        talk = Talk(scene, self.mode == SEND)
        sentinel = Talk(replace(scene, prefix=last, six=False), self.mode == SEND)
        reading = asyncio.create_task(connection.ending(patience=60))
        try:
            for message in self.build(talk):
                await connection.send(message)
            await connection.send(sentinel.announce(1))
            if suite.observer is None:
                await asyncio.wait([reading], timeout=1.0)
            else:
                observer = suite.observer
                seen = asyncio.create_task(observer.until(lambda: last in observer.routes))
                await asyncio.wait([seen, reading], return_when=asyncio.FIRST_COMPLETED)
                if seen.done() and not seen.result() and not reading.done():
                    raise NotRunError("the sentinel is not passed on")
                seen.cancel()
                await asyncio.wait([seen])
            ended = reading.result() if reading.done() else None
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        if ended is not None:
            raise ended
        if suite.observer is None:
            return "alive"
        found = suite.observer.routes.get(scene.prefix6 if self.six else scene.prefix)
        if found is None:
            return "withdraw"
        return "accept" if found[wire.AS_PATH][1].endswith(pack("!I", NEW_AS)) else "stale"


def _receives(connection: Connection) -> bool:
    if connection.opening is None:
        raise EndedError("no OPEN")
    values = connection.opening.capabilities.get(CAPABILITY, [])
    modes = {value[at : at + 3]: value[at + 3] for value in values for at in range(0, len(value), 4)}
    return all(modes.get(pack("!HB", afi, 1), 0) & RECEIVE for afi in (1, 2))


_ROWS: tuple[tuple[str, str, Row, Expected], ...] = (
    ("RFC 7911 3", "a path with an identifier", Row(lambda t: (t.announce(7),)), ACCEPT),
    ("RFC 7911 3", "identifier 0", Row(lambda t: (t.announce(0),)), ACCEPT),
    ("RFC 7911 3", "identifier 4294967295", Row(lambda t: (t.announce(0xFFFFFFFF),)), ACCEPT),
    (
        "RFC 7911 2",
        "one of two paths withdrawn",
        Row(lambda t: (t.announce(1, OLD_AS), t.announce(2), t.withdraw(1))),
        ACCEPT,
    ),
    (
        "RFC 7911 2",
        "one of two IPv6 paths withdrawn",
        Row(lambda t: (t.announce(1, OLD_AS), t.announce(2), t.withdraw(1)), six=True),
        ACCEPT,
    ),
    (
        "RFC 7911 2",
        "both paths withdrawn",
        Row(lambda t: (t.announce(1, OLD_AS), t.announce(2), t.withdraw(1), t.withdraw(2))),
        WITHDRAW,
    ),
    ("RFC 7911 2", "a path replaced", Row(lambda t: (t.announce(1, OLD_AS), t.announce(1))), ACCEPT),
    (
        "RFC 7911 2",
        "a path replaced, then withdrawn",
        Row(lambda t: (t.announce(1, OLD_AS), t.announce(1), t.withdraw(1))),
        WITHDRAW,
    ),
    ("RFC 7911 2", "an unknown identifier withdrawn", Row(lambda t: (t.announce(1), t.withdraw(9))), ACCEPT),
    (
        "RFC 7606 5.3",
        "NLRI that end in an identifier",
        Row(lambda t: (wire.update(b"".join(t.scene.good().values()), t.nlri(1) + b"\0\0\0"),)),
        RESET,
    ),
    (
        "RFC 7606 5.3",
        "NLRI that end behind an identifier",
        Row(lambda t: (wire.update(b"".join(t.scene.good().values()), t.nlri(1) + b"\0\0\0\2"),)),
        RESET,
    ),
    (
        "RFC 7606 5.3",
        "withdrawn routes that end in an identifier",
        Row(lambda t: (wire.update(b"", b"", b"\0\0"),)),
        RESET,
    ),
    ("RFC 7911 4", "the suite only receives: no identifiers", Row(lambda t: (t.announce(1),), RECEIVE), ACCEPT),
    ("RFC 7911 4", "Send/Receive 0 is ignored: no identifiers", Row(lambda t: (t.announce(1),), 0), ACCEPT),
    ("RFC 7911 4", "Send/Receive 4 is ignored: no identifiers", Row(lambda t: (t.announce(1),), 4), ACCEPT),
)


def cases() -> list[Case]:
    """Return all cases."""
    return [Case(GROUP, name, rfc, "must", row.run, e | OPTIONAL, e | OPTIONAL) for rfc, name, row, e in _ROWS]
