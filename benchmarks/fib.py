"""`make bench-fib`: how fast UPDATEs become routes in the kernel, podroute beside BIRD 2 and FRR.

Each daemon runs alone in fresh namespaces, with an uplink to each of two raw senders that replay octets made before.
A run ends when the kernel has, or no longer has, all routes: looked up and counted there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks import fib_cases
from benchmarks.curve import picture
from benchmarks.fib_cases import QUICK, Load, Results, Sizes, percentile
from benchmarks.fib_lab import ROUTERS
from benchmarks.report import RESULTS, Report, Row

TABLE = "internet/fulltable-2015-as4.updates.bin.gz"
DATA = Path(os.environ.get("PODROUTE_DATA", "."))
WALL = {
    "ipv4, 200 per update": {"BIRD": 0.40, "FRR": 0.25},
    "ipv4, 4 per update": {"BIRD": 0.60},
    "internet table": {"BIRD": 0.40, "FRR": 0.25},
    "ipv6, 200 per update": {"BIRD": 0.50, "FRR": 0.50},
}
CPU = {"ipv4, 200 per update": 0.6, "ipv6, 200 per update": 0.6, "ipv4, 4 per update": 0.8, "internet table": 0.8}
"""Against BIRD."""
OF_BARE_WRITER = 0.70
PEAK = 175.0
"""MB at 500,000 routes."""
SESSION_LOSS = {"ipv4, 200 per update": 0.1, "ipv6, 200 per update": 0.25}
WITHDRAWAL = 0.4
ECMP = 0.010
QUIET = {50: 2.0, 99: 10.0}
LOADING = {99: 50.0}
"""Milliseconds by percentile."""

_CASES = ("tables", "internet", "ecmp", "latency", "curve")


@click.command()
@click.option("--quick", is_flag=True, help="Small tables: whether it works, not how fast it is.")
@click.option("--case", "cases", multiple=True, type=click.Choice(_CASES), help="Only these (repeatable).")
@click.option("--only", is_flag=True, help="Only podroute, nobody beside it.")
def main(quick: bool, cases: tuple[str, ...], only: bool) -> None:
    """Measure, print a table, and write benchmarks/results/fib.json and fib.svg (fib-quick with --quick)."""
    sizes = QUICK if quick else Sizes()
    routers = ROUTERS[:1] if only else ROUTERS
    wanted = cases or _CASES
    results = Results()
    began = time.monotonic()
    table = DATA / TABLE

    def say(line: str) -> None:
        click.echo(f"{time.monotonic() - began:6.1f} s  {line}", err=True)

    if "tables" in wanted:
        fib_cases.tables(results, sizes, routers, say)
    if "internet" in wanted and not quick:
        if table.is_file():
            fib_cases.real_table(results, table, routers, say)
        else:
            say(f"no {table}: the real table is left out (set PODROUTE_DATA)")
    if "ecmp" in wanted:
        fib_cases.ecmp(results, sizes, routers, say)
    if "latency" in wanted:
        fib_cases.latency(results, sizes, routers, say)
    if "curve" in wanted:
        fib_cases.curve(results, sizes, routers, say)
    rows = [*_load_rows(results), *_ecmp_rows(results), *_latency_rows(results), *_curve_rows(results)]
    settings = {"sizes": asdict(sizes), "quick": quick, "versions": _versions()}
    name = "fib-quick" if quick else "fib"
    report = Report(name, rows, settings)
    report.print()
    if only or cases:
        return  # a part of the picture replaces no whole one
    path = report.write()
    drawn = (RESULTS / f"{name}.svg").write_text(_drawing(results))
    say(f"written: {path}, {name}.svg ({drawn} octets)")
    if report.missed and not quick:
        sys.exit(1)


def _load_rows(results: Results) -> Iterator[Row]:
    for case, found in results.loads.items():
        ours = found["podroute"]
        for name, theirs in found.items():
            if theirs is not ours:
                yield Row(f"{case}: to the kernel", "s", ours.wall, theirs.wall, name, WALL[case].get(name))
        if case in results.bare:
            yield Row(
                f"{case}: rate of the bare writer",
                "s",
                results.bare[case],
                ours.wall,
                "bare writer over podroute",
                OF_BARE_WRITER if case in ("ipv4, 200 per update", "internet table") else None,
                larger_is_better=True,
            )
        for name, theirs in found.items():
            if theirs is not ours:
                yield Row(f"{case}: CPU", "s", ours.cpu, theirs.cpu, name, CPU[case] if name == "BIRD" else None)
        yield Row(f"{case}: peak memory", "MB", ours.peak, goal=PEAK if case == "ipv4, 200 per update" else None)
        for name, theirs in found.items():
            if theirs is ours:
                continue
            yield Row(f"{case}: peak memory", "MB", ours.peak, theirs.peak, name)
            if ours.session_loss:
                goal = SESSION_LOSS[case] if name == "BIRD" else None
                yield Row(f"{case}: session loss", "s", ours.session_loss, theirs.session_loss, name, goal)
            if ours.withdrawal:
                goal = WITHDRAWAL if name == "BIRD" else None
                yield Row(f"{case}: withdrawal", "s", ours.withdrawal, theirs.withdrawal, name, goal)


def _ecmp_rows(results: Results) -> Iterator[Row]:
    for (what, count), found in results.ecmp.items():
        case = f"one of two lost, {what}, {count:,} routes"
        yield Row(case, "ms", found["podroute"] * 1000, goal=ECMP * 1000)
        for name, seconds in found.items():
            if name != "podroute":
                yield Row(case, "ms", found["podroute"] * 1000, seconds * 1000, name)


def _latency_rows(results: Results) -> Iterator[Row]:
    for case, goals in (("quiet", QUIET), ("while loading", LOADING)):
        found = results.latency.get(case, {})
        for percent in (50, 99) if found else ():
            ours = percentile(found["podroute"], percent) * 1000
            yield Row(f"one route, {case}: p{percent}", "ms", ours, goal=goals.get(percent))
            for name, figures in found.items():
                if name != "podroute":
                    theirs = percentile(figures, percent) * 1000
                    yield Row(f"one route, {case}: p{percent}", "ms", ours, theirs, name)


def _curve_rows(results: Results) -> Iterator[Row]:
    for name, sizes in results.curve.items():
        for count, load in sizes.items():
            ours = results.curve["podroute"][count]
            if name != "podroute":
                yield Row(f"{count:,} routes: to the kernel", "s", ours.wall, load.wall, name)


def _drawing(results: Results) -> str:
    def curves(figure: str) -> dict[str, dict[int, float]]:
        return {name: {n: _figure(load, figure) for n, load in found.items()} for name, found in results.curve.items()}

    panels = [("seconds to the kernel", "wall"), ("CPU seconds", "cpu"), ("peak memory, MB", "peak")]
    return picture([(title, curves(figure)) for title, figure in panels], across="routes")


def _figure(load: Load, name: str) -> float:
    value: float = getattr(load, name)
    return value


def _versions() -> dict[str, str]:
    found = {}
    for name, argv in (("BIRD", ["bird", "--version"]), ("FRR", ["/usr/lib/frr/bgpd", "--version"])):
        done = subprocess.run(argv, capture_output=True, text=True)
        found[name] = (done.stdout or done.stderr).splitlines()[0]
    return found


if __name__ == "__main__":
    main()
