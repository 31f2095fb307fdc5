"""What is wrong with a configuration file, in the words an operator reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Location = tuple[str | int, ...]
"""The way to a value: mapping keys and list indexes from the file's root."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Problem:
    location: Location
    text: str
    """What is wrong and what would be right."""

    @property
    def path(self) -> str:
        """The location as text, ``peers.tor.import.rules[0].name``; empty for the file as a whole."""
        return path_text(self.location)

    def render(self, source: str) -> str:
        """Return ``file:path.to.key: what is wrong, what would be right``."""
        return f"{source}:{self.path}: {self.text}" if self.location else f"{source}: {self.text}"


class ConfigError(Exception):
    """All problems of one file; its text has one line for each."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(problem.render(source) for problem in problems))
        self.source = source
        self.problems = tuple(problems)

    @property
    def lines(self) -> list[str]:
        return [problem.render(self.source) for problem in self.problems]


def path_text(location: Location) -> str:
    """Return a location as dotted text; keys that hold dots or blanks are quoted."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _BARE_KEY.fullmatch(part) else _quoted(part)
            text += f".{key}" if text else key
    return text


def shown(value: object) -> str:
    """Return a value as an operator wrote it, short enough for one line."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    if len(text) > _SHOWN:
        text = text[: _SHOWN - 3] + "..."
    return _quoted(text) if isinstance(value, str) else text


def _quoted(text: str) -> str:
    """Return text in quotes, on one line whatever is in it."""
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + '"'
