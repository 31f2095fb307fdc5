"""The text of a topology file: variables expanded, YAML read into plain strings, lists and maps."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from labs.errors import TopologyError

Value = str | None | list[Any] | dict[str, Any]
"""A YAML value. Scalars keep the text they were written with: containerlab's maps are maps of strings."""

_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<bare>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)(?:(?P<operator>:?[-=+])(?P<word>[^{}]*))?\})"
)


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Expand ``$VAR``, ``${VAR}`` and ``$$``, and ``${VAR:-word}`` with ``:-``, ``:=``, ``:+``, ``-``, ``=`` or ``+``.

    As in containerlab a variable that is not set and has no default stays as it is written.
    """

    def replace(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        value = environ.get(match["bare"] or match["name"])
        operator = match["operator"]
        if operator is None:
            return match[0] if value is None else value
        present = value is not None and (value != "" or not operator.startswith(":"))
        word = expand(match["word"], environ)
        if operator.endswith("+"):
            return word if present else ""
        return str(value) if present else word

    return _VARIABLE.sub(replace, text)


def read(path: Path, environ: Mapping[str, str]) -> Value:
    """Return the content of a topology file; raises TopologyError with the line where it is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TopologyError([f"{path}: {error.strerror}; name a *.clab.yml file"]) from None
    except UnicodeDecodeError:
        raise TopologyError([f"{path}: not a text file; topology files are UTF-8"]) from None
    try:
        value: Value = yaml.load(expand(text, environ), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise TopologyError([f"{place}: {error.problem or error.context}"]) from None
    except yaml.YAMLError as error:
        raise TopologyError([f"{path}: {error}"]) from None
    return value


class _Loader(yaml.SafeLoader):
    """YAML with strings for all scalars but null, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key `{key.value}` stands twice in one map; keep one", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [pair for pair in resolvers if pair[0] in {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}])
}
