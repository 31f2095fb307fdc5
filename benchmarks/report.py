"""What every benchmark says in the end: a table for people, and a JSON file that is whole or not there."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of podroute's, beside a peer's where there is one to compare with."""

    case: str
    unit: str
    podroute: float
    peer: float | None = None
    peer_name: str = ""
    goal: float | None = None
    """What must not be exceeded: by the ratio where there is a peer, else by the figure. None: for information."""
    larger_is_better: bool = False
    """The goal is a least, not a most."""

    @property
    def ratio(self) -> float | None:
        return self.podroute / self.peer if self.peer else None

    @property
    def holds(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        figure = self.podroute if self.ratio is None else self.ratio
        return figure >= self.goal if self.larger_is_better else figure <= self.goal


@dataclass(frozen=True, slots=True)
class Report:
    name: str
    """``"cni"``: names the file."""
    rows: Sequence[Row]
    settings: Mapping[str, Any]
    """What was run: rounds, sizes, versions of the peers."""
    profile: Sequence[str] = ()
    """Where the time goes; for figures that miss their goal."""

    @property
    def missed(self) -> list[Row]:
        return [row for row in self.rows if row.holds is False]

    def print(self, console: Console | None = None) -> None:
        console = console or Console()
        table = Table(title=self.name, title_justify="left", box=None, header_style="bold dim", pad_edge=False)
        for column in ("CASE", "UNIT", "PODROUTE", "PEER", "", "RATIO", "GOAL", "HOLDS"):
            table.add_column(column, justify="right" if column in ("PODROUTE", "PEER", "RATIO", "GOAL") else "left")
        for row in self.rows:
            table.add_row(
                row.case,
                row.unit,
                figure(row.podroute),
                figure(row.peer),
                row.peer_name,
                figure(row.ratio),
                figure(row.goal),
                _verdict(row.holds),
            )
        console.print(table)
        for line in self.profile:
            console.print(line, style="dim", highlight=False)

    def write(self, directory: Path = RESULTS, *, merge: bool = False) -> Path:
        """Write ``<name>.json`` in one step; return its path.

        ``merge``: rows of the file that are not among ours (by case and peer) stay, in their places.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.json"
        hidden = path.with_name(f".{path.name}.{os.getpid()}")
        shown = self.as_json()
        if merge and path.exists():
            kept = {(row["case"], row["peer_name"]): row for row in json.loads(path.read_text())["rows"]}
            shown["rows"] = list((kept | {(row["case"], row["peer_name"]): row for row in shown["rows"]}).values())
        try:
            hidden.write_text(json.dumps(shown, indent=2) + "\n")
            os.replace(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)
        return path

    def as_json(self) -> dict[str, Any]:
        rows = []
        for row in self.rows:
            shown = {**asdict(row), "ratio": row.ratio, "holds": row.holds}
            rows.append({key: round(value, 6) if isinstance(value, float) else value for key, value in shown.items()})
        return {
            "benchmark": self.name,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
            "settings": dict(self.settings),
            "rows": rows,
            "profile": list(self.profile),
        }


def figure(value: float | None) -> str:
    """Return a figure with three digits that count, thousands set apart; empty for none."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _verdict(holds: bool | None) -> Text:
    if holds is None:
        return Text("")
    return Text("yes", "green") if holds else Text("no", "bold red")
