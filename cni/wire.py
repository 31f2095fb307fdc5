"""The agent's half of the protocol between plugin and agent; ``cni/plugin.py`` defines it."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

MAGIC = b"PRCN"
VERSION = 1
HEADER = struct.Struct("!4sHHI")
"""Of requests and answers: magic, version, number of fields or exit status, octets that follow."""
_LENGTH = struct.Struct("!I")


class WireError(ValueError):
    """What arrived is not a request of this protocol."""


@dataclass(frozen=True, slots=True)
class Header:
    version: int
    fields: int
    length: int
    """Octets of the body."""


@dataclass(frozen=True, slots=True)
class Message:
    """A plugin's call as it came, nothing in it validated."""

    environment: dict[str, str]
    """CNI_* variables; undecodable octets as surrogates (``os.fsdecode``)."""
    stdin: bytes
    netns_errno: int = 0
    """Why the plugin could not open CNI_NETNS, 0 where it could or had none to open."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the plugin prints, and the status that it exits with."""

    status: int
    output: bytes


def decode_header(data: bytes, *, limit: int) -> Header:
    """Decode the first ``HEADER.size`` octets. Raises WireError, also for a body of more than ``limit`` octets."""
    magic, version, fields, length = HEADER.unpack(data)
    if magic != MAGIC:
        raise WireError("not a request of podroute's CNI plugin")
    if version != VERSION:
        raise WireError(
            f"the plugin speaks protocol version {version}, the agent {VERSION}: run `podroute cni install` again"
        )
    if length > limit:
        raise WireError(f"a request of {length} octets; at most {limit} are taken")
    return Header(version, fields, length)


def decode_body(header: Header, body: bytes) -> Message:
    """Decode what follows the header. Raises WireError. Fields beyond the known ones are ignored."""
    fields: list[bytes] = []
    at = 0
    for _ in range(header.fields):
        if len(body) - at < _LENGTH.size:
            raise WireError("a field is cut off")
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if len(body) - at < length:
            raise WireError("a field is longer than the request")
        fields.append(body[at : at + length])
        at += length
    if at != len(body):
        raise WireError("octets behind the last field")
    if len(fields) < 3:
        raise WireError(f"{len(fields)} fields, 3 are needed")
    environment = {}
    for variable in fields[0].split(b"\0") if fields[0] else ():
        key, found, value = variable.partition(b"=")
        if not found:
            raise WireError("an environment variable without `=`")
        environment[os.fsdecode(key)] = os.fsdecode(value)
    if not fields[2].isdigit() or len(fields[2]) > 4:
        raise WireError("the errno of CNI_NETNS is not a number")
    return Message(environment, fields[1], int(fields[2]))


def decode(frame: bytes, *, limit: int) -> Message:
    """Decode a whole request, header and body. Raises WireError."""
    if len(frame) < HEADER.size:
        raise WireError("shorter than a header")
    header = decode_header(frame[: HEADER.size], limit=limit)
    if len(frame) - HEADER.size != header.length:
        raise WireError(f"{len(frame) - HEADER.size} octets behind the header, which promises {header.length}")
    return decode_body(header, frame[HEADER.size :])


def encode_answer(answer: Answer) -> bytes:
    return HEADER.pack(MAGIC, VERSION, answer.status, len(answer.output)) + answer.output
