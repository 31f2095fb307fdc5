"""The stages that a node goes through, what waits for what, and what runs on the way.

containerlab's: https://containerlab.dev/manual/nodes/#stages. A node's stages follow each other; entering one may wait
until other nodes have finished one of theirs. Nothing here runs; ``labs.lifecycle`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Stage(StrEnum):
    """In the order in which a node goes through them."""

    CREATE = "create"
    """Its namespaces are made."""
    CREATE_LINKS = "create-links"
    """Its ends of links are attached."""
    CONFIGURE = "configure"
    """Its daemons or its command are started."""
    HEALTHY = "healthy"
    """Its healthcheck succeeds."""
    EXIT = "exit"
    """Its command ends."""


ORDER = tuple(Stage)
Step = tuple[str, Stage]
"""A node's stage."""


class Phase(StrEnum):
    ENTER = "on-enter"
    EXIT = "on-exit"


class Target(StrEnum):
    CONTAINER = "container"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class StageExec:
    """A command that belongs to a stage."""

    argv: tuple[str, ...]
    target: Target
    phase: Phase


@dataclass(frozen=True, slots=True)
class StagePlan:
    wait_for: tuple[Step, ...] = ()
    """What others must have finished before the node enters the stage."""
    execs: tuple[StageExec, ...] = ()


class HasStages(Protocol):
    """A node of a topology."""

    @property
    def network(self) -> str: ...

    @property
    def stages(self) -> Mapping[Stage, StagePlan]: ...


def requirements(nodes: Mapping[str, HasStages]) -> dict[Step, frozenset[Step]]:
    """Return for each step those that must be finished before it is entered.

    A node in another's network is made after that one.
    """
    found: dict[Step, frozenset[Step]] = {}
    for name, node in nodes.items():
        for number, stage in enumerate(ORDER):
            needed = set(node.stages[stage].wait_for) if stage in node.stages else set()
            if number:
                needed.add((name, ORDER[number - 1]))
            elif node.network in nodes:
                needed.add((node.network, Stage.CREATE))
            found[name, stage] = frozenset(needed)
    return found


def cycle(needed: Mapping[Step, Iterable[Step]]) -> list[Step]:
    """Return steps that wait for each other, each for the next one and the last for the first; empty without any."""
    finished: set[Step] = set()
    for start in needed:
        path: list[Step] = []
        todo: list[tuple[Step, bool]] = [(start, False)]
        while todo:
            step, left = todo.pop()
            if left:
                finished.add(path.pop())
            elif step in path:
                return path[path.index(step) :]
            elif step not in finished:
                path.append(step)
                todo.append((step, True))
                todo += [(other, False) for other in sorted(needed.get(step, ()))]
    return []


def describe_cycle(steps: Sequence[Step]) -> str:
    """Say a cycle as ``a:create waits for b:healthy waits for a:create``."""
    return " waits for ".join(f"{node}:{stage}" for node, stage in (*steps, steps[0]))


def before(needed: Mapping[Step, Iterable[Step]], step: Step) -> set[Step]:
    """Return everything that is finished when a step is entered."""
    found: set[Step] = set()
    todo = [step]
    while todo:
        for other in needed.get(todo.pop(), ()):
            if other not in found:
                found.add(other)
                todo.append(other)
    return found
