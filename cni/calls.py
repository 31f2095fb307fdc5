"""How many calls of the plugin there were, how they ended, and how long a runtime waited for each."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 45.0)
"""Seconds: upper bounds of the durations that are counted apart; the last is the longest wait for an address."""
UNREADABLE = "unreadable"
"""Stands for the verb of a request that could not be read."""


class Durations:
    """How long calls of one verb took."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        """Calls up to each of BOUNDS and above the one before it; at last those above all."""
        self.seconds = 0.0
        """Of all calls together."""


class Calls:
    def __init__(self) -> None:
        self.results: Counter[tuple[str, int]] = Counter()
        """By verb and error code (CNI 1.1.0 section 5, ``cni.errors.Code``), 0: it succeeded."""
        self.durations: dict[str, Durations] = {}
        """By verb."""

    def ended(self, verb: str, code: int, seconds: float) -> None:
        """Count a call that is about to be answered."""
        self.results[verb, code] += 1
        durations = self.durations.get(verb)
        if durations is None:
            durations = self.durations[verb] = Durations()
        durations.counts[bisect_left(BOUNDS, seconds)] += 1
        durations.seconds += seconds
