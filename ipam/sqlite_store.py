"""The store as a SQLite file, shared by any number of agents on one machine."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ipam import sqlite
from ipam.errors import StoreCorruptError, StoreError, StoreUnavailableError
from ipam.store import Condition, Entry, Listing, Outcome, Put, Range, Unchanged, Write

T = TypeVar("T")

KIND = sqlite.Kind(
    noun="store",
    application_id=0x70645331,  # "pdS1"
    version=1,
    schema=(
        "CREATE TABLE record (key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL,"
        " modified INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE TABLE clock (revision INTEGER NOT NULL)",
        "INSERT INTO clock VALUES (0)",
    ),
    error=StoreError,
    corrupt=StoreCorruptError,
    busy=StoreUnavailableError,
    remedy="stop the agents that share it, move it away together with its -wal and -shm files, and restore a copy or "
    "start them on a new one: each claims the blocks in its ledger again",
    busy_seconds=10.0,
)


class SqliteStore:
    """Implements ipam.store.Store. All work happens in one thread of its own."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="podroute-store")
        self._connection: sqlite3.Connection | None = None

    @property
    def url(self) -> str:
        return f"sqlite://{self._path}"

    async def open(self) -> None:
        """Open or create the file. Raises StoreError and NewerStateError."""
        try:
            self._connection = await self._run(lambda: sqlite.connect(KIND, self._path))
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

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
        self, conditions: Sequence[Condition], writes: Sequence[Write], otherwise: Sequence[Range] = ()
    ) -> Outcome:
        def work(db: sqlite3.Connection) -> Outcome:
            db.execute("BEGIN IMMEDIATE")
            try:
                outcome = _transact(db, conditions, writes, otherwise)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            return outcome

        return await self._work(work)

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
            return await self._run(lambda: work(connection))
        except sqlite3.Error as error:
            raise sqlite.translate(KIND, self._path, error) from error

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _transact(
    db: sqlite3.Connection, conditions: Sequence[Condition], writes: Sequence[Write], otherwise: Sequence[Range]
) -> Outcome:
    revision = _revision(db)
    if not all(_holds(db, condition) for condition in conditions):
        return Outcome(False, revision, tuple(_read(db, wanted) for wanted in otherwise))
    revision += 1
    for write in writes:
        if isinstance(write, Put):
            db.execute(
                "INSERT INTO record VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET value=excluded.value,"
                " modified=excluded.modified",
                (write.key, write.value, revision, revision),
            )
        else:
            db.execute("DELETE FROM record WHERE key = ?", (write.key,))
    db.execute("UPDATE clock SET revision = ?", (revision,))
    return Outcome(True, revision)


def _holds(db: sqlite3.Connection, condition: Condition) -> bool:
    if isinstance(condition, Unchanged):
        row = db.execute("SELECT modified FROM record WHERE key = ?", (condition.key,)).fetchone()
        return (row[0] if row else 0) == condition.modified
    query = "SELECT 1 FROM record WHERE key >= ? AND key < ? AND modified > ? LIMIT 1"
    return db.execute(query, (condition.start, condition.end, condition.since)).fetchone() is None


def _read(db: sqlite3.Connection, wanted: Range) -> tuple[Entry, ...]:
    query = "SELECT key, value, created, modified FROM record WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
    return tuple(Entry(*row) for row in db.execute(query, (wanted.start, wanted.end, wanted.limit or -1)))


def _revision(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT revision FROM clock").fetchone()[0])
