"""Curves over sizes as an SVG picture: logarithmic both ways, one line per daemon. No dependency, no script inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
_WIDTH, _HEIGHT = 380, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 34, 40

Curve = Mapping[str, Mapping[int, float]]
"""By daemon: figure by size."""


def picture(panels: Sequence[tuple[str, Curve]], *, across: str) -> str:
    """Return one SVG with a panel per figure, ``(title, curves)``; ``across`` names the sizes."""
    width, height = _WIDTH * len(panels), _HEIGHT + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (title, curves) in enumerate(panels):
        parts.append(f'<g transform="translate({number * _WIDTH},0)">{_panel(title, curves, across)}</g>')
    names = list(dict.fromkeys(name for _, curves in panels for name in curves))
    for number, name in enumerate(names):
        x = _LEFT + number * 120
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<line x1="{x}" y1="{_HEIGHT + 10}" x2="{x + 22}" y2="{_HEIGHT + 10}" stroke="{colour}" ')
        parts.append(f'stroke-width="2"/><text x="{x + 28}" y="{_HEIGHT + 14}">{escape(name)}</text>')
    return "".join(parts) + "</svg>\n"


def _panel(title: str, curves: Curve, across: str) -> str:
    points = [(size, value) for curve in curves.values() for size, value in curve.items() if size > 0 and value > 0]
    if not points:
        return ""
    left, right = _decades([size for size, _ in points])
    bottom, top = _decades([value for _, value in points])

    def x(size: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (log10(size) - left) / (right - left)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (log10(value) - bottom) / (top - bottom)

    parts = [f'<text x="{_LEFT}" y="20" font-size="13" font-weight="bold">{escape(title)}</text>']
    for decade in range(left, right + 1):
        at = x(10.0**decade)
        parts.append(_rule(at, _TOP, at, _HEIGHT - _BOTTOM))
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{_label(decade)}</text>')
    for decade in range(bottom, top + 1):
        at = y(10.0**decade)
        parts.append(_rule(_LEFT, at, _WIDTH - _RIGHT, at))
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_label(decade)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>')
    for number, curve in enumerate(curves.values()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(x(size), y(value)) for size, value in sorted(curve.items()) if size > 0 and value > 0]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in places]
    return "".join(parts)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return low, max(high, low + 1)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _label(decade: int) -> str:
    if decade >= 6:
        return f"{10 ** (decade - 6)}M"
    if decade >= 3:
        return f"{10 ** (decade - 3)}k"
    return f"{10.0**decade:g}"
