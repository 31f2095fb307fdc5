"""Checks on a topology file's values that collect faults, each with its place, instead of stopping at the first."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from labs.source import Value


class Given(NamedTuple):
    """A value and where it stands."""

    text: str
    place: str


class UnusableError(Exception):
    """One value is not usable: its place, what is wrong, what would be right."""

    def __init__(self, place: str, wrong: str, right: str) -> None:
        super().__init__(place, wrong, right)
        self.place = place
        self.wrong = wrong
        self.right = right


class Checker:
    """Collects ``file:path.to.key: what is wrong, what would be right``. Reads return a usable value after a fault."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.faults: list[str] = []

    def fault(self, place: str, wrong: str, right: str) -> None:
        where = f"{self.file}:{place}" if place else self.file
        line = f"{where}: {wrong}, {right}"
        # What nodes inherit is checked once per node, and told once.
        if line not in self.faults:
            self.faults.append(line)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Turn UnusableError into a fault."""
        try:
            yield
        except UnusableError as refused:
            self.fault(refused.place, refused.wrong, refused.right)

    def suggestion(self, word: str, known: Iterable[str]) -> str:
        """Say what could have been meant."""
        known = sorted(known)
        close = difflib.get_close_matches(word, known, n=1)
        return f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(known)}"

    def keys(self, place: str, given: Mapping[str, Value], known: frozenset[str], refused: frozenset[str]) -> None:
        """Fault every key that is unknown, or known to containerlab but not built here."""
        for key in given:
            where = f"{place}.{key}" if place else key
            if key in refused:
                self.fault(where, "this key of containerlab is not supported by this runner", "remove it")
            elif key not in known:
                self.fault(where, "unknown key", self.suggestion(key, known))

    def map(self, place: str, value: Value) -> dict[str, Value]:
        if isinstance(value, dict):
            return value
        if value is not None:
            self.fault(place, f"{_shape(value)} where a map belongs", "write `key: value` lines")
        return {}

    def list(self, place: str, value: Value) -> list[Value]:
        if isinstance(value, list):
            return value
        if value is not None:
            self.fault(place, f"{_shape(value)} where a list belongs", "write `- item` lines")
        return []

    def text(self, place: str, value: Value, *, required: str = "") -> str:
        """Return a scalar's text, empty where it is absent. ``required`` says what belongs there."""
        if isinstance(value, str) and (value or not required):
            return value
        if isinstance(value, list | dict):
            self.fault(place, f"{_shape(value)} where one value belongs", required or "write a single value")
        elif required:
            self.fault(place, "missing", required)
        return ""

    def texts(self, place: str, value: Value) -> dict[str, str]:
        """Return a map of scalars."""
        return {key: self.text(f"{place}.{key}", child) for key, child in self.map(place, value).items()}

    def integer(self, place: str, value: Value, low: int, high: int, default: int) -> int:
        if value is None:
            return default
        text = self.text(place, value)
        if re.fullmatch(r"\d{1,9}", text) and low <= int(text) <= high:
            return int(text)
        self.fault(place, f"`{text}` is not usable", f"a whole number from {low} to {high} is")
        return default

    def mac(self, place: str, value: Value) -> str:
        text = self.text(place, value).lower()
        if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", text):
            self.fault(place, f"`{text}` is not a MAC address", "write six octets like `aa:c1:ab:00:00:01`, in quotes")
        elif int(text[:2], 16) & 1:
            self.fault(place, f"`{text}` is a group address", "the first octet must be even")
        return text

    def words(self, place: str, text: str) -> tuple[str, ...]:
        """Split a command into words as a shell does; nothing is expanded."""
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            self.fault(place, f"`{text}`: {str(error).lower()}", "close every quote, or escape it")
            return ()
        if text and not words:
            self.fault(place, "no command", "write a program and its arguments")
        return words


def _shape(value: Value) -> str:
    return "a list" if isinstance(value, list) else "a map" if isinstance(value, dict) else f"`{value}`"
