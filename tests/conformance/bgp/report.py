"""The results of several speakers as text: a summary, and the page that is kept in docs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Table = dict[tuple[str, str, str, str], dict[str, dict[str, Any]]]
"""Rows by RFC, group, name and kind of session, then by speaker."""

_HEAD = """\
# BGP conformance

Written by `make conformance`; not to be edited. `tests/conformance/bgp/` speaks raw BGP at each of these speakers and
looks at what it answers and at what it passes on to a second session: {versions}.

A `+` means that the outcome is one that the RFC allows. Otherwise the outcome itself is shown: `accept`, `discard` (the
attribute), `withdraw` (the routes), `stale` (the UPDATE had no effect), `reset` with the NOTIFICATION's code and
subcode, `closed` (without one). Rows of level *may* are listed and count: some outcomes are right, others are not.

"""


def summary(table: Table, names: Sequence[str]) -> str:
    """Return rows met of all rows, by speaker: all of them, those of RFC 7606, and by level."""
    lines = [f"{'rows met'.ljust(28)}" + "".join(name.rjust(12) for name in names)]
    for title, keys in _parts(table):
        counts = [_count(table, keys, name) for name in names]
        lines.append(title.ljust(28) + "".join(f"{met}/{all_}".rjust(12) for met, all_ in counts))
    return "\n".join(lines)


def page(table: Table, names: Sequence[str], versions: str = "") -> str:
    """Return the page for people, in Markdown."""
    out = [_HEAD.format(versions=versions or ", ".join(names))]
    out.append(f"| rows met | {' | '.join(names)} |\n|---|{'---|' * len(names)}\n")
    for title, keys in _parts(table):
        counts = [_count(table, keys, name) for name in names]
        out.append(f"| {title} | {' | '.join(f'{met} of {all_}' for met, all_ in counts)} |\n")
    groups = dict.fromkeys(group for _, group, _, _ in table)
    for group in groups:
        out.append(f"\n## {group}\n\n| RFC | row | sessions | level | expected | {' | '.join(names)} |\n")
        out.append(f"|---|---|---|---|---|{'---|' * len(names)}\n")
        out += _rows(table, [key for key in sorted(table) if key[1] == group], names)
    return "".join(out)


def _rows(table: Table, keys: Iterable[tuple[str, str, str, str]], names: Sequence[str]) -> list[str]:
    """Return table lines; external and internal sessions share one where all is the same."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for key in keys:
        rfc, _, name, session = key
        by_name = table[key]
        first = next(iter(by_name.values()))
        cells = [("+" if by_name[n]["met"] else f"**{by_name[n]['outcome']}**") if n in by_name else "" for n in names]
        rest = f"{first['level']} | {', '.join(first['expected'])} | {' | '.join(cells)} |\n"
        lines.setdefault((rfc, name), {})[session] = rest
    out = []
    for (rfc, name), by_session in lines.items():
        if len(by_session) == 2 and len(set(by_session.values())) == 1:
            out.append(f"| {rfc} | {name} | both | {next(iter(by_session.values()))}")
        else:
            out += [f"| {rfc} | {name} | {session} | {rest}" for session, rest in sorted(by_session.items())]
    return out


def _parts(table: Table) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    def having(level: str) -> list[tuple[str, str, str, str]]:
        return [key for key, by_name in table.items() if next(iter(by_name.values()))["level"] == level]

    return [
        ("all", list(table)),
        ("must", having("must")),
        ("should", having("should")),
        ("may", having("may")),
        ("RFC 7606, external sessions", [k for k in table if k[0].startswith("RFC 7606") and k[3] == "external"]),
        ("RFC 7606, internal sessions", [k for k in table if k[0].startswith("RFC 7606") and k[3] == "internal"]),
    ]


def _count(table: Table, keys: Iterable[tuple[str, str, str, str]], name: str) -> tuple[int, int]:
    rows = [table[key][name] for key in keys if name in table[key]]
    return sum(bool(row["met"]) for row in rows), len(rows)
