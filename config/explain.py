"""Pydantic's findings in an operator's words: path, what is wrong, what would be right."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from config.model import Config
from config.problems import Location, Problem, shown

_KEY = "[key]"


def explain(error: ValidationError, data: Any) -> Iterator[Problem]:
    """Yield one problem for each thing that validation found in ``data``."""
    for detail in error.errors():
        location: Location = tuple(detail["loc"])
        if location and location[-1] == _KEY:
            location = location[:-1]
        elif detail["type"] != "missing" and not written(data, location):
            continue  # inherited from elsewhere in the file, where it is reported
        yield Problem(location, _text(detail, location))


def _text(detail: ErrorDetails, location: Location) -> str:
    kind = detail["type"]
    if kind == "podroute":
        return str(detail["ctx"]["text"])
    if kind == "extra_forbidden":
        return _unknown(str(location[-1]), _keys(_model_at(location[:-1])))
    found = "missing" if kind == "missing" else shown(detail["input"])
    return f"is {found}, must be {_description(location)}"


def _unknown(key: str, known: list[str]) -> str:
    plain = {_fold(name): name for name in known}
    near = difflib.get_close_matches(_fold(key), plain, n=1, cutoff=0.6)
    if near:
        return f"is not a known key, did you mean {plain[near[0]]}?"
    return f"is not a known key, must be one of {', '.join(known)}"


def _fold(key: str) -> str:
    return key.replace("_", "").replace("-", "").lower()


def written(data: Any, location: Location) -> bool:
    """Tell whether the file itself holds a value, rather than another one that it is inherited from."""
    for part in location:
        if isinstance(part, int) and isinstance(data, list):
            if part >= len(data):
                return False
            data = data[part]
        elif isinstance(data, dict):
            if part not in data:
                return False
            data = data[part]
        else:
            # A short form: what is below is not in the file, the value itself is
            return True
    return True


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    return next((field for name, field in model.model_fields.items() if key in (field.alias, name)), None)


def _steps(location: Location) -> Iterator[tuple[Any, str]]:
    """Yield (type, description) of the file's root and of every value on the way to ``location``."""
    kind: Any = Config
    description = "a podroute/v1 configuration"
    yield kind, description
    for part in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = _field(kind, str(part))
            if field is None:
                return
            kind, description = _plain(field.annotation), field.description or ""
        else:
            kind = _plain(get_args(kind)[-1]) if get_args(kind) else kind
            if get_origin(kind) is Literal:
                description = " or ".join(get_args(kind))
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                description = f"a mapping of {', '.join(_keys(kind))}"
        yield kind, description


def _plain(kind: Any) -> Any:
    """Return a type without its annotations and without ``None``."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, types.UnionType):
            kind = next(arg for arg in get_args(kind) if arg is not type(None))
        else:
            return kind


def _model_at(location: Location) -> type[BaseModel]:
    *_, (kind, _) = _steps(location)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else Config


def _description(location: Location) -> str:
    *_, (_, description) = _steps(location)
    return description
