"""Durations for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return ``"12 s"``, ``"3 min 20 s"``, ``"5 h 12 min"`` or ``"3 d 4 h"``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
