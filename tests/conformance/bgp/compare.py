"""``python -m tests.conformance.bgp.compare``: the suite at podroute, FRR, BIRD and GoBGP, side by side.

Prints the rows in which they differ and a summary, writes a page for people and JSON for programs. Ends with status 1
where podroute misses a row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.conformance.bgp import targets
from tests.conformance.bgp.__main__ import TURN
from tests.conformance.bgp.report import Table, page, summary
from tests.house import die_with_us

Row = dict[str, Any]


def results(name: str, *, only: str = "*") -> list[Row]:
    """Run the suite at one speaker, on external and internal sessions at once, and return its rows.

    What either has to run once more it runs when the other does nothing.
    """
    with targets.network() as (speaker, suite), targets.SPEAKERS[name](speaker), tempfile.TemporaryDirectory() as place:
        runs = []
        for internal in (False, True):
            file = Path(place) / str(internal)
            argv = [sys.executable, "-m", "tests.conformance.bgp", *targets.arguments(internal=internal)]
            argv += ["--only", only, "--json", str(file), "--turns"]
            process = subprocess.Popen(
                suite.command(*argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                preexec_fn=die_with_us,
            )
            runs.append((process, file))
        first = ["".join(_until_turn(process)) for process, _ in runs]
        rows: list[Row] = []
        for before, (process, file) in zip(first, runs, strict=True):
            said = before + process.communicate("\n")[0]
            if not file.exists():
                raise RuntimeError(f"the suite did not run at {name}:\n{said}")
            rows += json.loads(file.read_text())
        return rows


def _until_turn(process: subprocess.Popen[str]) -> Iterator[str]:
    """Return the lines that a suite prints until it waits for its turn, or ends."""
    for line in process.stdout or ():
        if line.strip() == TURN:
            return
        yield line


def main() -> int:
    options = _parser().parse_args()
    table: Table = {}
    for name in options.speakers.split(","):
        print(f"running at {name} ...", flush=True)
        for row in results(name, only=options.only):
            table.setdefault((row["rfc"], row["group"], row["name"], row["session"]), {})[name] = row
    names = options.speakers.split(",")
    print("\n".join(_lines(table, names)))
    print()
    print(summary(table, names))
    if options.page:
        Path(options.page).write_text(page(table, names, ", ".join(map(targets.version, names))))
    if options.json:
        rows = [row | {"speaker": name} for by_name in table.values() for name, row in by_name.items()]
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return int(any("podroute" in by and not by["podroute"]["met"] for by in table.values()))


def _lines(table: Table, names: list[str]) -> Iterable[str]:
    """Return what differs, one line a row."""
    width = max(len(name) for name in names) + 12
    for (rfc, group, name, session), by_name in sorted(table.items()):
        if all(row["met"] for row in by_name.values()):
            continue
        yield f"{rfc}: {group}: {name} ({session}), expected {' or '.join(next(iter(by_name.values()))['expected'])}"
        cells = ("+" if by_name[n]["met"] else f"{by_name[n]['outcome']}" for n in names if n in by_name)
        yield "    " + "".join(f"{n} {cell}".ljust(width) for n, cell in zip(names, cells, strict=False))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.bgp.compare", description=__doc__)
    parser.add_argument("--speakers", default=",".join(targets.SPEAKERS), help="some of them, separated by commas")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="only cases whose name or RFC matches")
    parser.add_argument("--page", metavar="FILE", help="write the page for people there")
    parser.add_argument("--json", metavar="FILE", help="write all rows there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
