"""Durable writes to one SQLite file: one thread writes, and what comes while it waits for the disk shares a commit."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ipam import sqlite
from ipam.errors import DatabaseError, IpamError

_BATCH = 512


class Statement(NamedTuple):
    sql: str
    values: tuple[Any, ...]
    refused: str = ""
    """What is wrong where it changes no row; empty: that is right too."""


class _Change(NamedTuple):
    statements: Sequence[Statement]
    apply: Callable[[], object]
    """Brings memory up to date, once the statements are on disk."""
    done: asyncio.Future[None]


class GroupCommit:
    """Changes that are under way at the same time must not concern the same rows: they are put together by statement.

    A change whose caller is cancelled still happens.
    """

    def __init__(self, kind: sqlite.Kind, path: str) -> None:
        self._kind = kind
        self._path = path
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Open the file, or make a new one. Raises the errors of the kind, and NewerStateError."""
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = self._loop.create_future()
        thread = threading.Thread(target=self._run, args=(ready,), name=f"podroute-{self._kind.noun}", daemon=True)
        thread.start()
        try:
            await ready
        except IpamError:
            await asyncio.to_thread(thread.join)
            raise
        self._thread = thread

    async def close(self) -> None:
        """Write what is waiting and close the file. Does nothing the second time."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._changes.put(None)
            await asyncio.to_thread(thread.join)

    async def write(self, statements: Sequence[Statement], apply: Callable[[], object]) -> None:
        """Do all of it and call ``apply``, or nothing; on disk when it returns. Raises the errors of the kind."""
        if self._thread is None or self._loop is None:
            raise self._kind.error(f"{self._kind.noun} {self._path} is not open")
        done: asyncio.Future[None] = self._loop.create_future()
        self._changes.put(_Change(statements, apply, done))
        await done

    # The thread

    def _run(self, ready: asyncio.Future[None]) -> None:
        opened = [_Change((), _nothing, ready)]
        try:
            connection = sqlite.connect(self._kind, self._path)
        except IpamError as error:
            self._settle(opened, error)
            return
        self._settle(opened, None)
        try:
            while batch := self._next():
                self._commit(connection, batch)
        finally:
            connection.close()

    def _next(self) -> list[_Change]:
        """Wait for changes; return those that are there, none at the end."""
        first = self._changes.get()
        if first is None:
            return []
        batch = [first]
        while len(batch) < _BATCH and not self._changes.empty():
            change = self._changes.get()
            if change is None:
                self._changes.put(None)
                break
            batch.append(change)
        return batch

    def _commit(self, connection: sqlite3.Connection, batch: list[_Change]) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            _carry_out(connection, batch)
            connection.execute("COMMIT")
        except Exception as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if len(batch) == 1:
                self._settle(batch, self._failure(error))
                return
            # One of them, or the disk: each by itself tells
            for change in batch:
                self._commit(connection, [change])
        else:
            self._settle(batch, None)

    def _failure(self, error: Exception) -> DatabaseError:
        if isinstance(error, sqlite3.Error):
            return sqlite.translate(self._kind, self._path, error)
        # A lone surrogate in a name, for one
        return self._kind.error(f"{self._kind.noun} {self._path} cannot hold this: {error}")

    def _settle(self, changes: list[_Change], error: IpamError | None) -> None:
        """Tell the event loop how changes ended, in one call for all."""

        def settle() -> None:
            for change in changes:
                if error is None:
                    change.apply()
                if change.done.done():
                    continue
                if error is None:
                    change.done.set_result(None)
                else:
                    change.done.set_exception(error)

        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is gone, and everybody who could wait with it
            self._loop.call_soon_threadsafe(settle)


def _carry_out(connection: sqlite3.Connection, batch: Sequence[_Change]) -> None:
    """Execute each kind of statement once, with the values of all."""
    rows: dict[str, list[tuple[Any, ...]]] = {}
    refusals: dict[str, str] = {}
    for change in batch:
        for sql, values, refused in change.statements:
            rows.setdefault(sql, []).append(values)
            refusals[sql] = refused
    for sql, values_of_all in rows.items():
        changed = connection.executemany(sql, values_of_all).rowcount
        if refusals[sql] and changed != len(values_of_all):
            raise ValueError(refusals[sql])


def _nothing() -> None:
    pass
