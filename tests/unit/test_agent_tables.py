from __future__ import annotations

from typing import Any

import pytest

from agent import tables
from agent.durations import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7320, "2 h 2 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def path(**changes: Any) -> dict[str, Any]:
    plain = {
        "peer": "tor",
        "pathId": None,
        "owner": "",
        "used": True,
        "nextHop": "10.0.0.1",
        "asPath": "65001",
        "localPref": 100,
    }
    return {**plain, "reason": "", **changes}


def test_a_route_shows_every_path_and_why_it_is_not_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lost = path(peer="tor2", used=False, nextHop="10.0.1.1", reason="not best: as path length")
    route = {"prefix": "192.0.2.0/24", "kernel": "installed", "problem": "", "paths": [path(), lost]}
    tables.routes([route])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["PREFIX", "NEXT", "HOP", "PEER", "PREF", "AS", "PATH", "KERNEL", "WHY"]
    assert first.split() == ["192.0.2.0/24", "*", "10.0.0.1", "tor", "100", "65001", "installed"]
    assert second.split() == ["10.0.1.1", "tor2", "100", "65001", "not", "best:", "as", "path", "length"]


def test_a_path_with_an_identifier_shows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 7911: several paths of one peer are told apart by it."""
    monkeypatch.setenv("COLUMNS", "200")
    paths = [path(pathId=7), path(pathId=0, used=False)]
    tables.routes([{"prefix": "192.0.2.0/24", "kernel": "installed", "problem": "", "paths": paths}])
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[3:6] == ["tor", "path", "7"]
    assert second.split()[1:4] == ["tor", "path", "0"]


def test_a_route_that_the_kernel_does_not_hold_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    tables.routes([{"prefix": "192.0.2.0/24", "kernel": "conflict", "problem": "a static route", "paths": [path()]}])
    assert capsys.readouterr().out.splitlines()[1].split()[-4:] == ["conflict", "a", "static", "route"]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (tables.peers, "no peers are configured"),
        (tables.routes, "no routes"),
        (tables.blocks, "this node owns no block"),
        (tables.pods, "no pods"),
    ],
)
def test_nothing_is_said_in_words(table: Any, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table([])
    assert capsys.readouterr().out == text + "\n"


def long_route() -> dict[str, Any]:
    reason = "not best: the AS path is longer than that of the path which tor1 announces"
    lost = path(peer="tor2", used=False, asPath=" ".join(["4200000001"] * 9), reason=reason)
    return {"prefix": "fd00:64:ffff:ffff:ffff::18:8f00/122", "kernel": "installed", "problem": "", "paths": [lost]}


def test_what_is_no_terminal_gets_a_row_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """For grep."""
    tables.routes([long_route()])
    _, row = capsys.readouterr().out.splitlines()
    assert "fd00:64:ffff:ffff:ffff::18:8f00/122" in row
    assert row.rstrip().endswith("which tor1 announces")


@pytest.mark.parametrize("columns", ["80", "40"])
def test_a_narrow_terminal_folds_sentences_and_cuts_no_prefix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    tables.routes([long_route()])
    shown = capsys.readouterr().out
    assert "fd00:64:ffff:ffff:ffff::18:8f00/122" in shown
    assert "installed" in shown
    assert "announces" in shown
    assert len(shown.splitlines()) > 3
