"""docs/benchmarks.md: the results of the last run of each benchmark, as they stand in ``benchmarks/results``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, figure

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
TITLES = {
    "bgp": "The speaker, beside BIRD, FRR and GoBGP",
    "fib": "Routes into the kernel, beside BIRD and FRR",
    "ipam": "Blocks and addresses, beside host-local",
    "cni": "The plugin, beside ptp and bridge",
}
HEAD = """# Measured, side by side

Written by `make bench-NAME` out of `benchmarks/results/`; measure again on your own machine, on a quiet one. Each
figure is the median of several rounds in which podroute and its peer take turns on the same input (one round: the loss
of one of two peers, repairs, and the curve of table sizes). The ratio is podroute's figure by the peer's. A goal is
what the ratio (without a peer: the figure) must keep to; **a goal that is missed says so.**
"""


def page(results: Path = RESULTS) -> str:
    """Return the page about every result in a directory, in Markdown."""
    parts = [HEAD]
    for name, title in TITLES.items():
        file = results / f"{name}.json"
        if file.exists():
            parts.append(_section(name, title, json.loads(file.read_text())))
    return "\n".join(parts)


def _section(name: str, title: str, result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        f"## {title}",
        "",
        f"`make bench-{name}`, {result['at'][:10]}, {machine['cpus']} CPUs, "
        f"Linux {machine['kernel'].partition('-')[0]}, Python {machine['python']}; {_settings(result['settings'])}.",
        "",
        "| case | unit | podroute | peer | | ratio | goal | holds |",
        "|---|---|---:|---:|---|---:|---:|---|",
    ]
    for row in result["rows"]:
        cells = (
            row["case"],
            row["unit"],
            figure(row["podroute"]),
            figure(row["peer"]),
            row["peer_name"],
            figure(row["ratio"]),
            _goal(row),
            {True: "yes", False: "**no**", None: ""}[row["holds"]],
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _settings(settings: Mapping[str, Any]) -> str:
    said = {key: ", ".join(value.values()) if isinstance(value, dict) else value for key, value in settings.items()}
    return "; ".join(f"{key}: {value}" for key, value in said.items() if value != [])


def _goal(row: Mapping[str, Any]) -> str:
    if row["goal"] is None:
        return ""
    return f"{'at least' if row['larger_is_better'] else 'at most'} {figure(row['goal'])}"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE} written", file=sys.stderr)
