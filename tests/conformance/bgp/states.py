"""The state machine: messages that a state does not expect, timers, collisions, End-of-RIB.

``alive``       the session goes on
``reset c/s``   the connection ended with that NOTIFICATION
``closed``      it ended without
``incoming``, ``outgoing``   which connection a collision left: the one the suite initiated, or the one the speaker did
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

from tests.conformance.bgp import wire
from tests.conformance.bgp.cases import Case, Expected, Level, any_of
from tests.conformance.bgp.session import PATIENCE, Connection, EndedError, NotRunError, established, good_open
from tests.conformance.bgp.suite import Suite, describe

GROUP = "FSM"
TIMERS = "Timers"
COLLISION = "Collision"
ALIVE, CLOSED = any_of("alive"), any_of("closed")
QUIET = 2.5
"""Seconds without an ending after which a session that may go on counts as alive."""
EXTENDED_MESSAGE = 6
"""Capability code (RFC 8654 section 3)."""
DIAL_TIME = 30.0
"""Seconds that the speaker may take to connect to us."""

State = str
MESSAGES = {
    "OPEN": lambda s: wire.message(wire.OPEN, good_open(*s)),
    "UPDATE": lambda s: wire.update(),
    "KEEPALIVE": lambda s: wire.message(wire.KEEPALIVE),
    "ROUTE-REFRESH": lambda s: wire.message(wire.REFRESH, b"\0\1\0\1"),
}


@asynccontextmanager
async def in_state(suite: Suite, state: State, **options: object) -> AsyncIterator[Connection]:
    """Lend a connection on which the speaker is in ``state``: OpenSent, OpenConfirm or Established."""
    async with suite.source() as source:
        if state == "Established":
            connection = await established(suite.target, source, **options)
        else:
            connection = await Connection.dial(suite.target, source)
            if state == "OpenConfirm":
                await connection.hello(**options)
                while (await connection.read())[0] != wire.KEEPALIVE:
                    pass
        try:
            yield connection
        finally:
            await connection.close()


async def _fate(connection: Connection, patience: float = QUIET) -> str:
    ended = await connection.ending(patience=patience)
    return describe(ended) if ended else "alive"


def _patience(expected: Expected) -> float:
    """Return the seconds to wait for an ending: an end that must come may take a busy machine long."""
    return QUIET if any(outcome.startswith("alive") for outcome in expected) else PATIENCE


def _unexpected(state: State, name: str, expected: Expected) -> Callable[[Suite], Awaitable[str]]:
    async def run(suite: Suite) -> str:
        async with in_state(suite, state) as connection:
            await connection.send(MESSAGES[name]((suite.target, connection.source)))
            return await _fate(connection, _patience(expected))

    return run


def _sent(state: State, octets: bytes, expected: Expected) -> Callable[[Suite], Awaitable[str]]:
    async def run(suite: Suite) -> str:
        async with in_state(suite, state) as connection:
            await connection.send(octets)
            return await _fate(connection, _patience(expected))

    return run


async def _too_long(suite: Suite) -> str:
    """Only who has advertised extended messages takes more than 4,096 octets; nobody has to."""
    async with in_state(suite, "Established") as connection:
        await connection.send(wire.message(wire.UPDATE, bytes(4078)))
        fate = await _fate(connection)
        advertised = connection.opening is not None and EXTENDED_MESSAGE in connection.opening.capabilities
        return f"{fate}, as it advertised extended messages" if fate == "alive" and advertised else fate


def _comes_back(state: State) -> Callable[[Suite], Awaitable[str]]:
    """After the connection is lost in a state the speaker takes another one from the same address."""

    async def run(suite: Suite) -> str:
        async with suite.source() as source:
            connection = await Connection.dial(suite.target, source)
            if state != "OpenSent":
                await connection.hello()
            if state == "Established":
                await connection.confirm()
            await connection.close()
            again = await established(suite.target, source)
            await again.cease()
            return "alive"

    return run


def _messages() -> list[Case]:
    cases = []
    for state, number, names in (
        ("OpenSent", 1, ("UPDATE", "KEEPALIVE", "ROUTE-REFRESH")),
        ("OpenConfirm", 2, ("UPDATE", "ROUTE-REFRESH")),
        ("Established", 3, ("OPEN",)),
    ):
        for name in names:
            expected = any_of(f"reset 5/{number}")
            run = _unexpected(state, name, expected)
            cases.append(Case(GROUP, f"{name} in {state}", "RFC 6608 3", "must", run, expected, expected))
    again = any_of("reset 5/2", "reset 6/7")
    run = _unexpected("OpenConfirm", "OPEN", again)
    cases.append(Case(GROUP, "OPEN in OpenConfirm", "RFC 4271 8.2.2", "must", run, again, again))
    for name in ("UPDATE", "KEEPALIVE", "ROUTE-REFRESH"):
        run = _unexpected("Established", name, ALIVE)
        cases.append(Case(GROUP, f"{name} in Established", "RFC 4271 8.2.2", "must", run, ALIVE, ALIVE))
    for state in ("OpenSent", "OpenConfirm", "Established"):
        run = _sent(state, wire.message(wire.NOTIFICATION, b"\6\2"), CLOSED)
        cases.append(Case(GROUP, f"NOTIFICATION in {state}", "RFC 4271 6", "must", run, CLOSED, CLOSED))
        run = _comes_back(state)
        cases.append(Case(GROUP, f"a session after a loss in {state}", "RFC 4271 8.2.2", "must", run, ALIVE, ALIVE))
    for name, octets, rfc in (
        ("NOTIFICATION with a code nobody knows", b"\x63\x63abc", "RFC 4271 6.4"),
        ("NOTIFICATION with shutdown text that overruns", b"\6\2\x80abc", "RFC 9003 2"),
        ("NOTIFICATION with shutdown text that is not UTF-8", b"\6\2\2\xff\xfe", "RFC 9003 2"),
    ):
        run = _sent("Established", wire.message(wire.NOTIFICATION, octets), CLOSED)
        cases.append(Case(GROUP, name, rfc, "must", run, CLOSED, CLOSED))
    # Section 6.1 asks for 1/2, section 6.4 forbids any answer to a NOTIFICATION.
    either = CLOSED | any_of("reset 1/2")
    run = _sent("Established", wire.message(wire.NOTIFICATION, b""), either)
    cases.append(Case(GROUP, "NOTIFICATION of 19 octets", "RFC 4271 6.1", "may", run, either, either))
    fits = any_of("reset 1/2", "alive, as it advertised extended messages")
    cases.append(Case(GROUP, "message of 4,097 octets", "RFC 8654 4", "must", _too_long, fits, fits))
    for name, octets, expected, rfc, level in _established_messages():
        run = _sent("Established", octets, expected)
        cases.append(Case(GROUP, name, rfc, level, run, expected, expected))
    return cases


def _established_messages() -> list[tuple[str, bytes, Expected, str, Level]]:
    refresh = wire.REFRESH
    return [
        ("unknown message type in Established", wire.message(77), any_of("reset 1/3"), "RFC 4271 6.1", "must"),
        ("bad marker in Established", wire.message(4, marker=bytes(16)), any_of("reset 1/1"), "RFC 4271 6.1", "must"),
        ("KEEPALIVE of 20 octets in Established", wire.message(4, b"\0"), any_of("reset 1/2"), "RFC 4271 6.1", "must"),
        ("ROUTE-REFRESH of a family nobody knows", wire.message(refresh, b"\x40\4\0\x47"), ALIVE, "RFC 2918 4", "must"),
        ("ROUTE-REFRESH of a family not negotiated", wire.message(refresh, b"\0\1\0\x80"), ALIVE, "RFC 2918 4", "must"),
        (
            "ROUTE-REFRESH of 3 octets",
            wire.message(refresh, b"\0\1\0"),
            any_of("reset 7/1", "reset 1/2"),
            "RFC 7313 5",
            "should",
        ),
        ("ROUTE-REFRESH with subtype 9", wire.message(refresh, b"\0\1\x09\1"), ALIVE, "RFC 7313 5", "must"),
        ("BoRR that nobody negotiated", wire.message(refresh, b"\0\1\1\1"), ALIVE, "RFC 7313 5", "must"),
    ]


async def hold_expires(suite: Suite) -> str:
    """Say nothing after the session is established with a hold time of 3 s."""
    return await _timed(suite, "Established")


async def hold_expires_in_open_confirm(suite: Suite) -> str:
    return await _timed(suite, "OpenConfirm")


async def _timed(suite: Suite, state: State) -> str:
    """No upper bound but the patience; the clock starts before the timer does."""
    start = asyncio.get_running_loop().time()
    async with in_state(suite, state, hold_time=3) as connection:
        fate = await _fate(connection, 3 + PATIENCE)
    seconds = asyncio.get_running_loop().time() - start
    return fate if fate == "alive" or seconds >= 3 else f"{fate}, after {seconds:.1f} s"


def _fed(octets: bytes) -> Callable[[Suite], Awaitable[str]]:
    """Feed a session of 6 s hold time with one message a second for 8 s."""

    async def run(suite: Suite) -> str:
        async with in_state(suite, "Established", hold_time=6) as connection:
            fate = asyncio.create_task(_fate(connection, 8.0))
            while not fate.done():
                await connection.send(octets)
                await asyncio.wait([fate], timeout=1.0)
            return fate.result()

    return run


async def keepalive_pace(suite: Suite) -> str:
    """Measure the KEEPALIVEs of a session of 3 s hold time, on up to three: a machine that is busy delays some."""
    outcome = ""
    for _ in range(3):
        outcome = await _keepalive_pace(suite)
        if outcome == "paced":
            break
    return outcome


async def _keepalive_pace(suite: Suite) -> str:
    async with in_state(suite, "Established", hold_time=3) as connection:
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        feeding = asyncio.create_task(_feed(connection))
        try:
            while len(times) < 6:
                if (await connection.read(patience=3.5))[0] == wire.KEEPALIVE:
                    times.append(loop.time())
        except TimeoutError:
            return "no KEEPALIVE within the hold time"
        finally:
            feeding.cancel()
        gaps = [b - a for a, b in pairwise(times[1:])]
        if sum(gaps) / len(gaps) < 0.97:  # a scheduler's delay moves single ones, not their mean
            return f"a KEEPALIVE every {sum(gaps) / len(gaps):.1f} s"
        return "paced" if max(gaps) < 2.9 else f"a gap of {max(gaps):.1f} s"


async def _feed(connection: Connection) -> None:
    while True:
        await connection.send(wire.message(wire.KEEPALIVE))
        await asyncio.sleep(1.0)


async def no_keepalives(suite: Suite) -> str:
    """Hold time 0: nobody sends KEEPALIVEs, nobody misses them."""
    async with suite.source() as source:
        connection = await Connection.dial(suite.target, source)
        try:
            await connection.hello(hold_time=0)
            await connection.confirm()
        except EndedError as ended:
            return describe(ended)
        try:
            while True:
                kind, _ = await connection.read(patience=4.0)
                if kind == wire.KEEPALIVE:
                    return "a KEEPALIVE"
        except TimeoutError:
            return "alive"
        finally:
            await connection.close()


async def end_of_rib(suite: Suite) -> str:
    """A peer that advertises graceful restart gets End-of-RIB of each family."""
    async with in_state(suite, "OpenConfirm", extra=wire.capability(64, b"\0\0")) as connection:
        await connection.send(wire.message(wire.KEEPALIVE))
        seen: set[int] = set()
        try:
            async with asyncio.timeout(PATIENCE):
                while seen != {1, 2}:
                    kind, body = await connection.read()
                    marker = wire.decode_update(body).end_of_rib if kind == wire.UPDATE else None
                    if marker:
                        seen.add(marker)
        except TimeoutError:
            return f"End-of-RIB of {len(seen)} families"
        return "End-of-RIB"


async def refresh(suite: Suite) -> str:
    """What was advertised comes again on ROUTE-REFRESH."""
    async with suite.session() as feeder, in_state(suite, "OpenConfirm") as connection:
        if suite.observer is None:
            raise NotRunError("needs the observer")
        # The observer's kind of session is the one that learns what the feeder announces.
        return await _refreshed(suite, feeder, connection)


async def _refreshed(suite: Suite, feeder: Connection, connection: Connection) -> str:
    observer = suite.observer
    assert observer is not None
    prefix = f"10.99.{suite.number() % 256}.0/24"
    attributes = wire.attribute(0x40, 1, b"\0") + wire.attribute(
        0x40, 2, wire.segment(*(() if suite.target.internal else (suite.target.outside_as,)), 64510)
    )
    attributes += wire.attribute(0x40, 3, wire.packed(feeder.source))
    if suite.target.internal:
        attributes += wire.attribute(0x40, 5, b"\0\0\0\x64")
    await feeder.send(wire.update(attributes, wire.nlri(prefix)))
    if not await observer.until(lambda: prefix in observer.routes):
        raise NotRunError("the good route is not passed on")
    del observer.routes[prefix]
    await observer.connection.send(wire.message(wire.REFRESH, b"\0\1\0\1"))
    again = await observer.until(lambda: prefix in observer.routes)
    await feeder.send(wire.update(withdrawn=wire.nlri(prefix)))
    return "advertised again" if again else "nothing"


def _timers() -> list[Case]:
    expired = any_of("reset 4/0")
    paced, zero = any_of("paced"), any_of("alive", "reset 2/6")
    update, keepalive = wire.update(), wire.message(wire.KEEPALIVE)
    marked = any_of("End-of-RIB")
    again = any_of("advertised again")
    return [
        Case(TIMERS, "hold time 3 s expires", "RFC 4271 6.5", "must", hold_expires, expired, expired),
        Case(
            TIMERS,
            "hold time 3 s expires in OpenConfirm",
            "RFC 4271 6.5",
            "must",
            hold_expires_in_open_confirm,
            expired,
            expired,
        ),
        Case(TIMERS, "KEEPALIVEs keep a session", "RFC 4271 8.2.2", "must", _fed(keepalive), ALIVE, ALIVE),
        Case(TIMERS, "UPDATEs keep a session", "RFC 4271 8.2.2", "must", _fed(update), ALIVE, ALIVE),
        Case(TIMERS, "KEEPALIVEs at most once a second", "RFC 4271 4.4", "must", keepalive_pace, paced, paced),
        Case(TIMERS, "hold time 0: no KEEPALIVEs", "RFC 4271 4.4", "must", no_keepalives, zero, zero),
        Case(GROUP, "End-of-RIB of all families", "RFC 4724 2", "should", end_of_rib, marked, marked),
        Case(GROUP, "ROUTE-REFRESH is answered", "RFC 2918 4", "must", refresh, again, again),
    ]


@asynccontextmanager
async def _both(suite: Suite) -> AsyncIterator[tuple[Connection, Connection]]:
    """Lend two connections: one that the suite initiated, and one that the speaker did, its OPEN read on each."""
    target, source = suite.target, suite.target.active
    if source is None:
        raise NotRunError("needs an address to which the speaker connects (--active)")
    arrived: asyncio.Queue[Connection] = asyncio.Queue()

    def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.put_nowait(Connection(target, source, reader, writer))

    async with suite.active_lock:
        server = await asyncio.start_server(arrive, source, 179)
        made: list[Connection] = []
        try:
            async with asyncio.timeout(DIAL_TIME):
                while True:  # a speaker may give up the connection it dialled when ours comes; that is its choice
                    theirs = await arrived.get()
                    made.append(theirs)
                    try:
                        await theirs.read_opening()
                        break
                    except EndedError:
                        continue
            ours = await Connection.connect(target, source)
            made.append(ours)
            yield ours, theirs
        except TimeoutError:
            raise NotRunError("the speaker does not connect") from None
        finally:
            server.close()
            while not arrived.empty():
                made.append(arrived.get_nowait())
            for connection in made:
                await connection.close()


def _collision(order: str, *, higher: bool) -> Callable[[Suite], Awaitable[str]]:
    """Open both connections and send our OPEN on both, in this order; see which one gets through to Established."""

    async def run(suite: Suite) -> str:
        async with _both(suite) as (ours, theirs):
            named: dict[str, Connection] = {"incoming": ours, "outgoing": theirs}
            identifier = "223.255.255.254" if higher else "0.0.0.1"
            first, second = (named[name] for name in order.split())
            try:
                await ours.read_opening()
            except (EndedError, OSError):
                return "incoming refused before its OPEN"
            for connection in (first, second):
                await connection.hello(identifier=identifier)
                with suppress(EndedError, TimeoutError):  # what became of it is seen below
                    while (await connection.read())[0] != wire.KEEPALIVE:
                        pass
            fates = await asyncio.gather(*(_survives(connection) for connection in named.values()))
            left = [name for name, fate in zip(named, fates, strict=True) if fate == "alive"]
            lost = [fate for fate in fates if fate != "alive"]
            if len(left) != 1:
                return f"both left: {left}" if left else f"none left: {lost}"
            return left[0] if lost[0] == "reset 6/7" else f"{left[0]} other {lost[0]}"

    return run


async def _survives(connection: Connection) -> str:
    """Confirm the session and see whether it lasts."""
    await connection.send(wire.message(wire.KEEPALIVE))
    return await _fate(connection)


async def second_connection(suite: Suite) -> str:
    """While a session is established, another connection comes, its identifier the higher."""
    async with in_state(suite, "Established", identifier="223.255.255.254") as first:
        try:
            second = await Connection.connect(suite.target, first.source)
        except OSError:
            return "alive second refused"
        try:
            await second.hello(identifier="223.255.255.254")
            fate = await _fate(second, PATIENCE)
        finally:
            await second.close()
        kept = await _fate(first, 0.5)
        return f"{kept} second {fate}"


def _collisions() -> list[Case]:
    cases = []
    for order in ("incoming outgoing", "outgoing incoming"):
        for higher in (True, False):
            # Section 6.8: the connection of the speaker with the higher identifier is kept.
            expected = any_of("incoming" if higher else "outgoing")
            who = "the suite" if higher else "the speaker"
            name = f"{who} has the higher identifier, OPEN first on the {order.split()[0]} connection"
            run = _collision(order, higher=higher)
            cases.append(Case(COLLISION, name, "RFC 4271 6.8", "must", run, expected, expected))
    expected = any_of("alive second")
    cases.append(
        Case(
            COLLISION,
            "a second connection",
            "RFC 4271 6.8",
            "must",
            second_connection,
            expected,
            expected,
        )
    )
    return cases


def cases() -> list[Case]:
    """Return all cases of the state machine."""
    return [*_collisions(), *_timers(), *_messages()]
