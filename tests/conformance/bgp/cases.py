"""What a case is: something done to the speaker, and the outcomes that an RFC allows.

An outcome is a short text. ``reset 3/1`` is a session that ended with that NOTIFICATION, ``closed`` one that ended
without; all others are named where they are produced (``updates``, ``openings``, ``states``). An expected outcome also
stands for the more special ones: ``reset`` for ``reset 3/1``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tests.conformance.bgp.suite import Suite

Level = Literal["must", "should", "may"]
"""How much the RFC asks: ``may`` marks what it leaves open, where any of the expected outcomes is a fair choice."""

Expected = frozenset[str]


def any_of(*outcomes: str) -> Expected:
    return frozenset(outcomes)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table. ``external`` and ``internal``: what is expected on that kind of session; None: not run."""

    group: str
    name: str
    rfc: str
    """Document and section."""
    level: Level
    run: Callable[[Suite], Awaitable[str]]
    external: Expected | None
    internal: Expected | None

    @property
    def title(self) -> str:
        return f"{self.group}: {self.name}"

    def expected(self, *, internal: bool) -> Expected | None:
        return self.internal if internal else self.external


@dataclass(frozen=True, slots=True)
class Result:
    case: Case
    internal: bool
    outcome: str
    seconds: float = 0.0

    @property
    def met(self) -> bool:
        return meets(self.outcome, self.case.expected(internal=self.internal) or frozenset())

    def as_dict(self) -> dict[str, object]:
        case = self.case
        return {
            "group": case.group,
            "name": case.name,
            "rfc": case.rfc,
            "level": case.level,
            "session": "internal" if self.internal else "external",
            "expected": sorted(case.expected(internal=self.internal) or ()),
            "outcome": self.outcome,
            "met": self.met,
            "seconds": round(self.seconds, 3),
        }


def meets(outcome: str, expected: Iterable[str]) -> bool:
    """Tell whether an outcome is, or is a special form of, an expected one."""
    return any(outcome == e or outcome.startswith((f"{e} ", f"{e}/")) for e in expected)
