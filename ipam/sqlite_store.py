"""The store as a SQLite file, shared by any number of agents on one machine."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import TypeVar

from ipam import sqlite
from ipam.errors import LeaseExpiredError, StoreCorruptError, StoreError, StoreUnavailableError
from ipam.store import (
    Change,
    Changes,
    Choice,
    Chosen,
    Condition,
    Delete,
    Differs,
    Entry,
    Holds,
    Listing,
    Outcome,
    Put,
    Range,
    Unchanged,
    Write,
)

log = logging.getLogger("podroute.ipam")

T = TypeVar("T")

KIND = sqlite.Kind(
    noun="store",
    application_id=0x70645331,  # "pdS1"
    steps=(
        (
            "CREATE TABLE record (key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL,"
            " modified INTEGER NOT NULL) WITHOUT ROWID",
            "CREATE TABLE clock (revision INTEGER NOT NULL)",
            "INSERT INTO clock VALUES (0)",
        ),
        (
            "ALTER TABLE record ADD COLUMN lease INTEGER NOT NULL DEFAULT 0",
            "CREATE INDEX record_modified ON record (modified)",
            "CREATE INDEX record_lease ON record (lease) WHERE lease != 0",
            "CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, seconds REAL NOT NULL, ends REAL NOT NULL)",
            # What was deleted, for those who watch; forgotten up to and including revision clock.compacted
            "CREATE TABLE gone (revision INTEGER NOT NULL, key TEXT NOT NULL)",
            "CREATE INDEX gone_revision ON gone (revision)",
            "ALTER TABLE clock ADD COLUMN compacted INTEGER NOT NULL DEFAULT 0",
        ),
    ),
    error=StoreError,
    corrupt=StoreCorruptError,
    busy=StoreUnavailableError,
    remedy="stop the agents that share it, move it away together with its -wal and -shm files, and restore a copy or "
    "start them on a new one: each claims the blocks in its ledger again",
    busy_seconds=10.0,
)


HISTORY = 10_000
"""Revisions of which deletions are remembered."""
_POLL = 0.2
"""Seconds between looks at the file by those who watch: other processes cannot tell us."""


class SqliteStore:
    """Implements ipam.store.Store. All work happens in one thread of its own.

    Leases are measured on a clock that counts from the machine's start, also while it sleeps; all processes share it.
    """

    def __init__(self, path: str, *, history: int = HISTORY) -> None:
        self._path = path
        self._history = history
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="podroute-store")
        self._connection: sqlite3.Connection | None = None

    @property
    def url(self) -> str:
        return f"sqlite://{self._path}"

    async def open(self) -> None:
        """Open or create the file. Raises StoreError and NewerStateError."""
        self._connection = await self._run(lambda: sqlite.connect(KIND, self._path))

    async def get(self, key: str) -> Entry | None:
        return await self._work(lambda db: next(iter(_read(db, Range.key(key))), None))

    async def list(self, wanted: Range) -> Listing:
        def work(db: sqlite3.Connection) -> Listing:
            db.execute("BEGIN")
            try:
                return Listing(_read(db, wanted), _revision(db))
            finally:
                db.execute("COMMIT")

        return await self._work(work)

    async def transact(
        self,
        conditions: Sequence[Condition],
        writes: Sequence[Write],
        otherwise: Sequence[Range] = (),
        choices: Sequence[Choice] = (),
    ) -> Outcome:
        def work(db: sqlite3.Connection) -> Outcome:
            db.execute("BEGIN IMMEDIATE")
            try:
                outcome = _transact(db, conditions, writes, otherwise, choices)
                if outcome.committed:
                    _forget(db, outcome.revision - self._history)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            return outcome

        return await self._work(work)

    async def watch(self, wanted: Range, since: int) -> AsyncGenerator[Changes, None]:
        while True:
            try:
                found = await self._work(partial(_changes, wanted=wanted, since=since))
            except StoreUnavailableError as error:
                log.debug("watch interrupted", extra={"fields": {"why": str(error)}})
                found = None
            if found is not None:
                since = found.revision
                if found.changes or found.complete:
                    yield found
            await asyncio.sleep(_POLL)

    async def grant(self, seconds: int) -> int:
        def work(db: sqlite3.Connection) -> int:
            cursor = db.execute("INSERT INTO lease (seconds, ends) VALUES (?, ?)", (seconds, _clock() + seconds))
            assert cursor.lastrowid is not None
            return cursor.lastrowid

        return await self._work(work)

    async def keep_alive(self, lease: int) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            return db.execute("UPDATE lease SET ends = ? + seconds WHERE id = ?", (_clock(), lease)).rowcount > 0

        return await self._work(work)

    async def revoke(self, lease: int) -> None:
        await self._work(lambda db: db.execute("UPDATE lease SET ends = 0 WHERE id = ?", (lease,)))

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._run(connection.close)
        self._thread.shutdown(wait=False)

    async def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        if connection is None:
            raise StoreError(f"store {self._path} is not open")
        try:
            return await self._run(lambda: _current(connection, work))
        except sqlite3.Error as error:
            raise sqlite.translate(KIND, self._path, error) from error

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _current(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Work on the records as they are now: without those whose lease has ended."""
    now = _clock()
    # Also one of an earlier start of the machine, when the clock was ahead
    ended = "SELECT id FROM lease WHERE ends <= ? OR ends > ? + seconds"
    if db.execute(ended, (now, now)).fetchone():
        db.execute("BEGIN IMMEDIATE")
        try:
            leases = db.execute(ended, (now, now)).fetchall()
            keys = [key for row in leases for (key,) in db.execute("SELECT key FROM record WHERE lease = ?", row)]
            if keys:
                _transact(db, [], [Delete(key) for key in keys])
            db.executemany("DELETE FROM lease WHERE id = ?", leases)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
    return work(db)


