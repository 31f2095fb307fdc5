"""The form in which benchmarks report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.report import Report, Row, figure

ROWS = [
    Row("ADD p50", "ms", 12.0, 10.0, "ptp", 1.25),
    Row("DEL p50", "ms", 12.0, 10.0, "ptp", 0.6),
    Row("RSS per pod", "KB", 1.5, goal=2.0),
    Row("rate", "routes/s", 200_000.0, 100_000.0, "BIRD", 1.5, larger_is_better=True),
    Row("for information", "ms", 1.0),
]


def test_what_holds() -> None:
    assert [row.holds for row in ROWS] == [True, False, True, True, None]
    assert [row.ratio for row in ROWS] == [1.2, 1.2, None, 2.0, None]
    assert Report("x", ROWS, {}).missed == [ROWS[1]]


def test_written_whole(tmp_path: Path) -> None:
    path = Report("x", ROWS, {"rounds": 5}, ["start 9 ms"]).write(tmp_path / "results")
    written = json.loads(path.read_text())
    assert written["rows"][0] == {
        "case": "ADD p50",
        "unit": "ms",
        "podroute": 12.0,
        "peer": 10.0,
        "peer_name": "ptp",
        "goal": 1.25,
        "larger_is_better": False,
        "ratio": 1.2,
        "holds": True,
    }
    assert written["profile"] == ["start 9 ms"]
    assert written["settings"] == {"rounds": 5}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_printed() -> None:
    out = io.StringIO()
    Report("x", ROWS, {}, ["start 9 ms"]).print(Console(file=out, width=120))
    assert "200,000" in out.getvalue()
    assert "no" in out.getvalue()
    assert "start 9 ms" in out.getvalue()


@pytest.mark.parametrize(("value", "text"), [(None, ""), (0.5, "0.5"), (12.345, "12.3"), (1234.5, "1,234")])
def test_figures(value: float | None, text: str) -> None:
    assert figure(value) == text
