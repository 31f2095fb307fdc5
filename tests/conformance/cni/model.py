"""What a check is, and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tests.conformance.cni.bed import Bed

Level = Literal["must", "should"]
Verdict = Literal["pass", "fail", "skip"]
MUST: Level = "must"
SHOULD: Level = "should"


class ConformanceError(Exception):
    """The plugin did something else than it is expected to."""

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__(f"expected {expected}, seen: {seen}")
        self.expected = expected
        self.seen = seen


class NotApplicableError(Exception):
    """The check says nothing about this plugin; the text says why."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    level: Level
    section: str
    """Of the specification, 1.1.0: "2 ADD"."""
    promise: str
    """What holds if it passes."""
    run: Callable[[Bed], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Finding:
    check: Check
    verdict: Verdict
    expected: str = ""
    seen: str = ""
    """What was seen, or why the check was skipped."""
    known: str = ""
    """Why it is expected to fail."""

    @property
    def breaks(self) -> bool:
        """A must that fails unexpectedly, or what is expected to fail and does not."""
        if self.known:
            return self.verdict == "pass"
        return self.verdict == "fail" and self.check.level == "must"


def expect(held: object, expected: str, seen: object) -> None:
    """Raises ConformanceError where something does not hold."""
    if not held:
        raise ConformanceError(expected, str(seen))
