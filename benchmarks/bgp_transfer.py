"""One table through podroute and its rivals, in turn: how long it takes, and what it costs."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic, sleep

from benchmarks.daemons import DAEMON, BenchPeer, Daemon, Lab, Podroute
from benchmarks.injector import Injector
from benchmarks.report import Row
from benchmarks.streams import Stream

SENDER, RECEIVER, BYSTANDER = "10.0.4.1", "10.0.4.2", "10.0.4.3"
RECEIVER_AS = 65003
FAILURES = (AssertionError, OSError, ValueError, subprocess.SubprocessError)
"""What a daemon that does not do its part comes to."""

_LIMIT = 60.0
_LONG = 15.0
"""Seconds after which a daemon is not given the same table once more."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One table through one daemon. Seconds from the first octet sent."""

    received: float
    """Until the daemon's own counter stood at its last value."""
    out: float
    """Until the last prefix reached the other peer; 0: there was none."""
    cpu: float
    octets: float
    """Growth of the resident set per prefix."""


def transfer(kind: type[Daemon], stream: Stream, *, out: bool) -> Transfer:
    """Send a table to a fresh daemon, and with ``out`` have it pass it on."""
    lab = Lab()
    try:
        peers = [BenchPeer(SENDER, stream.asn)] + ([BenchPeer(RECEIVER, RECEIVER_AS, True)] if out else [])
        daemon = kind(lab, stream.local_as, peers)
        try:
            receiver = Injector(lab.injectors, RECEIVER, DAEMON, RECEIVER_AS) if out else None
            sender = Injector(lab.injectors, SENDER, DAEMON, stream.asn)
            memory, cpu, began = daemon.memory(), daemon.cpu(), monotonic()
            sender.send(stream.data)
            received = settled(daemon, stream.prefixes, began)
            done = 0.0
            if receiver is not None:
                while receiver.wait(receiver.prefixes + 1, 1.0):
                    pass
                done = receiver.arrived - began
                if receiver.prefixes < stream.prefixes * 0.99:
                    raise AssertionError(f"{daemon.name} passed on {receiver.prefixes} of {stream.prefixes} prefixes")
            figures = daemon.cpu() - cpu, (daemon.memory() - memory) / stream.prefixes
            sender.close()
            return Transfer(received, done, *figures)
        finally:
            daemon.close()
    finally:
        lab.close()


def settled(daemon: Daemon, expected: int, began: float) -> float:
    """Wait until the daemon's counter no longer moves; return when it came to its last value, counted from ``began``.

    A daemon may refuse some routes of a real table, so the count to reach is not known beforehand.
    """
    count, reached = -1, 0.0
    while (now := monotonic()) < began + _LIMIT:
        found = daemon.received()
        if found != count:
            count, reached = found, monotonic() - began
        if count == expected or (count >= expected * 0.99 and now - began > reached + 1):
            return reached
        sleep(daemon.interval)
    raise AssertionError(f"{daemon.name} has {count} of {expected} prefixes after {_LIMIT:g} s")


def beside(stream: Stream, rivals: Sequence[type[Daemon]], rounds: int, *, out: bool) -> tuple[list[Row], list[str]]:
    """Send one stream through podroute and each rival in turn, ``rounds`` times; return rows, and who failed how.

    A rival that fails, or takes more than ``_LONG`` seconds, is left out of the rounds that follow.
    """
    runs: dict[str, list[Transfer]] = {}
    failures: list[str] = []
    kinds: list[type[Daemon]] = [Podroute, *rivals]
    for _ in range(rounds):
        for kind in list(kinds):
            began = monotonic()
            try:
                runs.setdefault(kind.name, []).append(transfer(kind, stream, out=out))
            except FAILURES as error:
                failures.append(f"{kind.name}, {stream.name}{', in and out' if out else ''}: {error}")
                kinds.remove(kind)
            if kind in kinds and monotonic() - began > _LONG:
                kinds.remove(kind)
    return _rows(stream, {name: found for name, found in runs.items() if found}, out=out), failures


def _rows(stream: Stream, runs: dict[str, list[Transfer]], *, out: bool) -> list[Row]:
    if Podroute.name not in runs:
        return []
    figures: list[tuple[str, str, Callable[[Transfer], float]]] = [
        (f"received, {stream.name}", "s", lambda run: run.received),
        (f"CPU, {stream.name}", "s", lambda run: run.cpu),
        (f"memory, {stream.name}", "octets/prefix", lambda run: run.octets),
    ]
    if out:
        figures = [
            (f"in and out, {stream.name}", "s", lambda run: run.out),
            (f"CPU in and out, {stream.name}", "s", lambda run: run.cpu),
            (f"memory in and out, {stream.name}", "octets/prefix", lambda run: run.octets),
        ]
    rows = []
    for case, unit, read in figures:
        found = {name: statistics.median(map(read, some)) for name, some in runs.items()}
        ours = found.pop(Podroute.name)
        rows += [Row(case, unit, ours, theirs, name) for name, theirs in found.items()] or [Row(case, unit, ours)]
    return rows
