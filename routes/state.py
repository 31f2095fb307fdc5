"""What may be said of one route of ours: whether the kernel has it, and why not. No I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from config.prefix import Family
from routes.target import Target


class State(StrEnum):
    INSTALLED = "installed"
    PENDING = "pending"
    UNRESOLVED = "unresolved"
    """No next hop leads anywhere: not written."""
    CONFLICT = "conflict"
    """A route of another protocol has the same prefix and metric; it is left alone."""
    SHADOWED = "shadowed"
    """The kernel has it, and prefers a route of another protocol to the same prefix."""
    FAILED = "failed"
    """The kernel refuses."""
    STALE = "stale"
    """Left by an earlier run, kept until its peers had their chance to confirm it."""


class Result(NamedTuple):
    """What became of a route. ``errno`` and ``text`` say why where it is not installed."""

    table: int
    family: Family
    prefix: bytes
    state: State
    errno: int
    text: str = ""


class Failure(NamedTuple):
    held: Target | None
    state: State
    errno: int
    text: str


class RouteStatus(NamedTuple):
    """One prefix for people: what is desired, what the kernel holds as far as known, and why they differ."""

    prefix: bytes
    metric: int
    desired: Target | None
    kernel: Target | None
    state: State
    errno: int
    text: str
