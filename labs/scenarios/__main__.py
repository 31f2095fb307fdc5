"""``make scenarios``: run scenarios, and write the page about them. Exit status 1 where a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from labs.scenarios.bird import Bird
from labs.scenarios.catalogue import SCENARIOS
from labs.scenarios.report import Shown, page
from labs.scenarios.story import Result, play
from labs.teardown import take_down


async def _run(names: Iterable[str], *, compare: bool) -> list[Shown]:
    shown = []
    for name in names:
        scenario = SCENARIOS[name]
        print(f"{name} ...", end=" ", flush=True)
        result = await play(scenario)
        _say(result)
        beside = None
        if compare and scenario.compared:
            print(f"{name}, BIRD in podroute's place ...", end=" ", flush=True)
            beside = await play(scenario, Bird())
            print(f"{_told(beside)} [{beside.seconds:.0f} s]")
        shown.append(Shown(result, beside))
    return shown


def _say(result: Result) -> None:
    print(f"{'kept' if result.held else 'BROKEN'}: {_told(result)} [{result.seconds:.0f} s]")
    for check in result.checks:
        if not check.held:
            print(f"  FAILED {check.text}")


def _told(result: Result) -> str:
    return f"{result.lost} packets lost, longest outage {result.outage:.0f} ms" if result.flows else "no packets"


def main() -> int:
    """Run what the command line names, and return the exit status."""
    parser = argparse.ArgumentParser(prog="make scenarios", description="Show what podroute promises, under traffic.")
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=f"all by default: {', '.join(SCENARIOS)}")
    parser.add_argument("--core", action="store_true", help="only those that every test run has")
    parser.add_argument("--alone", action="store_true", help="do not play them with BIRD in podroute's place as well")
    parser.add_argument("--output", "-o", type=Path, default=Path("scenarios.html"), help="the page")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in SCENARIOS]:
        parser.error(f"no scenario {', '.join(unknown)}, there are: {', '.join(SCENARIOS)}")
    names = options.names or [name for name, known in SCENARIOS.items() if known.core or not options.core]
    try:
        shown = asyncio.run(_run(names, compare=not options.alone))
    except KeyboardInterrupt:
        return 130
    finally:
        take_down(f"scenario-{os.getpid()}")
    system = f"Linux {platform.release()}, {os.cpu_count()} CPUs"
    options.output.write_text(page(shown, system=system))
    kept = [one.result.held for one in shown]
    print(f"{options.output}: {sum(kept)} of {len(kept)} promises kept")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
