"""Who this node is: its name and a UUID that lives in its state directory, used by one agent at a time."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from dataclasses import dataclass

from ipam.errors import IdentityError, StateInUseError

IDENTITY_FILE = "identity.json"
LOCK_FILE = "lock"


@dataclass(frozen=True, slots=True)
class Identity:
    name: str
    uuid: str


class StateDirectory:
    """A node's state directory, held by this process until it is closed or ends."""

    def __init__(self, path: str) -> None:
        """Create the directory where it is missing and take its lock. Raises StateInUseError and IdentityError."""
        self.path = path
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            self._lock = os.open(os.path.join(path, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise StateInUseError(
                f"state directory {path} is in use by another agent (process {holder}): "
                "stop it, or give this one a stateDir of its own"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def identity(self, name: str) -> Identity:
        """Return who this node is; a new state directory gets a UUID, on disk before it is returned.

        Raises IdentityError where the directory belongs to a node of another name.
        """
        path = os.path.join(self.path, IDENTITY_FILE)
        try:
            with open(path, "rb") as file:
                data = json.loads(file.read())
            found = Identity(str(data["name"]), str(uuid.UUID(data["uuid"])))
        except FileNotFoundError:
            return self._create(path, name)
        except OSError as error:
            raise _unusable(path, error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IdentityError(
                f'{path} is corrupt: restore it, or write {{"name": "{name}", "uuid": ...}} with the UUID that '
                "the store has for this node"
            ) from error
        if found.name != name:
            raise IdentityError(
                f"state directory {self.path} belongs to node {found.name} (UUID {found.uuid}), but node.name is "
                f"{name}: set node.name to {found.name}, or give {name} a stateDir of its own"
            )
        return found

    def close(self) -> None:
        """Let another process have the directory. Does nothing the second time."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _create(self, path: str, name: str) -> Identity:
        made = Identity(name, str(uuid.uuid4()))
        try:
            write_durably(path, json.dumps({"name": made.name, "uuid": made.uuid}).encode() + b"\n")
        except OSError as error:
            raise _unusable(path, error) from error
        return made


def write_durably(path: str, data: bytes) -> None:
    """Replace a file: after a crash at any moment it has the old content or the new. Raises OSError."""
    with open(path + ".new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _unusable(path: str, error: OSError) -> IdentityError:
    return IdentityError(f"{path} cannot be used: {error.strerror}; the agent must be able to read and write it")
