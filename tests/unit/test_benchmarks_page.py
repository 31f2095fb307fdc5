"""The page of results says what the results say."""

from __future__ import annotations

from pathlib import Path

from benchmarks.page import PAGE, page
from benchmarks.report import Report, Row


def test_the_page_in_docs_is_that_of_the_results() -> None:
    assert PAGE.read_text() == page()


def test_a_goal_that_is_missed_says_so(tmp_path: Path) -> None:
    rows = [
        Row("ADD p50", "ms", 12.0, 10.0, "ptp", 1.25),
        Row("DEL p50", "ms", 12.0, 10.0, "ptp", 0.6),
        Row("rate", "routes/s", 200_000.0, goal=150_000.0, larger_is_better=True),
    ]
    Report("cni", rows, {"rounds": 5, "versions": {"ptp": "ptp 1.1"}, "failures": []}).write(tmp_path)
    written = page(tmp_path)
    assert "rounds: 5; versions: ptp 1.1." in written
    assert "| ADD p50 | ms | 12 | 10 | ptp | 1.2 | at most 1.25 | yes |" in written
    assert "| DEL p50 | ms | 12 | 10 | ptp | 1.2 | at most 0.6 | **no** |" in written
    assert "| rate | routes/s | 200,000 |  |  |  | at least 150,000 | yes |" in written
