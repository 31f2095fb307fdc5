"""One line per event that an operator cares about: text with key=value fields, or JSON.

Every room logs through the standard library and puts its data into ``extra={"fields": {...}}``; only this module
decides how a line looks.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

Format = Literal["text", "json"]
_PREFIX = "podroute."


def set_up(level: str, form: Format) -> None:
    """Send the log of the rooms to stderr, replacing an earlier set-up (a reload may change level and format)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("podroute").setLevel(level.upper())


def _stamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _room(record: logging.LogRecord) -> str:
    return record.name.removeprefix(_PREFIX)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return fields


class TextFormatter(logging.Formatter):
    """``2026-01-01T00:00:00.000Z info  bgp: session established peer=tor1 families=ipv4``"""

    def format(self, record: logging.LogRecord) -> str:
        parts = [f"{_stamp(record)} {record.levelname.lower():<7} {_room(record)}: {record.getMessage()}"]
        parts += [f"{key}={_quoted(value)}" for key, value in _fields(record).items()]
        if record.exc_info:
            parts.append("\n" + self.formatException(record.exc_info))
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, room, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "room": _room(record),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _quoted(value: object) -> str:
    text = str(value)
    if text and not any(c in ' "=' or ord(c) < 0x20 for c in text):
        return text
    return json.dumps(text, ensure_ascii=False)
