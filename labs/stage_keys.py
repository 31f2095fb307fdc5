"""A node's ``stages`` as they are written: commands as a list of maps, or as a map of lists by phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeVar

from labs.checks import Checker, Given, UnusableError
from labs.source import Value
from labs.stages import Phase, Stage, Target

STAGE = frozenset({"wait-for", "exec"})
WAIT_FOR = frozenset({"node", "stage"})
EXEC = frozenset({"command", "target", "phase"})
Word = TypeVar("Word", bound=StrEnum)


class WrittenExec(NamedTuple):
    command: Given
    target: Target
    phase: Phase


class WrittenWait(NamedTuple):
    node: str
    stage: Stage
    place: str


@dataclass(frozen=True, slots=True)
class Written:
    """One stage of one level."""

    wait_for: tuple[WrittenWait, ...] = ()
    execs: tuple[WrittenExec, ...] = ()

    def plus(self, other: Written) -> Written:
        """Return this level's with a more specific one's after it; what is waited for twice stands there once."""
        present = {wait[:2] for wait in self.wait_for}
        more = tuple(wait for wait in other.wait_for if wait[:2] not in present)
        return Written(self.wait_for + more, self.execs + other.execs)


def read(check: Checker, place: str, value: Value) -> dict[Stage, Written]:
    """Read the stages of one level."""
    given = check.map(place, value)
    check.keys(place, given, frozenset(Stage), frozenset())
    return {stage: _stage(check, f"{place}.{stage}", stage, given[stage]) for stage in Stage if stage in given}


def _stage(check: Checker, place: str, stage: Stage, value: Value) -> Written:
    given = check.map(place, value)
    check.keys(place, given, STAGE, frozenset())
    waits = []
    for index, item in enumerate(check.list(f"{place}.wait-for", given.get("wait-for"))):
        where = f"{place}.wait-for[{index}]"
        with check.collecting():
            wait = check.map(where, item)
            check.keys(where, wait, WAIT_FOR, frozenset())
            node = check.text(f"{where}.node", wait.get("node"), required="name the node to wait for")
            waits.append(WrittenWait(node, _word(check, f"{where}.stage", wait.get("stage"), Stage), f"{where}.node"))
    execs = []
    for where, command, target, phase in _commands(check, f"{place}.exec", given.get("exec")):
        with check.collecting():
            text = check.text(where, command, required="write a command")
            made = WrittenExec(
                Given(text, where), _word(check, where, target, Target), _word(check, where, phase, Phase)
            )
            if (stage, made.phase, made.target) == (Stage.CREATE, Phase.ENTER, Target.CONTAINER):
                raise UnusableError(where, "the node is not there yet", "`on-exit`, or `target: host`, can run here")
            execs.append(made)
    return Written(tuple(waits), tuple(execs))


def _commands(check: Checker, place: str, value: Value) -> Iterator[tuple[str, Value, Value, Value]]:
    """Yield place, command, target and phase of each command; what is not said is the default."""
    if isinstance(value, dict):
        check.keys(place, value, frozenset(Phase), frozenset())
        for phase in Phase:
            for index, command in enumerate(check.list(f"{place}.{phase}", value.get(phase))):
                yield f"{place}.{phase}[{index}]", command, Target.CONTAINER, phase
        return
    for index, item in enumerate(check.list(place, value)):
        where = f"{place}[{index}]"
        given = check.map(where, item)
        check.keys(where, given, EXEC, frozenset())
        yield where, given.get("command"), given.get("target", Target.CONTAINER), given.get("phase", Phase.ENTER)


def _word(check: Checker, place: str, value: Value, words: type[Word]) -> Word:
    text = check.text(place, value)
    try:
        return words(text)
    except ValueError:
        known = ", ".join(f"`{word}`" for word in words)
        raise UnusableError(place, f"`{text}` is not one of them", f"there are {known}") from None
