"""What is measured: each case runs podroute, BIRD and FRR in turn on the same octets, and returns figures."""

from __future__ import annotations

import gc
import logging
import random
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.fib_lab import PATIENCE, PEER_AS, Router, packed, peer_address, running
from benchmarks.fib_streams import Stream, internet, made, update
from routes import netlink
from routes.encode import ADD, Placement, new_group, new_nexthop, route_batch, via_nexthop, write_shape
from routes.messages import RT_SCOPE_UNIVERSE, RTN_UNICAST, LinkEvent, decode
from tests.netns import Netns, link

log = logging.getLogger("podroute.benchmarks")

_FLOWS = 100
"""Flows through the lost peer that are looked up until each goes another way: about 1 ms for all."""
_BARE = 2048
"""Routes in one send of the bare writer: with more it gets no faster."""
MARTIANS = 100
"""Prefixes of the recorded table that a daemon may refuse."""


@dataclass(frozen=True)
class Sizes:
    table: int = 500_000
    small_updates: int = 200_000
    ipv6: int = 200_000
    ecmp: tuple[int, ...] = (1_000, 500_000)
    present: int = 100_000
    probes: int = 200
    curve: tuple[int, ...] = (1_000, 10_000, 100_000, 500_000, 1_000_000)
    rounds: int = 3


QUICK = Sizes(20_000, 10_000, 10_000, (1_000, 10_000), 10_000, 50, (1_000, 10_000), 1)


@dataclass
class Load:
    """One table on its way into the kernel and out again; seconds, CPU seconds, MB."""

    wall: float
    cpu: float
    peak: float
    session_loss: float = 0.0
    withdrawal: float = 0.0


