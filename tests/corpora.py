"""Access to data that nobody here made: captures, MRT files, fuzzing corpora, a genuine full table.

The data lie outside the project, in ``$PODROUTE_DATA`` or ``../shared/data``; tests that want a file skip without it.
"""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from struct import unpack_from

import pytest

from bgp.framing import HEADER_SIZE, MARKER

DATA = Path(os.environ.get("PODROUTE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def path(name: str) -> Path:
    """Return the path of a data file, or skip the test that wants it."""
    found = DATA / name
    if not found.exists():
        pytest.skip(f"{found} is not there; set PODROUTE_DATA to the directory of shared test data")
    return found


def read(name: str) -> bytes:
    """Return the octets of a data file, unpacked."""
    data = path(name).read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def names(directory: str) -> list[str]:
    """Return the names of the files in a directory, one empty name where it is not there."""
    found = DATA / directory
    return sorted(f"{directory}/{f.name}" for f in found.iterdir()) if found.is_dir() else [""]


def archive(name: str) -> Iterator[tuple[str, bytes]]:
    """Iterate over the files of a compressed archive."""
    with tarfile.open(path(name)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def messages(data: bytes) -> Iterator[bytes]:
    """Iterate over everything in ``data`` that looks like a BGP message, wherever it lies in packets or records."""
    at = data.find(MARKER)
    while 0 <= at <= len(data) - HEADER_SIZE:
        length = int.from_bytes(data[at + 16 : at + 18], "big")
        if length >= HEADER_SIZE:
            yield data[at : at + length]
        at = data.find(MARKER, at + max(length, 1))


def table_dump(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over the IPv4 routes of an MRT TABLE_DUMP file (RFC 6396 section 4.2), as ``(prefix, attributes)``.

    AS numbers have two octets; a prefix is wire bytes, as written.
    """
    at = 0
    while at + 12 <= len(data):
        _, kind, subtype, size = unpack_from("!IHHI", data, at)
        record = data[at + 12 : at + 12 + size]
        at += 12 + size
        if (kind, subtype) == (12, 1):
            length = record[8]
            attributes = int.from_bytes(record[20:22], "big")
            yield bytes((length,)) + record[4 : 4 + (length + 7) // 8], record[22 : 22 + attributes]
