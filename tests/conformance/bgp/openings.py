"""OPEN messages and message headers: what the speaker answers to the first thing it hears.

``accept``    a KEEPALIVE: the OPEN is accepted
``reset c/s`` a NOTIFICATION; ``reset c/s, data XX`` where its data are not what the RFC says
``closed``    the connection ended without a word
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from struct import pack

from tests.conformance.bgp import wire
from tests.conformance.bgp.cases import Case, Expected, Level, any_of
from tests.conformance.bgp.session import Connection, EndedError, Target, good_open
from tests.conformance.bgp.suite import Suite

GROUP = "OPEN"
ACCEPT = any_of("accept")
MALFORMED = any_of("reset 2/0")


@dataclass(frozen=True, slots=True)
class Scene:
    target: Target
    source: str
    heard: wire.Opening
    """The speaker's own OPEN."""

    @property
    def asn(self) -> int:
        return self.target.local_as

    @property
    def capabilities(self) -> bytes:
        return wire.multiprotocol(1) + wire.multiprotocol(2) + wire.four_octet_as(self.asn)

    def open(self, **options: object) -> bytes:
        return wire.message(wire.OPEN, good_open(self.target, self.source, **options))  # type: ignore[arg-type]

    def with_parameters(self, parameters: bytes, **options: int) -> bytes:
        return wire.message(wire.OPEN, wire.opening(self.asn, 90, self.source, parameters, **options))


Build = Callable[[Scene], bytes]


@dataclass(frozen=True, slots=True)
class First:
    """Something sent as the first message. ``data`` is what a NOTIFICATION must carry."""

    build: Build
    data: bytes | None = None
    slowly: bool = False
    """One octet in a segment."""

    async def run(self, suite: Suite) -> str:
        async with suite.source() as source:
            connection = await Connection.dial(suite.target, source)
            assert connection.opening is not None
            try:
                octets = self.build(Scene(suite.target, source, connection.opening))
                for part in [octets[i : i + 1] for i in range(len(octets))] if self.slowly else [octets]:
                    await connection.send(part)
                    if self.slowly:
                        await asyncio.sleep(0.002)
                return await self._answer(connection)
            finally:
                await connection.close()

    async def _answer(self, connection: Connection) -> str:
        try:
            while True:
                kind, _ = await connection.read()
                if kind == wire.KEEPALIVE:
                    return "accept"
        except EndedError as ended:
            if self.data is not None and ended.how != "closed" and ended.data != self.data:
                return f"reset {ended.how}, data {ended.data.hex() or 'none'}"
            raise


async def own_opening(suite: Suite) -> str:
    """Judge the OPEN that the speaker sends."""
    async with suite.source() as source:
        connection = await Connection.dial(suite.target, source)
        try:
            found = connection.opening
            assert found is not None
            faults = []
            if found.version != 4:
                faults.append(f"version {found.version}")
            if found.true_as != suite.target.asn or found.asn not in (suite.target.asn, wire.AS_TRANS):
                faults.append(f"AS {found.asn}/{found.true_as}")
            if found.hold_time in (1, 2):
                faults.append(f"hold time {found.hold_time}")
            if not any(found.identifier):
                faults.append("identifier 0.0.0.0")
            if any(len(v) != 4 for v in found.capabilities.get(1, []) + found.capabilities.get(65, [])):
                faults.append("a capability of wrong length")
            return ", ".join(faults) or "accept"
        finally:
            await connection.close()


class _Table:
    def __init__(self) -> None:
        self.cases: list[Case] = []

    def add(
        self,
        rfc: str,
        name: str,
        build: Build,
        expected: Expected,
        *,
        level: Level = "must",
        data: bytes | None = None,
        group: str = GROUP,
        slowly: bool = False,
        external: bool = True,
        internal: bool = True,
    ) -> None:
        run = First(build, data, slowly).run
        self.cases.append(
            Case(group, name, rfc, level, run, expected if external else None, expected if internal else None)
        )


