"""`make bench-fib`: how fast UPDATEs become routes in the kernel, podroute beside BIRD 2 and FRR.

Each daemon runs alone in fresh namespaces, with an uplink to each of two raw senders that replay octets made before.
A run ends when the kernel has, or no longer has, all routes: looked up and counted there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from benchmarks import fib_cases, fib_repairs
from benchmarks.curve import picture
from benchmarks.fib_cases import QUICK, Load, Results, Run, Sizes, percentile
from benchmarks.fib_lab import ROUTERS, PlainPodroute
from benchmarks.report import RESULTS, Report, Row
from config.compiled import form

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
"""Of its rate, at least."""
PEAK = 175.0
"""MB at 500,000 routes."""
SESSION_LOSS = {"ipv4, 200 per update": 0.1, "ipv6, 200 per update": 0.25}
WITHDRAWAL = 0.4
ECMP = 0.010
QUIET = {50: 2.0, 99: 10.0}
LOADING = {99: 50.0}
"""Milliseconds by percentile."""
REPAIR_OF_ONE = 100.0
"""Milliseconds."""
REPAIR_OF_ALL = 2.0
"""Seconds."""

_CASES: dict[str, Callable[[Run], None]] = {
    "ipv4": fib_cases.large_updates,
    "small-updates": fib_cases.small_updates,
    "ipv6": fib_cases.ipv6,
    "internet": partial(fib_cases.real_table, path=DATA / TABLE),
    "ecmp": fib_cases.ecmp,
    "latency": fib_cases.latency,
    "repair": fib_repairs.repairs,
    "curve": fib_cases.curve,
}


@click.command()
@click.option("--quick", is_flag=True, help="Small tables: whether it works, not how fast it is.")
@click.option("--case", "cases", multiple=True, type=click.Choice(list(_CASES)), help="Only these (repeatable).")
@click.option("--only", is_flag=True, help="Only podroute, nobody beside it; nothing is written.")
def main(quick: bool, cases: tuple[str, ...], only: bool) -> None:
    """Measure, print a table, and write benchmarks/results/fib.json and fib.svg (fib-quick with --quick).

    After each case its rows take the place of those that an earlier run has written; all others stay.
    """
    sizes = QUICK if quick else Sizes()
    began = time.monotonic()
    settings = {"prefixes": _shown(sizes), "versions": _versions(), "form": f"{form().name} ({form().detail})"}
    name = "fib-quick" if quick else "fib"
    done: list[Row] = []
    failed: list[str] = []

    def say(line: str) -> None:
        click.echo(f"{time.monotonic() - began:6.1f} s  {line}", err=True)

    results = Results()
    routers = ROUTERS[:1] if only else ROUTERS
    for case in cases or [case for case in _CASES if case != "internet" or not quick]:
        run = Run(results, sizes, routers, [*routers] if only else [*routers, PlainPodroute], say, failed)
        run.attempt(case, partial(_CASES[case], run))
        rows = [row for row in _rows(results) if row not in done]
        done += rows
        if not only:
            Report(name, rows, settings).write(merge=True)
    if results.curve and not only:
        drawn = (RESULTS / f"{name}.svg").write_text(_drawing(results))
        say(f"drawn: {name}.svg ({drawn} octets)")
    report = Report(name, done, settings)
    report.print()
    for what in failed:
        say(f"FAILED: {what}")
    if failed or (report.missed and not quick):
        sys.exit(1)


def _shown(sizes: Sizes) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {' '.join(f'{n:,}' for n in value) if isinstance(value, tuple) else f'{value:,}'}"
        for name, value in asdict(sizes).items()
    )


def _rows(results: Results) -> list[Row]:
    return [
        *_load_rows(results),
        *_ecmp_rows(results),
        *_latency_rows(results),
        *_repair_rows(results),
        *_curve_rows(results),
    ]


def _load_rows(results: Results) -> Iterator[Row]:
    for case, found in results.loads.items():
        ours = found.get("podroute")
        if ours is None:
            continue
        for name, theirs in found.items():
            if theirs is not ours:
                yield Row(f"{case}: to the kernel", "s", ours.wall, theirs.wall, name, WALL[case].get(name))
        if case in results.bare:
            goal = 1 / OF_BARE_WRITER if case in ("ipv4, 200 per update", "internet table") else None
            yield Row(f"{case}: to the kernel", "s", ours.wall, results.bare[case], "bare writer", goal)
        for name, theirs in found.items():
            if theirs is not ours:
                yield Row(f"{case}: CPU", "s", ours.cpu, theirs.cpu, name, CPU[case] if name == "BIRD" else None)
        yield Row(f"{case}: peak memory", "MB", ours.peak, goal=PEAK if case == "ipv4, 200 per update" else None)
        for name, theirs in found.items():
            if theirs is ours:
                continue
            yield Row(f"{case}: peak memory", "MB", ours.peak, theirs.peak, name)
            if ours.session_loss and theirs.session_loss:
                goal = SESSION_LOSS[case] if name == "BIRD" else None
                yield Row(f"{case}: session loss", "s", ours.session_loss, theirs.session_loss, name, goal)
            if ours.withdrawal and theirs.withdrawal:
                goal = WITHDRAWAL if name == "BIRD" else None
                yield Row(f"{case}: withdrawal", "s", ours.withdrawal, theirs.withdrawal, name, goal)


def _ecmp_rows(results: Results) -> Iterator[Row]:
    for (what, count), found in results.ecmp.items():
        if "podroute" not in found:
            continue
        case = f"one of two lost, {what}, {count:,} routes"
        yield Row(case, "ms", found["podroute"] * 1000, goal=ECMP * 1000)
        for name, seconds in found.items():
            if name != "podroute":
                yield Row(case, "ms", found["podroute"] * 1000, seconds * 1000, name)


def _latency_rows(results: Results) -> Iterator[Row]:
    for case, goals in (("quiet", QUIET), ("while loading", LOADING)):
        found = results.latency.get(case, {})
        for percent in (50, 99) if "podroute" in found else ():
            ours = percentile(found["podroute"], percent) * 1000
            yield Row(f"one route, {case}: p{percent}", "ms", ours, goal=goals.get(percent))
            for name, figures in found.items():
                if name != "podroute":
                    theirs = percentile(figures, percent) * 1000
                    yield Row(f"one route, {case}: p{percent}", "ms", ours, theirs, name)


def _repair_rows(results: Results) -> Iterator[Row]:
    for what, seconds in results.repairs.items():
        if len(seconds) > 1:
            for percent, goal in ((50, None), (99, REPAIR_OF_ONE)):
                yield Row(f"{what}, repaired: p{percent}", "ms", percentile(seconds, percent) * 1000, goal=goal)
        else:
            yield Row(f"{what}, repaired", "s", seconds[0], goal=REPAIR_OF_ALL)


def _curve_rows(results: Results) -> Iterator[Row]:
    for name, sizes in results.curve.items():
        for count, load in sizes.items():
            ours = results.curve.get("podroute", {}).get(count)
            if ours is not None and name != "podroute":
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
