"""Opening SQLite files of ours, and SQLite's errors in an operator's words."""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import dataclass

from ipam.errors import DatabaseError, NewerStateError

CACHE = 256
"""KiB of pages that a connection keeps: the system has them too, and 2,000 pods' would make megabytes in each."""
_CROWDED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
"""Others are at the file; SQLITE_PROTOCOL: they are at the start of its write-ahead log."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file: what it is called, how it is known, and which errors it raises."""

    noun: str
    application_id: int
    steps: tuple[tuple[str, ...], ...]
    """Statements that bring a file from each schema version to the next, the first a new one to version 1."""
    error: type[DatabaseError]
    corrupt: type[DatabaseError]
    busy: type[DatabaseError]
    remedy: str
    """What to do about a corrupt one."""
    busy_seconds: float

    @property
    def version(self) -> int:
        return len(self.steps)


def connect(kind: Kind, path: str) -> sqlite3.Connection:
    """Open or create a file: WAL, every commit on disk before it returns, transactions begun by hand.

    The connection belongs to the calling thread. Raises the errors of ``kind`` and NewerStateError.
    """
    give_up = time.monotonic() + kind.busy_seconds
    while True:
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            connection = sqlite3.connect(path, timeout=kind.busy_seconds, isolation_level=None)
        except OSError as error:
            raise kind.error(f"{kind.noun} {path} cannot be created: {error.strerror}") from error
        except sqlite3.Error as error:
            raise translate(kind, path, error) from error
        try:
            _prepare(kind, path, connection)
            return connection
        except sqlite3.Error as error:
            connection.close()
            # Several processes that make a file theirs at once can get this without the usual wait
            if primary(error) not in _CROWDED or time.monotonic() > give_up:
                raise translate(kind, path, error) from error
        except BaseException:
            connection.close()
            raise
        time.sleep(0.02)


def _prepare(kind: Kind, path: str, connection: sqlite3.Connection) -> None:
    # One transaction: between two reads of its own another process may make the new file a store
    connection.execute("BEGIN")
    try:
        _refuse_foreign(kind, path, connection)
    finally:
        _roll_back(connection)
    # Several processes that open a new file at once get "locked" here without the usual wait
    give_up = time.monotonic() + kind.busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if primary(error) != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute(f"PRAGMA cache_size=-{CACHE}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        _refuse_foreign(kind, path, connection)
        for step in kind.steps[_pragma(connection, "user_version") :]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={kind.application_id}")
        # Also where nothing changes: it is the write that finds out whether the file can be written
        connection.execute(f"PRAGMA user_version={kind.version}")
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise
    damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if damage != "ok":
        raise corrupt(kind, path, damage)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # a full disk, for one, has ended it already
        connection.execute("ROLLBACK")


def _refuse_foreign(kind: Kind, path: str, connection: sqlite3.Connection) -> None:
    """Leave alone what is not ours, and what is newer than we are."""
    application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    if application == 0 and version == 0 and not connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
        return
    if application != kind.application_id:
        raise kind.error(f"{path} is a SQLite file, but no {kind.noun} of podroute: give another path")
    if version > kind.version:
        raise NewerStateError(
            f"{kind.noun} {path} was written by a newer podroute (schema {version}, this one knows {kind.version}): "
            "install that version or a newer one"
        )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def primary(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, -1 where the error is Python's own."""
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF


def translate(kind: Kind, path: str, error: sqlite3.Error) -> DatabaseError:
    """Return the error that names the file and what to do."""
    code, what = primary(error), f"{kind.noun} {path}"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return corrupt(kind, path, str(error))
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH) or (
        # On a read-only file system SQLite cannot open the files beside a WAL database, and says only that
        code == sqlite3.SQLITE_CANTOPEN and _on_read_only_file_system(path)
    ):
        return kind.error(
            f"{what} is read-only: the agent must be able to write the file and its directory; "
            "check owner, mode and mount options"
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return kind.error(f"{what} cannot be opened: check that its directory exists and that the agent may write it")
    if code == sqlite3.SQLITE_FULL:
        return kind.error(f"{what} cannot grow, the disk is full: make room, nothing is lost")
    if code in _CROWDED:
        return kind.busy(
            f"{what} is locked by another process for more than {kind.busy_seconds:g} s: "
            "find out who has it open (fuser) and end that"
        )
    return kind.error(f"{what} failed: {error}")


def _on_read_only_file_system(path: str) -> bool:
    try:
        return bool(os.statvfs(os.path.dirname(path)).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def corrupt(kind: Kind, path: str, damage: str) -> DatabaseError:
    return kind.corrupt(f"{kind.noun} {path} is corrupt ({damage.splitlines()[0]}): {kind.remedy}")