def _fields(t: _Table) -> None:
    t.add("RFC 4271 4.2", "a good one", lambda s: s.open(), ACCEPT)
    t.add("RFC 4271 4.2", "a good one, octet by octet", lambda s: s.open(), ACCEPT, slowly=True)
    t.add("RFC 4271 4.2", "OPEN and KEEPALIVE in one segment", lambda s: s.open() + wire.message(4), ACCEPT)
    version = any_of("reset 2/1")
    for number in (0, 3, 5, 255):
        build: Build = lambda s, n=number: wire.message(  # type: ignore[misc]  # noqa: E731
            wire.OPEN, wire.opening(s.asn, 90, s.source, wire.parameter(s.capabilities), version=n)
        )
        t.add("RFC 4271 6.2", f"version {number}", build, version, data=b"\0\4")
    bad_as = any_of("reset 2/2")
    t.add("RFC 4271 6.2", "another AS", lambda s: s.open(as_number=64999), bad_as)
    t.add("RFC 4271 6.2", "another AS, without 4-octet AS", lambda s: s.open(as_number=64999, wide=False), bad_as)
    t.add("RFC 7607 2", "AS 0", lambda s: s.open(as_number=0), bad_as)
    t.add("RFC 7607 2", "AS 0, without 4-octet AS", lambda s: s.open(as_number=0, wide=False), bad_as)
    for seconds in (1, 2):
        build = lambda s, n=seconds: s.open(hold_time=n)  # type: ignore[misc]  # noqa: E731
        t.add("RFC 4271 6.2", f"hold time {seconds}", build, any_of("reset 2/6"))
    for seconds in (3, 65535):
        t.add("RFC 4271 6.2", f"hold time {seconds}", lambda s, n=seconds: s.open(hold_time=n), ACCEPT)  # type: ignore[misc]
    either = any_of("accept", "reset 2/6")
    t.add("RFC 4271 6.2", "hold time 0", lambda s: s.open(hold_time=0), either, level="may")
    bad_identifier = any_of("reset 2/3")
    t.add("RFC 6286 2.2", "identifier 0.0.0.0", lambda s: s.open(identifier="0.0.0.0"), bad_identifier)
    same: Build = lambda s: s.open(identifier=".".join(map(str, s.heard.identifier)))  # noqa: E731
    t.add("RFC 6286 2.2", "the speaker's own identifier", same, bad_identifier, external=False)
    t.add("RFC 6286 2.1", "the speaker's own identifier, in another AS", same, ACCEPT, internal=False)
    t.add("RFC 6286 2.1", "identifier 240.0.0.1", lambda s: s.open(identifier="240.0.0.1"), ACCEPT)


def _parameters(t: _Table) -> None:
    t.add("RFC 4271 4.2", "no optional parameters", lambda s: s.with_parameters(b""), ACCEPT)
    for kind in (1, 3, 77, 254):
        build: Build = lambda s, k=kind: s.with_parameters(wire.parameter(b"\1\2", k))  # type: ignore[misc]  # noqa: E731
        t.add("RFC 4271 6.2", f"optional parameter of type {kind}", build, any_of("reset 2/4"))
    for name, parameters, length in (
        ("parameters length beyond the message", b"", 4),
        ("parameters length short of the message", b"\2\0\2\0", 2),
        ("parameters length 0 with parameters", b"\2\0", 0),
        ("a parameter overruns", b"\2\x09\0\0", None),
        ("a parameter without length", b"\2", None),
        ("a parameter of length 255", b"\2\xff\0\0", None),
        ("a capability overruns its parameter", wire.parameter(b"\1\x09\0\1"), None),
        ("a capability without length", wire.parameter(b"\1"), None),
        ("a lone octet 255", b"\xff", None),
        ("RFC 9072 marker without length", b"\xff\xff", None),
        ("RFC 9072 marker with half a length", b"\xff\xff\0", None),
    ):
        rfc = "RFC 9072 2" if b"\xff" in parameters[:1] else "RFC 4271 6.2"
        build = lambda s, p=parameters, n=length: s.with_parameters(p, **({} if n is None else {"length": n}))  # type: ignore[misc]  # noqa: E731
        # No RFC speaks of octets that belong to nothing in so many words.
        level: Level = "should" if length is not None and length < len(parameters) else "must"
        t.add(rfc, name, build, MALFORMED, level=level)
    one_each: Build = lambda s: s.with_parameters(  # noqa: E731
        b"".join(map(wire.parameter, (wire.multiprotocol(1), wire.multiprotocol(2), wire.four_octet_as(s.asn))))
    )
    t.add("RFC 5492 4", "each capability in a parameter of its own", one_each, ACCEPT)
    t.add("RFC 5492 4", "an empty capabilities parameter", lambda s: s.with_parameters(b"\2\0"), ACCEPT)
    for name, extra in (
        ("an unknown capability", wire.capability(231, b"abc")),
        ("an unknown capability of length 0", wire.capability(231)),
        ("a capability twice", wire.multiprotocol(1) + wire.capability(2) + wire.capability(2)),
        ("families that nobody knows", wire.multiprotocol(16388, 71) + wire.multiprotocol(7, 7)),
        ("a capability of the vendors' range", wire.capability(128, b"")),
        ("200 octets of unknown capabilities", wire.capability(232, bytes(98)) * 2),
    ):
        t.add("RFC 5492 3", name, lambda s, e=extra: s.open(extra=e), ACCEPT)  # type: ignore[misc]
    zero_as: Build = lambda s: s.with_parameters(wire.parameter(wire.multiprotocol(1) + wire.four_octet_as(0)))  # noqa: E731
    t.add("RFC 7607 2", "4-octet AS capability of AS 0", zero_as, any_of("reset 2/2"))
    trans: Build = lambda s: wire.message(  # noqa: E731
        wire.OPEN, wire.opening(wire.AS_TRANS, 90, s.source, wire.parameter(s.capabilities))
    )
    t.add("RFC 6793 4.1", "AS_TRANS, the true AS in the capability", trans, ACCEPT)
    for name, extra in (
        ("multiprotocol capability of length 3", wire.capability(1, b"\0\1\0")),
        ("4-octet AS capability of length 2", wire.capability(65, b"\0\1")),
        ("graceful restart capability of length 1", wire.capability(64, b"\0")),
        ("graceful restart capability of length 3", wire.capability(64, b"\0\x78\0")),
        ("add-path capability of length 3", wire.capability(69, b"\0\1\1")),
        ("extended next hop capability of length 5", wire.capability(5, b"\0\1\0\1\0")),
    ):
        # No RFC says whether such a capability is ignored or the OPEN malformed; anything else is wrong.
        expected = ACCEPT | any_of("reset 2")
        t.add("RFC 5492 3", name, lambda s, e=extra: s.open(extra=e), expected, level="may")  # type: ignore[misc]


