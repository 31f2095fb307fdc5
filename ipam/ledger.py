"""The node's own record of its addresses: local, durable, and whole after a crash at any moment.

A change has happened when its call returns, not before: it is then on disk. One thread writes; changes that arrive
while it waits for the disk share the next commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from config import prefix
from config.prefix import BITS, Family
from ipam import sqlite
from ipam.errors import IpamError, LedgerCorruptError, LedgerError
from ipam.pool import span

KIND = sqlite.Kind(
    noun="ledger",
    application_id=0x70644C31,  # "pdL1"
    steps=(
        (
            "CREATE TABLE attachment (id INTEGER PRIMARY KEY, network TEXT NOT NULL, container TEXT NOT NULL,"
            " ifname TEXT NOT NULL, created REAL NOT NULL, attributes TEXT NOT NULL,"
            " UNIQUE (network, container, ifname))",
            "CREATE TABLE assignment (family INTEGER NOT NULL, address BLOB NOT NULL, pool TEXT NOT NULL,"
            " block BLOB NOT NULL, attachment INTEGER NOT NULL REFERENCES attachment, PRIMARY KEY (family, address))"
            " WITHOUT ROWID",
            "CREATE INDEX assignment_attachment ON assignment (attachment)",
            # Addresses that were in use before; the order of id is the order of release
            "CREATE TABLE released (id INTEGER PRIMARY KEY AUTOINCREMENT, family INTEGER NOT NULL,"
            " address BLOB NOT NULL, at REAL NOT NULL, UNIQUE (family, address))",
            "CREATE TABLE block (family INTEGER NOT NULL, prefix BLOB NOT NULL, pool TEXT NOT NULL,"
            " generation INTEGER NOT NULL, PRIMARY KEY (family, prefix)) WITHOUT ROWID",
        ),
    ),
    error=LedgerError,
    corrupt=LedgerCorruptError,
    busy=LedgerError,
    remedy="move it away together with its -wal and -shm files and start the agent again: containers that run keep "
    "their addresses; or restore a copy taken since the last container was started",
    busy_seconds=5.0,
)

_BATCH = 512

_IS_HANDLE = "network = ? AND container = ? AND ifname = ?"

Statement = tuple[str, tuple[Any, ...]]


class Handle(NamedTuple):
    """Whom addresses belong to: one interface of one container in one network."""

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.network}/{self.container_id}/{self.ifname}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One address in use."""

    family: Family
    address: str
    prefix: bytes
    """The address as a host prefix, wire bytes (config.prefix)."""
    pool: str
    block: bytes
    """The block it lies in, wire bytes."""

    @property
    def packed(self) -> bytes:
        return self.prefix[1:]


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a handle has."""

    handle: Handle
    assignments: tuple[Assignment, ...]
    attributes: Mapping[str, Any]
    """What the network plugin wants to know again: JSON."""
    created: float
    """Seconds since 1970."""


class OwnedBlock(NamedTuple):
    """A block as the ledger remembers it, for when the store is away."""

    family: Family
    prefix: bytes
    pool: str
    generation: int


class Released(NamedTuple):
    family: Family
    packed: bytes
    at: float
    """Seconds since 1970."""


class _Change(NamedTuple):
    statements: list[Statement]
    apply: Callable[[], object]
    """Brings memory up to date, once the statements are on disk."""
    done: asyncio.Future[None]


class Ledger:
    """Holds the ledger's state in memory, as it is on disk, and writes every change of it through.

    Calls may be cancelled: the change then still happens. Changes of one handle must not overlap.
    """

    def __init__(self, path: str, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.blank = False
        """Whether open found no trace of an address: the node has never had any, or somebody lost the file."""
        self.by_address: dict[bytes, Attachment] = {}
        """By packed address; 4 and 16 octets tell the families apart."""
        self.by_handle: dict[Handle, Attachment] = {}
        self.blocks: dict[tuple[Family, bytes], OwnedBlock] = {}
        self.released: list[Released] = []
        """As found by open, oldest first."""
        self._clock = clock
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Read the file, or make a new one. Raises LedgerError and NewerStateError."""
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = self._loop.create_future()
        thread = threading.Thread(target=self._run, args=(ready,), name="podroute-ledger", daemon=True)
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

    async def add(self, handle: Handle, assignments: Sequence[Assignment], attributes: Mapping[str, Any]) -> Attachment:
        """Record the addresses of a handle that has none, all or none of them."""
        attachment = Attachment(handle, tuple(assignments), dict(attributes), self._clock())
        row = (*handle, attachment.created, _encode(attributes))
        statements: list[Statement] = [
            ("INSERT INTO attachment (network, container, ifname, created, attributes) VALUES (?, ?, ?, ?, ?)", row)
        ]
        insert = f"INSERT INTO assignment SELECT ?, ?, ?, ?, id FROM attachment WHERE {_IS_HANDLE}"
        for a in assignments:
            statements.append(("DELETE FROM released WHERE family = ? AND address = ?", (a.family, a.packed)))
            statements.append((insert, (a.family, a.packed, a.pool, a.block, *handle)))
        await self._write(statements, lambda: self._remember(attachment))
        return attachment

    async def remove(self, handle: Handle) -> Attachment | None:
        """Forget a handle and return what it had."""
        gone = self.by_handle.get(handle)
        if gone is None:
            return None
        now = self._clock()
        delete = f"DELETE FROM assignment WHERE attachment = (SELECT id FROM attachment WHERE {_IS_HANDLE})"
        statements: list[Statement] = [
            (delete, tuple(handle)),
            (f"DELETE FROM attachment WHERE {_IS_HANDLE}", tuple(handle)),
        ]
        for a in gone.assignments:
            row = (a.family, a.packed, now)
            statements.append(("INSERT OR REPLACE INTO released (family, address, at) VALUES (?, ?, ?)", row))
        await self._write(statements, lambda: self._forget(gone))
        return gone

    async def annotate(self, handle: Handle, attributes: Mapping[str, Any]) -> Attachment | None:
        """Replace the attributes of a handle and return what it has; None where it is not known."""
        had = self.by_handle.get(handle)
        if had is None:
            return None
        have = replace(had, attributes=dict(attributes))
        update = (f"UPDATE attachment SET attributes = ? WHERE {_IS_HANDLE}", (_encode(attributes), *handle))
        await self._write([update], lambda: self._remember(have))
        return have

    async def own(self, blocks: Sequence[OwnedBlock]) -> None:
        """Remember blocks as this node's own."""
        await self._write(
            [("INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?)", tuple(block)) for block in blocks],
            lambda: self.blocks.update(((block.family, block.prefix), block) for block in blocks),
        )

    async def disown(self, family: Family, wire: bytes) -> None:
        """Forget a block, and which of its addresses were in use before."""
        edges = [address.to_bytes(BITS[family] // 8, "big") for address in span(family, wire)]
        await self._write(
            [
                ("DELETE FROM block WHERE family = ? AND prefix = ?", (family, wire)),
                ("DELETE FROM released WHERE family = ? AND address BETWEEN ? AND ?", (family, *edges)),
            ],
            lambda: self.blocks.pop((family, wire), None),
        )

    def _remember(self, attachment: Attachment) -> None:
        self.by_handle[attachment.handle] = attachment
        self.by_address.update((assignment.packed, attachment) for assignment in attachment.assignments)

    def _forget(self, attachment: Attachment) -> None:
        del self.by_handle[attachment.handle]
        for assignment in attachment.assignments:
            del self.by_address[assignment.packed]

    async def _write(self, statements: list[Statement], apply: Callable[[], object]) -> None:
        if self._thread is None or self._loop is None:
            raise LedgerError(f"ledger {self.path} is not open")
        done: asyncio.Future[None] = self._loop.create_future()
        self._changes.put(_Change(statements, apply, done))
        await done

    # The thread

    def _run(self, ready: asyncio.Future[None]) -> None:
        try:
            connection = sqlite.connect(KIND, self.path)
        except IpamError as error:
            self._settle([_Change([], _nothing, ready)], error)
            return
        try:
            self._load(connection)
        except (sqlite3.Error, ValueError) as error:
            connection.close()
            cause = error if isinstance(error, sqlite3.Error) else sqlite3.DatabaseError(str(error))
            self._settle([_Change([], _nothing, ready)], sqlite.translate(KIND, self.path, cause))
            return
        self._settle([_Change([], _nothing, ready)], None)
        try:
            while batch := self._next():
                self._commit(connection, batch)
        finally:
            connection.close()

    def _load(self, connection: sqlite3.Connection) -> None:
        held: dict[int, list[Assignment]] = {}
        query = "SELECT family, address, pool, block, attachment FROM assignment"
        for family, packed, pool, block, number in connection.execute(query):
            wire = bytes((len(packed) * 8,)) + packed
            assignment = Assignment(family, prefix.address_text(packed), wire, pool, block)
            held.setdefault(number, []).append(assignment)
        query = "SELECT id, network, container, ifname, created, attributes FROM attachment"
        for number, network, container, ifname, created, attributes in connection.execute(query):
            handle, assignments = Handle(network, container, ifname), tuple(held.get(number, ()))
            self._remember(Attachment(handle, assignments, json.loads(attributes), created))
        for row in connection.execute("SELECT family, prefix, pool, generation FROM block"):
            self.blocks[row[0], row[1]] = OwnedBlock(*row)
        query = "SELECT family, address, at FROM released ORDER BY id"
        self.released = [Released(*row) for row in connection.execute(query)]
        self.blank = not (self.by_handle or self.blocks or self.released)

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
            for change in batch:
                for sql, values in change.statements:
                    connection.execute(sql, values)
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

    def _failure(self, error: Exception) -> IpamError:
        if isinstance(error, sqlite3.Error):
            return sqlite.translate(KIND, self.path, error)
        return LedgerError(f"ledger {self.path} cannot hold this: {error}")  # a lone surrogate in a name, for one

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


def _nothing() -> None:
    pass


def _encode(attributes: Mapping[str, Any]) -> str:
    return json.dumps(attributes, separators=(",", ":"))
