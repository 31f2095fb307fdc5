"""The speaker's benchmark goes on without those that fail, and does not wait for the slow ones twice."""

from __future__ import annotations

import pytest

from benchmarks import bgp_transfer
from benchmarks.bgp_transfer import Transfer, beside
from benchmarks.daemons import Bird, Daemon, Frr, Gobgp, Podroute
from benchmarks.streams import Stream

STREAM = Stream("a table", 65002, 65001, b"", 1, 1)


def test_who_fails_is_named_and_who_is_slow_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, runs = 0.0, []

    def transfer(kind: type[Daemon], stream: Stream, *, out: bool) -> Transfer:
        nonlocal now
        runs.append(kind.name)
        now += {"GoBGP": 20.0}.get(kind.name, 1.0)
        if kind is Frr:
            raise AssertionError("it does not listen")
        return Transfer(received=len(runs), out=0.0, cpu=1.0, octets=100.0)

    monkeypatch.setattr(bgp_transfer, "transfer", transfer)
    monkeypatch.setattr("benchmarks.bgp_transfer.monotonic", lambda: now)
    rows, failures = beside(STREAM, [Bird, Frr, Gobgp], 3, out=False)
    assert runs == ["podroute", "BIRD", "FRR", "GoBGP", "podroute", "BIRD", "podroute", "BIRD"]
    assert failures == ["FRR, a table: it does not listen"]
    assert [(row.case, row.podroute, row.peer, row.peer_name) for row in rows[:2]] == [
        ("received, a table", 5, 6, "BIRD"),
        ("received, a table", 5, 4, "GoBGP"),
    ]


def test_without_rivals_the_figures_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bgp_transfer, "transfer", lambda kind, stream, out: Transfer(1.0, 2.0, 3.0, 4.0))
    rows, failures = beside(STREAM, [], 1, out=True)
    assert not failures
    assert [(row.podroute, row.peer) for row in rows] == [(2.0, None), (3.0, None), (4.0, None)]


def test_without_podroute_there_is_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    def transfer(kind: type[Daemon], stream: Stream, *, out: bool) -> Transfer:
        if kind is Podroute:
            raise OSError("no")
        return Transfer(1.0, 2.0, 3.0, 4.0)

    monkeypatch.setattr(bgp_transfer, "transfer", transfer)
    assert beside(STREAM, [Bird], 2, out=False) == ([], ["podroute, a table: no"])