def _extended(t: _Table) -> None:
    """RFC 9072."""

    def form(s: Scene, parameters: bytes, *, short: int = 255, size: int | None = None) -> bytes:
        length = len(parameters) if size is None else size
        return s.with_parameters(b"\xff" + pack("!H", length) + parameters, length=short)

    def good(s: Scene) -> bytes:
        return wire.long_parameter(s.capabilities)

    long = b"".join(wire.capability(232, bytes(250)) for _ in range(3))
    most = long * 4
    R = "RFC 9072 2"  # noqa: N806
    t.add(R, "extended form with few parameters", lambda s: form(s, good(s)), ACCEPT)
    t.add(R, "extended form, the short length is ignored", lambda s: form(s, good(s), short=12), ACCEPT)
    t.add(R, "extended form with 756 octets", lambda s: form(s, wire.long_parameter(s.capabilities + long)), ACCEPT)
    t.add(R, "extended form with 3,000 octets", lambda s: form(s, wire.long_parameter(s.capabilities + most)), ACCEPT)
    t.add(R, "extended form, length beyond the message", lambda s: form(s, good(s), size=900), MALFORMED)
    t.add(
        R, "extended form, length short of the message", lambda s: form(s, good(s), size=5), MALFORMED, level="should"
    )
    t.add(R, "extended form, a parameter overruns", lambda s: form(s, b"\2\1\0\1\4"), MALFORMED)
    t.add(R, "extended form, unknown parameter", lambda s: form(s, wire.long_parameter(b"\1", 9)), any_of("reset 2/4"))


def _headers(t: _Table) -> None:
    group, length, kind = "Header", any_of("reset 1/2"), any_of("reset 1/3")
    for name, marker in (("of zeros", bytes(16)), ("with one bit cleared", b"\xff" * 15 + b"\xfe")):
        build: Build = lambda s, m=marker: wire.message(wire.OPEN, good_open(s.target, s.source), marker=m)  # type: ignore[misc]  # noqa: E731
        t.add("RFC 4271 6.1", f"marker {name}", build, any_of("reset 1/1"), group=group)
    for size in (0, 18, 4097, 65535):
        build = lambda s, n=size: wire.message(wire.KEEPALIVE, bytes(100), length=n)  # type: ignore[misc]  # noqa: E731
        t.add("RFC 4271 6.1", f"length {size}", build, length, group=group, data=pack("!H", size))
    for number, name, size in ((1, "OPEN", 28), (2, "UPDATE", 22), (4, "KEEPALIVE", 20), (4, "KEEPALIVE", 4096)):
        build = lambda s, k=number, n=size: wire.message(k, bytes(n - 19))  # type: ignore[misc]  # noqa: E731
        t.add("RFC 4271 6.1", f"{name} of {size} octets", build, length, group=group, data=pack("!H", size))
    for number in (0, 6, 255):
        build = lambda s, k=number: wire.message(k)  # type: ignore[misc]  # noqa: E731
        t.add("RFC 4271 6.1", f"message of type {number}", build, kind, group=group, data=bytes((number,)))


def cases() -> list[Case]:
    """Return all cases of first messages."""
    table = _Table()
    own = Case(GROUP, "the speaker's own", "RFC 4271 4.2", "must", own_opening, ACCEPT, ACCEPT)
    for part in (_fields, _parameters, _extended, _headers):
        part(table)
    return [own, *table.cases]