@dataclass
class Results:
    loads: dict[str, dict[str, Load]] = field(default_factory=dict)
    """By case and daemon."""
    bare: dict[str, float] = field(default_factory=dict)
    """Seconds of the bare writer, by case."""
    ecmp: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    """Seconds by (what was lost, routes) and daemon."""
    latency: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Seconds of each probe by case and daemon."""
    repairs: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of each trial, by what was done to the routes."""
    curve: dict[str, dict[int, Load]] = field(default_factory=dict)
    """By daemon and routes."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep this process's garbage collector out of a measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def load(router: Router, stream: Stream, *, tolerance: int = 0) -> Load:
    """Send a stream and wait until the kernel has all of it."""
    expected = len(stream.prefixes)
    before = router.settled_cpu()
    with undisturbed():
        start = time.perf_counter()
        sender = router.feeders[0].send_later(stream.data)
        end = router.kernel.wait(stream, there=True)
        late = router.kernel.settle(stream.family, router.protocol, expected - tolerance, expected)
    sender.join()
    return Load(max(end, late) - start, router.settled_cpu() - before, router.peak())


def empty(router: Router, stream: Stream, cause: Callable[[], object]) -> float:
    """Return how long the kernel holds something of a stream after its cause is gone."""
    with undisturbed():
        start = time.perf_counter()
        cause()
        end = router.kernel.wait(stream, there=False)
        late = router.kernel.settle(stream.family, router.protocol, 0, 0)
    return max(end, late) - start


@dataclass
class Run:
    """What every case gets: where its figures go, at what sizes and with whom, and where to say what it is at."""

    results: Results
    sizes: Sizes
    routers: Sequence[type[Router]]
    loaded: Sequence[type[Router]]
    """Those that whole tables are sent to."""
    say: Callable[[str], None]
    failed: list[str] = field(default_factory=list)

    def attempt(self, what: str, measure: Callable[[], None]) -> None:
        """Measure; a failure is told and noted, and the others go on."""
        try:
            measure()
        except Exception as error:
            self.failed.append(f"{what}: {type(error).__name__}: {error}")
            self.say(f"FAILED: {self.failed[-1]}")
            log.debug("%s", what, exc_info=True)


def large_updates(run: Run) -> None:
    """IPv4 in large UPDATEs: load, lose the session, load again, withdraw by UPDATE."""
    stream = made(4, run.sizes.table, 200, packed(peer_address(4, 0)), PEER_AS[0])

    def more(router: Router, measured: Load) -> None:
        measured.session_loss = empty(router, stream, router.feeders[0].reset)
        router.feeders[0].connect()
        load(router, stream)
        measured.withdrawal = empty(router, stream, partial(router.feeders[0].send_later, stream.withdrawals))

    _table(run, "ipv4, 200 per update", stream, more)


def small_updates(run: Run) -> None:
    """IPv4 in small UPDATEs, each with attributes of its own."""
    stream = made(4, run.sizes.small_updates, 4, packed(peer_address(4, 0)), PEER_AS[0])
    _table(run, "ipv4, 4 per update", stream)


def ipv6(run: Run) -> None:
    """IPv6 in large UPDATEs: load, and lose the session."""
    stream = made(6, run.sizes.ipv6, 200, packed(peer_address(6, 0)), PEER_AS[0])

    def more(router: Router, measured: Load) -> None:
        measured.session_loss = empty(router, stream, router.feeders[0].reset)

    _table(run, "ipv6, 200 per update", stream, more)


def real_table(run: Run, *, path: Path) -> None:
    """The recorded Internet table over iBGP: it carries LOCAL_PREF and ORIGINATOR_ID."""
    if not path.is_file():
        run.say(f"no {path}: the real table is left out (set PODROUTE_DATA)")
        return
    stream = internet(path, packed(peer_address(4, 0)))
    _table(run, "internet table", stream, tolerance=MARTIANS, ibgp=True)


def _table(
    run: Run,
    name: str,
    stream: Stream,
    more: Callable[[Router, Load], None] = lambda router, measured: None,
    *,
    tolerance: int = 0,
    ibgp: bool = False,
) -> None:
    """Load a stream into each daemon in turn, do ``more`` with each, and write it with nothing but a writer; again."""
    rounds: dict[str, list[Load]] = {}
    bare: list[float] = []

    def measure(kind: type[Router]) -> None:
        with running(lambda: kind(family=stream.family, ibgp=ibgp), 0) as router:
            measured = load(router, stream, tolerance=tolerance)
            more(router, measured)
            rounds.setdefault(kind.name, []).append(measured)
            run.say(f"{name}: {kind.name} {measured}")

    for _ in range(run.sizes.rounds):
        for kind in run.loaded:
            run.attempt(f"{name}: {kind.name}", partial(measure, kind))
        bare.append(bare_writer(stream))
        run.say(f"{name}: bare writer {bare[-1]:.2f} s")
    run.results.loads[name] = {daemon: median_load(loads) for daemon, loads in rounds.items()}
    run.results.bare[name] = statistics.median(bare)


def median_load(loads: Sequence[Load]) -> Load:
    """Return the median of each figure by itself."""
    return Load(*(statistics.median(figures) for figures in zip(*map(astuple, loads), strict=True)))


def ecmp(run: Run) -> None:
    """Two peers announce the same; one session is reset, or one link cut, until nothing resolves to that peer."""
    for count in run.sizes.ecmp:
        streams = [made(4, count, 200, packed(peer_address(4, n)), PEER_AS[n]) for n in (0, 1)]
        for what in ("session reset", "link cut"):
            for kind in run.routers:
                run.attempt(f"ecmp, {what}, {count} routes: {kind.name}", partial(_ecmp, run, kind, streams, what))


def _ecmp(run: Run, kind: type[Router], streams: Sequence[Stream], what: str) -> None:
    count = len(streams[0].prefixes)
    with running(kind, 0, 1) as router:
        for feeder, stream in zip(router.feeders, streams, strict=True):
            feeder.send_later(stream.data).join()
        seconds = _lose(router, streams[0], what)
    run.results.ecmp.setdefault((what, count), {})[kind.name] = seconds
    run.say(f"ecmp, {what}, {count} routes: {kind.name} {seconds * 1000:.1f} ms")


def _lose(router: Router, stream: Stream, what: str) -> float:
    router.kernel.wait(stream, there=True)
    lost = router.ns.call(lambda: socket.if_nametoindex("up0"))
    destinations = [prefix[1:].ljust(4, b"\0")[:3] + bytes((host,)) for prefix in stream.sample for host in (1, 77, 99)]
    deadline = time.perf_counter() + PATIENCE
    both = {lost, router.ns.call(lambda: socket.if_nametoindex("up1"))}
    # Every prefix has two ways when, of many flows over all of the table, about half go each way.
    while True:
        ways = [router.kernel.way(address) for address in destinations]
        share = ways.count(lost) / len(ways)
        if set(ways) == both and 0.45 < share < 0.55:
            break
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{router.name} does not spread flows over both peers: {share:.0%} by the first")
        time.sleep(0.2)
    router.settled_cpu()
    pending = [address for address in destinations if router.kernel.way(address) == lost]
    pending = random.Random(2).sample(pending, min(_FLOWS, len(pending)))
    watch = router.ns.call(lambda: netlink.open_socket(groups=(1,)))
    with undisturbed():
        if what == "link cut":
            cut = threading.Thread(target=router.fabric.run, args=("ip", "link", "set", "down0", "down"))
            cut.start()
            _link_down(watch, lost)
        start = time.perf_counter()
        if what == "session reset":
            router.feeders[0].reset()
        while pending:
            if router.kernel.way(pending[-1]) != lost:
                pending.pop()
        end = time.perf_counter()
    watch.close()
    return end - start


def _link_down(watch: socket.socket, ifindex: int) -> None:
    """Return when the kernel tells that a link has lost its carrier."""
    while True:
        data = watch.recv(netlink.RECEIVE)
        for msg in netlink.messages(data):
            event = decode(data, msg)
            if isinstance(event, LinkEvent) and event.link.ifindex == ifindex and not event.link.up:
                return


def latency(run: Run) -> None:
    """One more prefix, announced by a second peer: until the kernel has it, at rest and while a table loads."""
    sizes = run.sizes
    present = made(4, sizes.present, 200, packed(peer_address(4, 0)), PEER_AS[0])
    flood = made(4, sizes.table, 200, packed(peer_address(4, 0)), PEER_AS[0], offset=sizes.present)

    def measure(kind: type[Router]) -> None:
        with running(kind, 0, 1) as router:
            load(router, present)
            with undisturbed():
                quiet = [_probe(router, number, 0.0001) for number in range(sizes.probes)]
                sender = router.feeders[0].send_later(flood.data)
                loading: list[float] = []
                while not router.kernel.has(4, flood.sample[0]) or not all(
                    router.kernel.has(4, prefix) for prefix in flood.sample
                ):
                    loading.append(_probe(router, sizes.probes + len(loading), 0.0005))
                sender.join()
        run.results.latency.setdefault("quiet", {})[kind.name] = quiet
        run.results.latency.setdefault("while loading", {})[kind.name] = loading
        for case, figures in (("quiet", quiet), ("while loading", loading)):
            p50, p99 = (percentile(figures, p) * 1000 for p in (50, 99))
            run.say(f"latency, {case}: {kind.name} p50 {p50:.2f} ms p99 {p99:.2f} ms of {len(figures)}")

    for kind in run.routers:
        run.attempt(f"latency: {kind.name}", partial(measure, kind))


def _probe(router: Router, number: int, pause: float) -> float:
    prefix = struct.pack("!BHB", 24, 200 << 8 | number >> 8, number & 0xFF)
    message = update(4, prefix, packed(peer_address(4, 1)), (PEER_AS[1], 64500, 200_000 + number))
    time.sleep(0.002)
    start = time.perf_counter()
    router.feeders[1].send(message)
    while not router.kernel.has(4, prefix):
        if time.perf_counter() > start + 60:
            raise TimeoutError("a single route does not reach the kernel")
        time.sleep(pause)
    return time.perf_counter() - start


def percentile(figures: Sequence[float], percent: int) -> float:
    return statistics.quantiles(figures, n=100, method="inclusive")[percent - 1] if len(figures) > 1 else figures[0]


def curve(run: Run) -> None:
    """The first case at other sizes; what it has measured already is taken from there."""
    measured = run.results.loads.get("ipv4, 200 per update", {})

    def measure(kind: type[Router], count: int) -> None:
        found = run.results.curve.setdefault(kind.name, {})
        if count == run.sizes.table and kind.name in measured:
            found[count] = measured[kind.name]
            return
        stream = made(4, count, 200, packed(peer_address(4, 0)), PEER_AS[0])
        with running(kind, 0) as router:
            found[count] = load(router, stream)
        run.say(f"curve: {kind.name} {count}: {found[count]}")

    for kind in run.routers:
        for count in run.sizes.curve:
            run.attempt(f"curve: {kind.name} {count}", partial(measure, kind, count))


def bare_writer(stream: Stream) -> float:
    """Return the seconds that writing a stream's routes takes a loop that does nothing else."""
    node, fabric = Netns(), Netns()
    try:
        link(node, "up0", fabric, "down0")
        node.run("ip", "address", "add", "10.0.0.1/24", "dev", "up0")
        node.run("ip", "address", "add", "fd00:0::1/64", "dev", "up0", "nodad")
        index = node.call(lambda: socket.if_nametoindex("up0"))
        sock = node.call(lambda: netlink.open_socket(send_buffer=4 << 20, receive_buffer=4 << 20))
        with sock, undisturbed():
            sock.send(new_nexthop(1, 201, packed(peer_address(stream.family, 0)), index) + new_group(2, 201, [(1, 1)]))
            place = Placement(stream.family, 254, 20, 201)
            shape = write_shape(place, ADD, RTN_UNICAST, RT_SCOPE_UNIVERSE, via_nexthop(2))
            start = time.perf_counter()
            for at in range(0, len(stream.prefixes), _BARE):
                sock.send(route_batch(shape, stream.prefixes[at : at + _BARE]))
                netlink.receive_refusals(sock)
            return time.perf_counter() - start
    finally:
        node.close()
        fabric.close()
