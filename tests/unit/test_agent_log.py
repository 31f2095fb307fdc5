from __future__ import annotations

import json
import logging

from agent.log import JsonFormatter, TextFormatter


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("podroute.bgp", logging.INFO, "", 0, message, None, None)
    made.created = 0.0
    made.fields = fields
    return made


def test_a_text_line_has_time_level_room_message_and_fields() -> None:
    line = TextFormatter().format(record("session down", peer="tor1", reason="hold timer expired"))
    assert line == '1970-01-01T00:00:00.000Z info    bgp: session down peer=tor1 reason="hold timer expired"'


def test_a_value_cannot_break_the_line_or_forge_a_field() -> None:
    line = TextFormatter().format(record("notification", text='x\npeer=evil "q"', empty=""))
    assert line.count("\n") == 0
    assert line.endswith('text="x\\npeer=evil \\"q\\"" empty=""')


def test_a_json_line_is_one_object_with_the_fields() -> None:
    line = JsonFormatter().format(record("session up", peer="tor1", families=("ipv4",)))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.000Z",
        "level": "info",
        "room": "bgp",
        "message": "session up",
        "peer": "tor1",
        "families": ["ipv4"],
    }


def test_a_traceback_is_kept() -> None:
    made = record("crash")
    try:
        raise ValueError("inner")
    except ValueError as error:
        made.exc_info = (ValueError, error, error.__traceback__)
    assert "ValueError: inner" in TextFormatter().format(made)
    assert "ValueError: inner" in json.loads(JsonFormatter().format(made))["traceback"]
