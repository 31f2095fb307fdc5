"""What a runtime is told when a call fails (CNI 1.1.0, section 5, "Error")."""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """Error codes: up to 99 the specification's, from 100 on podroute's own, 8 and 999 libcni's."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIGURATION = 7
    INVALID_NETNS = 8
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    NO_ADDRESS = 100
    ALREADY_ADDED = 101
    CHECK_FAILED = 102
    CONFLICT = 103
    INTERNAL = 999


class CniError(Exception):
    """A call failed; ``message`` is one line, ``details`` what helps to put it right."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(f"{message}: {details}" if details else message)
        self.code = int(code)
        self.message = message
        self.details = details
