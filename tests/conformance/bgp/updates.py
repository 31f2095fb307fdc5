"""UPDATE messages: each path attribute with each malformation, repeated and unknown attributes, fields and NLRI.

For each row a good route goes first and is awaited at the observer; then the row's UPDATE for the same prefix, then a
sentinel, whose arrival at the observer says that the row has been dealt with. What has become of the route tells:

``accept``    the route of the row is passed on, with the row's attribute as it was sent
``partial``   the same, and the Partial bit is set
``discard``   the route of the row is passed on without the attribute, or with another value of it
``withdraw``  the route is gone
``stale``     the good route is still there: the UPDATE had no effect
``reset c/s`` the session ended
``alive``     the session did not end, and nobody observes more
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.conformance.bgp import wire
from tests.conformance.bgp.cases import Expected, Level, any_of
from tests.conformance.bgp.session import Connection, EndedError, NotRunError, Observer, Target
from tests.conformance.bgp.suite import Suite

ACCEPT, DISCARD, WITHDRAW, PARTIAL = any_of("accept"), any_of("discard"), any_of("withdraw"), any_of("partial")
KEPT = any_of("accept", "discard", "partial")
ALIVE = any_of("accept", "discard", "partial", "withdraw", "stale")
IGNORED = any_of("withdraw", "stale")

GROUP = "UPDATE"
OLD_AS, NEW_AS = 64510, 64511
"""Last AS of the good route, and of the row's."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a row's octets are made from."""

    target: Target
    source: str
    prefix: str
    prefix6: str
    wide: bool
    six: bool
    """The route is IPv6, in MP_REACH_NLRI."""

    @property
    def width(self) -> int:
        return 4 if self.wide else 2

    def path(self, *asns: int, kind: int = 2) -> bytes:
        """Return a segment that starts as the session asks for."""
        first = () if self.target.internal else (self.target.outside_as,)
        return wire.segment(*first, *asns, kind=kind, width=self.width)

    def good(self, last: int = NEW_AS, origin: int = 0) -> dict[int, bytes]:
        """Return good attributes by code, without MP_REACH_NLRI."""
        attributes = {
            wire.ORIGIN: wire.attribute(0x40, wire.ORIGIN, bytes((origin,))),
            wire.AS_PATH: wire.attribute(0x40, wire.AS_PATH, self.path(last)),
            wire.NEXT_HOP: wire.attribute(0x40, wire.NEXT_HOP, wire.packed(self.source)),
        }
        if self.six:
            del attributes[wire.NEXT_HOP]
        if self.target.internal:
            attributes[wire.LOCAL_PREF] = wire.attribute(0x40, wire.LOCAL_PREF, b"\0\0\0\x64")
        return attributes

    def reach(self, **options: int) -> bytes:
        return wire.mp_reach(wire.nlri(self.prefix6), wire.packed(self.target.next_hop6), **options)

    def message(self, attributes: dict[int, bytes], tail: bytes = b"") -> bytes:
        """Return the UPDATE that announces the row's prefix."""
        section = b"".join(attributes[code] for code in sorted(attributes)) + tail
        if self.six:
            return wire.update(self.reach() + section)
        return wire.update(section, wire.nlri(self.prefix))


Build = Callable[[Scene], bytes]


@dataclass(frozen=True, slots=True)
class Row:
    """One malformation. ``code`` is the attribute that is looked for at the observer."""

    name: str
    rfc: str
    level: Level
    build: Build = field(repr=False)
    external: Expected | None
    internal: Expected | None
    code: int = 0
    sent: bytes | None = None
    """Value of the attribute as sent."""
    wide: bool = True
    six: bool = False

    async def run(self, suite: Suite) -> str:
        async with suite.session(wide=self.wide) as connection:
            number = suite.number()
            scene = Scene(
                suite.target, connection.source, *prefixes(suite.target, number), wide=self.wide, six=self.six
            )
            return await self._play(scene, connection, suite.observer, number)

    async def _play(self, scene: Scene, connection: Connection, observer: Observer | None, number: int) -> str:
        prefix = scene.prefix6 if scene.six else scene.prefix
        await connection.send(scene.message(scene.good(OLD_AS, 2)))
        before: wire.Attributes | None = None
        if observer is not None:
            if not await observer.until(lambda: prefix in observer.routes):
                raise NotRunError("the good route is not passed on")
            before = observer.routes[prefix]
        await connection.send(self.build(scene))
        ended = await self._sentinel(scene, connection, observer, number)
        if ended is not None:
            raise ended
        if observer is None:
            return "alive"
        outcome = self._judge(before, observer.routes.get(prefix))
        await connection.send(wire.update(wire.mp_unreach(wire.nlri(prefix))) if scene.six else _gone(prefix))
        return outcome

    async def _sentinel(
        self, scene: Scene, connection: Connection, observer: Observer | None, number: int
    ) -> EndedError | None:
        """Send a route after the row and withdraw it again; return how the session ended, None where it lives."""
        sentinel, _ = prefixes(scene.target, number, sentinel=True)
        plain = Scene(scene.target, scene.source, sentinel, "::/0", scene.wide, False)
        reading = asyncio.create_task(connection.ending(patience=60))
        try:
            await connection.send(plain.message(plain.good()))
            if observer is None:
                await asyncio.wait([reading], timeout=1.0)
            else:
                await self._seen(observer, sentinel, True, reading)
                if not reading.done():
                    await connection.send(_gone(sentinel))
                    await self._seen(observer, sentinel, False, reading)
            return reading.result() if reading.done() else None
        finally:
            reading.cancel()
            await asyncio.wait([reading])

    @staticmethod
    async def _seen(observer: Observer, sentinel: str, there: bool, reading: asyncio.Task[EndedError | None]) -> None:
        seen = asyncio.create_task(observer.until(lambda: (sentinel in observer.routes) is there))
        await asyncio.wait([seen, reading], return_when=asyncio.FIRST_COMPLETED)
        if not seen.done():
            seen.cancel()
            await asyncio.wait([seen])

    def _judge(self, before: wire.Attributes | None, after: wire.Attributes | None) -> str:
        if after is None:
            return "withdraw"
        if after == before:
            return "stale"
        found = after.get(self.code)
        if found is None or (self.sent is not None and found[1] != self.sent):
            return "discard"
        return "partial" if found[0] & 0x20 else "accept"


def prefixes(target: Target, number: int, *, sentinel: bool = False) -> tuple[str, str]:
    """Return a case's own prefix of each family: also two suites, one internal, one external, have different ones."""
    base = number // 256 + (25 if target.internal else 0) + (150 if sentinel else 100)
    return f"10.{base}.{number % 256}.0/24", f"2001:db8:{number + (0x8000 if target.internal else 0):x}::/48"


def _gone(*prefixes: str) -> bytes:
    return wire.update(withdrawn=wire.nlri(*prefixes))
