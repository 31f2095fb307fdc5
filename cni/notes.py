"""Deletions that the plugin noted while the agent was away: files, each a request as ``cni/wire.py`` decodes it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cni.errors import CniError
from cni.request import Request, parse
from cni.wire import WireError, decode

log = logging.getLogger("podroute.cni")

LIMIT = 4 << 20


@dataclass(frozen=True, slots=True)
class Note:
    path: Path
    request: Request
    at: datetime

    def done(self) -> None:
        self.path.unlink(missing_ok=True)


def read_notes(directory: Path) -> Iterator[Note]:
    """Yield the notes, oldest first. A file that is none is reported and removed, so that it bars no later start."""
    for path in sorted(directory.glob("*.del")):
        try:
            at = datetime.fromtimestamp(int(path.name.partition("-")[0]) / 1e9, UTC)
            request = parse(decode(path.read_bytes(), limit=LIMIT))
            if request.verb != "DEL":
                raise ValueError(f"a request to {request.verb}")
        except FileNotFoundError:
            continue  # its plugin has reached the agent after all
        except (OSError, OverflowError, ValueError, WireError, CniError) as error:
            log.warning("noted deletion not understood", extra={"fields": {"file": path.name, "error": str(error)}})
            path.unlink(missing_ok=True)
            continue
        yield Note(path, request, at)


def make_directory(directory: Path) -> None:
    """Make the directory, and remove notes whose writer was killed before they were whole."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in directory.glob(".*-*"):
        # A live plugin's hidden file has its writer's pid in its name; it is whole in a moment.
        if not os.path.exists(f"/proc/{path.name.rpartition('-')[2]}"):
            path.unlink(missing_ok=True)
