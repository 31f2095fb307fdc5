"""What the speaker's core does in one thread, without sockets: framing to Adj-RIB-In, and decisions."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

from agent.garbage import leash
from benchmarks.bgp_speaker import OnLink
from benchmarks.report import Row
from benchmarks.streams import Stream, synthetic
from bgp.adj_rib_in import RibPeer
from bgp.codec import negotiate
from bgp.framing import Framer
from bgp.messages import Open
from bgp.policy import Policy
from bgp.rib import Rib
from config.prefix import Family

NEXT_HOP = bytes((10, 0, 4, 1))
LOCAL_AS, PEER_AS = 65001, 65002
_READ = 8192
"""Octets given to the framer at a time, as the speaker does."""


def rows(rounds: int) -> list[Row]:
    cases: list[tuple[str, Stream, str, float]] = []
    for count, per_update, goal in ((1_000_000, 200, 1_000_000.0), (200_000, 1, 100_000.0)):
        stream = synthetic(count, per_update, NEXT_HOP, asn=PEER_AS, local_as=LOCAL_AS)
        unit = "prefixes/s" if per_update > 1 else "updates/s"
        cases.append((f"framing to Adj-RIB-In, {per_update} per update", stream, unit, goal))
    found = []
    for name, stream, unit, goal in cases:
        figures = [_measure(stream) for _ in range(rounds)]
        rate = statistics.median(stream.prefixes / seconds for seconds, _ in figures)
        found.append(Row(name, unit, rate, goal=goal, larger_is_better=True))
        each = statistics.median(seconds / stream.prefixes for _, seconds in figures)
        found.append(Row(f"decision, {stream.name}", "us/prefix", each * 1e6))
    return found


def _measure(stream: Stream) -> tuple[float, float]:
    """Return the seconds of CPU for taking a stream in, and for deciding over it."""
    rib = _rib()
    framer = Framer()
    thresholds = gc.get_threshold()
    leash()  # as the agent has it
    taking = deciding = 0.0
    for start in range(0, len(stream.data), _READ):
        taking += _timed(lambda at=start: _take(rib, framer, stream.data[at : at + _READ]))  # type: ignore[misc]
        if rib.waiting > 50_000 or start + _READ >= len(stream.data):
            while rib.busy:
                deciding += _timed(lambda: rib.run(4096))
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    return taking, deciding


def _take(rib: Rib, framer: Framer, data: bytes) -> None:
    framer.feed(data)
    rib.receive_all("peer", framer.updates(len(data)), lambda received: None)


def _timed(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _rib() -> Rib:
    rib = Rib(local_as=LOCAL_AS, router_id=bytes((10, 0, 0, 1)), resolver=OnLink(), on_fib=lambda family, changes: None)
    accept = Policy(accept=True)
    rib.add_peer(RibPeer("peer", PEER_AS, accept, Policy()))
    families: frozenset[Family] = frozenset((4,))
    ours = Open(asn=LOCAL_AS, hold_time=90, identifier=bytes((10, 0, 0, 1)), families=families)
    theirs = Open(asn=PEER_AS, hold_time=90, identifier=NEXT_HOP, families=families)
    rib.peer_up(
        "peer",
        negotiate(ours, theirs, PEER_AS),
        peer_address=NEXT_HOP,
        local_address=bytes((10, 0, 0, 1)),
        device="eth0",
        next_hops={4: bytes((10, 0, 0, 1))},
    )
    return rib
