"""What passes between those who know where a block may be free and the claim that tries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ipam.pool import Pool
from ipam.records import Block
from ipam.store import Condition, Entry, Range, Write


@dataclass(frozen=True, slots=True)
class Candidate:
    """A block that would do."""

    pool: Pool
    index: int
    conditions: Sequence[Condition] = ()
    """What else must hold, besides that nothing overlaps it."""
    writes: Sequence[Write] = ()
    """What else is written with it."""


class Offers(NamedTuple):
    candidates: Sequence[Candidate]
    """The best first; at least one."""
    reads: Sequence[Range] = ()
    """What is read where none can be had."""


class Claimed(NamedTuple):
    block: Block | None
    tried: int
    """How many candidates were tried, where none could be had; else which one was, counted from 0."""
    read: Sequence[Sequence[Entry]]
