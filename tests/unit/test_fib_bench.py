"""bench-fib loses no figure to a case that fails, and none that was measured before."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.fib import _rows
from benchmarks.fib_cases import QUICK, Load, Results, Run, median_load
from benchmarks.report import Report, Row


def test_what_fails_is_named_and_the_others_go_on() -> None:
    said: list[str] = []

    def fails() -> None:
        raise KeyError("gone")

    run = Run(Results(), QUICK, (), (), said.append)
    run.attempt("BIRD", fails)
    run.attempt("FRR", lambda: said.append("measured"))
    assert run.failed == ["BIRD: KeyError: 'gone'"]
    assert said == ["FAILED: BIRD: KeyError: 'gone'", "measured"]


def test_rows_of_one_case_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    Report("x", [Row("a", "s", 1.0, 2.0, "BIRD"), Row("b", "s", 3.0)], {}).write(tmp_path)
    Report("x", [Row("a", "s", 1.5, 2.0, "BIRD"), Row("a", "s", 1.5, 4.0, "FRR")], {}).write(tmp_path, merge=True)
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [(row["case"], row["peer_name"], row["podroute"]) for row in rows] == [
        ("a", "BIRD", 1.5),
        ("b", "", 3.0),
        ("a", "FRR", 1.5),
    ]


def test_rows_are_those_of_daemons_that_got_through() -> None:
    results = Results()
    results.loads["ipv4, 200 per update"] = {"podroute": Load(1, 1, 1, 2.0, 3.0), "BIRD": Load(2, 2, 2)}
    results.ecmp["link cut", 1000] = {"BIRD": 1.0}
    results.latency["quiet"] = {"FRR": [1.0, 2.0]}
    results.curve["BIRD"] = {1000: Load(1, 1, 1)}
    cases = {row.case.partition(": ")[2] for row in _rows(results)}
    assert cases == {"to the kernel", "CPU", "peak memory"}


def test_repairs_have_goals() -> None:
    results = Results(repairs={"one route deleted": [0.001] * 99 + [0.3], "all flushed": [1.5]})
    shown = [(row.case, row.goal, row.holds) for row in _rows(results)]
    assert shown == [
        ("one route deleted, repaired: p50", None, None),
        ("one route deleted, repaired: p99", 100.0, True),
        ("all flushed, repaired", 2.0, True),
    ]


def test_each_figure_of_a_load_is_a_median_by_itself() -> None:
    loads = [Load(1.0, 9.0, 5.0, 3.0, 1.0), Load(2.0, 7.0, 6.0, 1.0, 3.0), Load(3.0, 8.0, 4.0, 2.0, 2.0)]
    assert median_load(loads) == Load(2.0, 8.0, 5.0, 2.0, 2.0)
