"""A node's file to a Config, or to all that is wrong with it at once."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from config import check as checks
from config import document
from config.explain import explain, written
from config.model import Config
from config.problems import ConfigError, Location, Problem, shown

API_VERSION = "podroute/v1"

# Stands for what is missing or wrong while the rest is checked
_NODE = {"name": "node", "as": 64512, "routerId": "192.0.2.1", "addresses": ["192.0.2.1"]}
_LEAVES = {"as": 64512, "action": "accept"}
# Stands for what is wrong, where its absence would mean something to others
_STAND_INS: dict[Location, Any] = {("node", "addresses"): ["192.0.2.1"], ("ipam", "reclaimAfter"): 86400}


@dataclass(frozen=True, slots=True)
class Report:
    source: str
    config: Config | None
    """None where there is a problem."""
    problems: tuple[Problem, ...]
    """In the file's order."""
    warnings: tuple[Problem, ...]


def load(path: str) -> Config:
    """Return a file's configuration; raises ConfigError with all problems."""
    report = check_file(path)
    if report.config is None:
        raise ConfigError(path, report.problems)
    return report.config


def check_file(path: str) -> Report:
    """Return a file's configuration, or what is wrong with it, and what is worth a warning."""
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Report(path, None, (Problem((), f"cannot be read ({reason}), must be a YAML file"),), ())
    except UnicodeDecodeError as error:
        text = f"octet {error.start + 1} is not UTF-8, must be YAML in UTF-8"
        return Report(path, None, (Problem((), text),), ())
    return check_text(text, path)


def check_text(text: str, source: str) -> Report:
    """Return what check_file returns, of a text; ``source`` is its name in messages."""
    parsed = document.parse(text)
    problems = list(parsed.problems)
    if parsed.data is None and problems:
        return Report(source, None, tuple(problems), ())
    if not isinstance(parsed.data, dict):
        found = "is empty" if parsed.data is None else "is not a mapping"
        problems.append(Problem((), f"{found}, must be a mapping that begins with `apiVersion: {API_VERSION}`"))
        return Report(source, None, tuple(problems), ())
    version = parsed.data.get("apiVersion", API_VERSION)
    if version != API_VERSION:
        # Keys of another version would all look wrong
        text = f"is {shown(version)}, must be {API_VERSION}"
        return Report(source, None, (Problem(("apiVersion",), text),), ())
    config, found_problems = _validate(parsed.data)
    problems += found_problems
    problems.sort(key=lambda problem: parsed.position(problem.location))
    if config is None or problems:
        return Report(source, None, tuple(problems), ())
    return Report(source, config, (), tuple(checks.warnings(config)))


def _validate(data: dict[str, Any]) -> tuple[Config | None, list[Problem]]:
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        problems = list(explain(error, data))
        remainder = _without_faults(data)
        seen = {problem.location for problem in problems}
        labels_known = not any(location[:2] in (("node",), ("node", "labels")) for location in seen)
        for problem in checks.check(remainder) if remainder is not None else ():
            if problem.location not in seen and (labels_known or problem.location[-2:] != ("splitBy", "label")):
                problems.append(problem)
        return None, problems
    return config, list(checks.check(config))


def _without_faults(data: dict[str, Any]) -> Config | None:
    """Return the configuration that is left without its faulty values, so that the rest can be checked as well."""
    rest = deepcopy(data)
    rest["apiVersion"] = API_VERSION
    rest.setdefault("node", dict(_NODE))
    while True:
        try:
            return Config.model_validate(rest)
        except ValidationError as error:
            changed = False
            for detail in error.errors():
                location: Location = tuple(detail["loc"])
                if detail["type"] == "missing":
                    changed |= _supply(rest, location) or _remove(rest, location[:-1])
                elif location[-1] == "[key]" or written(rest, location):
                    changed |= _remove(rest, location[:-1] if location[-1] == "[key]" else location)
            if not changed:
                return None


def _supply(data: Any, location: Location) -> bool:
    """Fill in a missing value that no check of one value against another reads; return whether it is one."""
    key = location[-1]
    value = _NODE.get(str(key)) if location[0] == "node" else _LEAVES.get(str(key))
    around = _at(data, location[:-1])
    if value is None or not isinstance(around, dict):
        return False
    around[key] = value
    return True


def _remove(data: Any, location: Location) -> bool:
    """Take out one value, or the nearest one around it that is there; return whether anything was.

    An item of a list takes those behind it along, so that the others keep their indexes, and the first one the list. A
    listen range takes its peer along, which would have neither that nor an address.
    """
    if not location:
        return False
    if location == ("node",):
        data["node"] = dict(_NODE)
        return True
    if location[-1] == "listenRange":
        location = location[:-1]
    around, last = _at(data, location[:-1]), location[-1]
    stand_in = _STAND_INS.get(location)
    if stand_in is not None and isinstance(around, dict) and around.get(last) != stand_in:
        around[last] = stand_in
    elif last == 0 and isinstance(around, list):
        return _remove(data, location[:-1])
    elif isinstance(around, list) and isinstance(last, int) and last < len(around):
        del around[last:]
    elif isinstance(around, dict) and last in around:
        del around[last]
    else:
        return _remove(data, location[:-1])
    return True


def _at(data: Any, location: Location) -> Any:
    for part in location:
        data = data[part] if _has(data, part) else None
    return data


def _has(around: Any, part: str | int) -> bool:
    if isinstance(around, dict):
        return part in around
    return isinstance(around, list) and isinstance(part, int) and part < len(around)
