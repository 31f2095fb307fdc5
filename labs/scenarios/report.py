"""One self-contained HTML page about scenarios: promise, picture, timeline, packets lost, milliseconds of outage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import NamedTuple

from labs.scenarios.story import Result
from labs.scenarios.traffic import Flow

WIDTH, LEFT, ROW = 860, 130, 18
STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 980px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .6em 0 }
td, th { padding: .15em .8em .15em 0; text-align: left; vertical-align: top }
th { font-weight: normal; color: #777 } .ok { color: #2e7d32 } .bad { color: #c62828 } td.n { text-align: right }
section { border-top: 1px solid #ccc; margin-top: 2em } svg { max-width: 100%; height: auto }
"""


class Shown(NamedTuple):
    """One scenario on the page."""

    result: Result
    beside: Result | None = None
    """The same with another daemon in podroute's place; it promises nothing."""


def page(shown: Sequence[Shown], *, system: str, now: datetime | None = None) -> str:
    """Return the page. ``system`` says what it ran on; times in it are of the runs, whose load it does not know."""
    kept = sum(one.result.held for one in shown)
    others = sorted({one.beside.daemon for one in shown if one.beside})
    made = (now or datetime.now(UTC)).isoformat(timespec="minutes")
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>podroute: scenarios</title>',
        f"<style>{STYLE}</style></head><body><h1>podroute: what happens, and what is promised</h1>",
        f"<p>{kept} of {len(shown)} promises kept. {escape(system)}, {made}.</p>",
        "<table><tr><th>scenario</th><th></th><th>packets lost</th><th>longest outage</th>",
        f"<th>{escape(', '.join(others))} in podroute's place: lost</th><th>longest outage</th></tr>"
        if others
        else "</tr>",
        *(_summary(one) for one in shown),
        "</table>",
        *(_section(one) for one in shown),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _verdict(held: bool) -> str:
    return '<span class="ok">kept</span>' if held else '<span class="bad">broken</span>'


def _summary(shown: Shown) -> str:
    result = shown.result
    name = escape(result.scenario.name)
    numbers = _numbers(result) + (_numbers(shown.beside) if shown.beside else "")
    return f'<tr><td><a href="#{name}">{name}</a></td><td>{_verdict(result.held)}</td>{numbers}</tr>'


def _numbers(result: Result) -> str:
    if not result.flows:
        return "<td></td><td></td>"
    return f'<td class="n">{result.lost}</td><td class="n">{result.outage:.0f} ms</td>'


def _section(shown: Shown) -> str:
    result = shown.result
    name = escape(result.scenario.name)
    parts = [
        f'<section id="{name}"><h2>{name}: {_verdict(result.held)}</h2>',
        f"<p>{escape(result.scenario.promise)}</p>",
        _run(result),
        f"<p>Lab: {escape(result.lab)}, as it was before.</p>{result.picture}",
    ]
    if shown.beside:
        parts.append(f"<h3>The same with {escape(shown.beside.daemon)} in podroute's place</h3>")
        parts += ["<p>For comparison: what fails here counts for nothing above.</p>", _run(shown.beside)]
    return "\n".join([*parts, "</section>"])


def _run(result: Result) -> str:
    return "\n".join(
        [
            _checks(result),
            timeline(result) if result.flows or result.events else "",
            _events(result),
            _flows(result.flows),
            _figures(result),
            *result.drawings,
        ]
    )


def _checks(result: Result) -> str:
    lines = [
        f'<li class="{"ok" if check.held else "bad"}">{"ok" if check.held else "FAILED"}: {escape(check.text)}</li>'
        for check in result.checks
    ]
    return f"<ul>{''.join(lines)}</ul>"


def _events(result: Result) -> str:
    rows = [
        f'<tr><td class="n">{number}</td><td class="n">{at:.3f} s</td><td>{escape(text)}</td></tr>'
        for number, (at, text) in enumerate(result.events, 1)
    ]
    return f"<table>{''.join(rows)}</table>"


def _flows(flows: Iterable[Flow]) -> str:
    rows = [
        f'<tr><td>{escape(flow.name)}</td><td class="n">{flow.sent}</td><td class="n">{flow.lost}</td>'
        f'<td class="n">{flow.outage:.0f} ms</td></tr>'
        for flow in flows
    ]
    head = "<tr><th>direction</th><th>packets sent</th><th>lost</th><th>longest outage</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>" if rows else ""


def _figures(result: Result) -> str:
    rows = [f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in result.figures]
    return f"<table>{''.join(rows)}</table>" if rows else ""


def timeline(result: Result) -> str:
    """Draw one bar per direction, red where packets were lost, with the numbered events above."""
    ends = [gap.end - result.start for flow in result.flows for gap in flow.gaps]
    length = max([at for at, _ in result.events] + ends + [0.001])
    scale = (WIDTH - LEFT - 20) / length
    height = ROW * (len(result.flows) + 2)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" font-size="11">']
    for number, (at, text) in enumerate(result.events, 1):
        x = LEFT + max(at, 0.0) * scale
        parts.append(
            f'<g><title>{escape(text)}</title><line x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="{height}" stroke="#bbb"/>'
            f'<text x="{x:.1f}" y="11" text-anchor="middle">{number}</text></g>'
        )
    for row, flow in enumerate(result.flows, 1):
        y = ROW * row + 4
        parts.append(f'<text x="0" y="{y + 9}">{escape(flow.name)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{length * scale:.1f}" height="10" fill="#a5d6a7"/>')
        for gap in flow.gaps:
            start = max(gap.start - result.start, 0.0)
            wide = max((gap.end - gap.start) * scale, 1.5)
            told = f"{gap.lost} packets, {gap.milliseconds:.0f} ms, from {start:.3f} s"
            parts.append(
                f'<rect x="{LEFT + start * scale:.1f}" y="{y}" width="{wide:.1f}" height="10" fill="#c62828">'
                f"<title>{told}</title></rect>"
            )
    return "\n".join([*parts, "</svg>"])