def _transact(
    db: sqlite3.Connection,
    conditions: Sequence[Condition],
    writes: Sequence[Write],
    otherwise: Sequence[Range] = (),
    choices: Sequence[Choice] = (),
) -> Outcome:
    revision = _revision(db)
    if not _all_hold(db, conditions):
        return Outcome(False, revision, tuple(_read(db, wanted) for wanted in otherwise))
    # All conditions before the first write
    first = [next((n for n, one in enumerate(c.attempts) if _all_hold(db, one.conditions)), None) for c in choices]
    picked = [() if n is None else choice.attempts[n].writes for n, choice in zip(first, choices, strict=True)]
    if any((writes, *picked)):
        revision += 1
        for write in chain(writes, *picked):
            _write(db, write, revision)
        db.execute("UPDATE clock SET revision = ?", (revision,))
    chosen = [
        Chosen(number, () if number is not None else tuple(_read(db, wanted) for wanted in choice.otherwise))
        for number, choice in zip(first, choices, strict=True)
    ]
    return Outcome(True, revision, chosen=tuple(chosen))


def _write(db: sqlite3.Connection, write: Write, revision: int) -> None:
    if isinstance(write, Put):
        if write.lease and not db.execute("SELECT 1 FROM lease WHERE id = ?", (write.lease,)).fetchone():
            raise LeaseExpiredError("the lease of a record has expired: it must be granted anew")
        db.execute(
            "INSERT INTO record (key, value, created, modified, lease) VALUES (?, ?, ?, ?, ?) ON CONFLICT (key)"
            " DO UPDATE SET value=excluded.value, modified=excluded.modified, lease=excluded.lease",
            (write.key, write.value, revision, revision, write.lease),
        )
    elif db.execute("DELETE FROM record WHERE key = ?", (write.key,)).rowcount:
        db.execute("INSERT INTO gone VALUES (?, ?)", (revision, write.key))


def _all_hold(db: sqlite3.Connection, conditions: Sequence[Condition]) -> bool:
    return all(_holds(db, condition) for condition in conditions)


def _holds(db: sqlite3.Connection, condition: Condition) -> bool:
    if isinstance(condition, Unchanged):
        row = db.execute("SELECT modified FROM record WHERE key = ?", (condition.key,)).fetchone()
        return (row[0] if row else 0) == condition.modified
    if isinstance(condition, Holds | Differs):
        equal = "=" if isinstance(condition, Holds) else "!="
        query = f"SELECT 1 FROM record WHERE key = ? AND value {equal} ?"
        return db.execute(query, (condition.key, condition.value)).fetchone() is not None
    query = "SELECT 1 FROM record WHERE key >= ? AND key < ? AND modified > ? LIMIT 1"
    return db.execute(query, (condition.start, condition.end, condition.since)).fetchone() is None


def _read(db: sqlite3.Connection, wanted: Range) -> tuple[Entry, ...]:
    query = "SELECT key, value, created, modified FROM record WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
    return tuple(Entry(*row) for row in db.execute(query, (wanted.start, wanted.end, wanted.limit or -1)))


def _changes(db: sqlite3.Connection, *, wanted: Range, since: int) -> Changes | None:
    """Return what happened after a revision; None: nothing anywhere."""
    db.execute("BEGIN")
    try:
        revision, compacted = db.execute("SELECT revision, compacted FROM clock").fetchone()
        if revision == since:
            return None
        # Behind what is remembered, or the file is another one than before
        if since < compacted or revision < since:
            return Changes(tuple(Change(entry.key, entry) for entry in _read(db, wanted)), revision, True)
        query = (
            "SELECT key, value, created, modified FROM record WHERE modified > ? AND key >= ? AND key < ?"
            " ORDER BY modified"
        )
        found = [(row[3], Change(row[0], Entry(*row))) for row in db.execute(query, (since, wanted.start, wanted.end))]
        query = "SELECT revision, key FROM gone WHERE revision > ? AND key >= ? AND key < ?"
        found += [(at, Change(key, None)) for at, key in db.execute(query, (since, wanted.start, wanted.end))]
    finally:
        db.execute("COMMIT")
    found.sort(key=itemgetter(0))
    return Changes(tuple(change for _, change in found), revision, False)


def _forget(db: sqlite3.Connection, revision: int) -> None:
    """Forget deletions up to and including a revision."""
    if db.execute("DELETE FROM gone WHERE revision <= ?", (revision,)).rowcount:
        db.execute("UPDATE clock SET compacted = ?", (revision,))


def _revision(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT revision FROM clock").fetchone()[0])
