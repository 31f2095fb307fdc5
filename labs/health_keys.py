"""A node's ``healthcheck`` as it is written: Docker's (https://docs.docker.com/reference/dockerfile/#healthcheck)."""

from __future__ import annotations

from labs.checks import Checker, UnusableError
from labs.source import Value
from labs.topology import Healthcheck

KEYS = frozenset({"test", "interval", "timeout", "retries", "start-period"})
LONGEST = 3600
"""Seconds."""


def read(check: Checker, place: str, value: Value) -> Healthcheck:
    """Return a healthcheck; raises UnusableError where its test is none."""
    given = check.map(place, value)
    check.keys(place, given, KEYS, frozenset())
    words = [
        check.text(f"{place}.test[{index}]", word) for index, word in enumerate(check.list(place, given.get("test")))
    ]
    form, *rest = words or [""]
    if form == "CMD" and rest:
        test = tuple(rest)
    elif form == "CMD-SHELL" and len(rest) == 1:
        test = ("/bin/sh", "-c", rest[0])
    else:
        right = "write `[CMD, program, argument]` or `[CMD-SHELL, 'a line for the shell']`"
        raise UnusableError(f"{place}.test", "no command", right)

    def number(key: str, default: int) -> int:
        # Zero means the default, as it does in Docker.
        return check.integer(f"{place}.{key}", given.get(key), 0, LONGEST, default) or default

    usual = Healthcheck(test)
    return Healthcheck(
        test,
        interval=number("interval", usual.interval),
        timeout=number("timeout", usual.timeout),
        retries=number("retries", usual.retries),
        start_period=number("start-period", usual.start_period),
    )
