"""Measurements over sizes as one SVG picture: a panel per figure, linear, from zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 240, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 30, 34
COLOUR = "#1f77b4"


def picture(panels: Sequence[tuple[str, Mapping[int, float]]], *, across: str) -> str:
    """Draw ``(title, value by size)``, side by side; ``across`` names the sizes."""
    width = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" font-size="11" '
        'font-family="sans-serif">'
    ]
    for number, (title, values) in enumerate(panels):
        parts.append(f'<g transform="translate({number * WIDTH},0)">{_panel(title, values, across)}</g>')
    return "\n".join([*parts, "</svg>"])


def _panel(title: str, values: Mapping[int, float], across: str) -> str:
    top, last = max(values.values(), default=0) or 1.0, max(values, default=1)
    foot = HEIGHT - BOTTOM

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * size / last

    def y(value: float) -> float:
        return foot - (foot - TOP) * value / top

    places = [(x(size), y(value), size, value) for size, value in sorted(values.items())]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b, *_ in places)
    parts = [
        f'<text x="{LEFT}" y="16" font-weight="bold">{escape(title)}</text>',
        f'<path d="M{LEFT} {TOP} V{foot} H{WIDTH - RIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{LEFT - 5}" y="{TOP + 4}" text-anchor="end">{_short(top)}</text>',
        f'<text x="{LEFT - 5}" y="{foot + 4}" text-anchor="end">0</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across)}</text>',
        f'<polyline points="{line}" fill="none" stroke="{COLOUR}" stroke-width="2"/>',
    ]
    for a, b, size, value in places:
        parts.append(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{COLOUR}"><title>{size}: {_short(value)}</title></circle>'
            f'<text x="{a:.1f}" y="{foot + 14}" text-anchor="middle">{size}</text>'
        )
    return "".join(parts)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
