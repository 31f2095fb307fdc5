"""YAML text to plain data, with the traps of YAML 1.1 closed and every repeated key reported.

Scalars follow the core schema of YAML 1.2: ``no`` and ``on`` are strings, ``65000:1`` is a string and not a number in
base 60, and a date is a string. A number with a leading zero is a string too, as its base would be a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from config.problems import Location, Problem

_MERGE = "tag:yaml.org,2002:merge"
_STRING = "tag:yaml.org,2002:str"
_DEEPEST = 40
"""Levels; the schema has nine."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own interface)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$"), "-+0123456789"
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    "-+0123456789.",
)
_Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), "<")


@dataclass(slots=True)
class Document:
    data: Any
    positions: dict[Location, tuple[int, int]] = field(default_factory=dict)
    """Line and column of each key and list item, counted from 1."""
    problems: list[Problem] = field(default_factory=list)

    def position(self, location: Location) -> tuple[int, int]:
        """Return where a location is, or the nearest thing around it that the file has."""
        while location and location not in self.positions:
            location = location[:-1]
        return self.positions.get(location, (0, 0))


def parse(text: str) -> Document:
    """Return the data of one YAML document.

    A syntax error leaves ``data`` None and one problem with line and column; repeated keys are problems too, the
    last value holds.
    """
    try:
        return _parse(text)
    except yaml.YAMLError as error:
        return Document(None, problems=[Problem((), _syntax(error))])
    except RecursionError:
        return Document(None, problems=[Problem((), "is nested too deeply, must be a podroute/v1 configuration")])
    except ValueError as error:
        # An explicit tag over a text that is none of its kind: !!int x
        return Document(None, problems=[Problem((), f"is not valid YAML ({error}), must be one YAML mapping")])


def _parse(text: str) -> Document:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        document = Document(None)
        if root is not None:
            _walk(root, (), document, set())
            document.data = loader.construct_document(root)
        return document
    finally:
        loader.dispose()


def _walk(node: yaml.Node, location: Location, document: Document, seen: set[int]) -> None:
    """Note lines and repeated keys, and make every key a string. An anchored node is walked once."""
    if id(node) in seen:
        return
    if len(location) > _DEEPEST:
        raise RecursionError
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.positions[(*location, index)] = _position(item)
            _walk(item, (*location, index), document, seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            key.tag = _STRING
            here, line = (*location, key.value), _position(key)[0]
            if key.value in first:
                text = f"is given twice (lines {first[key.value]} and {line}), must be given once: remove one"
                document.problems.append(Problem(here, text))
            first.setdefault(key.value, line)
            document.positions.setdefault(here, _position(key))
            _walk(value, here, document, seen)


def _position(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _syntax(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.problem, error.context) if part)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{where}{what}; must be valid YAML"
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1} (code {error.character}) is not allowed in YAML, must be printable text"
    return f"{error}; must be valid YAML"
