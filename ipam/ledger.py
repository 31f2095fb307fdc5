"""The node's own record of its addresses: local, durable, and whole after a crash at any moment.

A change has happened when its call returns, not before: it is then on disk. Memory knows which addresses a handle has;
all else about it is read from the file when it is asked for.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from config.prefix import BITS, Family
from config.values import RESERVED_NETWORK
from ipam import sqlite
from ipam.errors import LedgerCorruptError, LedgerError
from ipam.given import Assignment, Given, Handle
from ipam.group_commit import GroupCommit, Statement
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
            "CREATE TABLE released (id INTEGER PRIMARY KEY AUTOINCREMENT, family INTEGER NOT NULL,"
            " address BLOB NOT NULL, at REAL NOT NULL, UNIQUE (family, address))",
            "CREATE TABLE block (family INTEGER NOT NULL, prefix BLOB NOT NULL, pool TEXT NOT NULL,"
            " generation INTEGER NOT NULL, PRIMARY KEY (family, prefix)) WITHOUT ROWID",
        ),
        (
            # One row an address that is in use, with its handle and its place among the handle's addresses, or was
            # before, with the time of its release
            "CREATE TABLE address (family INTEGER NOT NULL, address BLOB NOT NULL, pool TEXT NOT NULL,"
            " block BLOB NOT NULL, container TEXT, ifname TEXT, network TEXT, place INTEGER, released REAL,"
            " PRIMARY KEY (family, address)) WITHOUT ROWID",
            "INSERT INTO address SELECT family, address, pool, block, container, ifname, network, family, NULL"
            " FROM assignment JOIN attachment ON id = attachment",
            "INSERT OR IGNORE INTO address SELECT family, address, '', x'', NULL, NULL, NULL, NULL, at + id * 1e-6"
            " FROM released",
            "CREATE TABLE handle (container TEXT NOT NULL, ifname TEXT NOT NULL, network TEXT NOT NULL,"
            " created REAL NOT NULL, attributes TEXT NOT NULL, PRIMARY KEY (container, ifname, network)) WITHOUT ROWID",
            "INSERT INTO handle SELECT container, ifname, network, created, attributes FROM attachment",
            "DROP TABLE assignment",
            "DROP TABLE released",
            "DROP TABLE attachment",
        ),
        (
            # What is on loan has a network of a name that no network of containers can have
            "UPDATE handle SET network = '-loan' WHERE network = 'loan' AND json_valid(attributes)"
            " AND json_extract(attributes, '$.uuid') IS NOT NULL",
            "UPDATE address SET network = '-loan' WHERE network = 'loan'"
            " AND (container, ifname) IN (SELECT container, ifname FROM handle WHERE network = '-loan')",
        ),
    ),
    error=LedgerError,
    corrupt=LedgerCorruptError,
    busy=LedgerError,
    remedy="move it away together with its -wal and -shm files and start the agent again: containers that run keep "
    "their addresses; or restore a copy taken since the last container was started",
    busy_seconds=5.0,
)

_TICK = 1e-6
"""Seconds between releases at least."""

_IS_HANDLE = "container = ? AND ifname = ? AND network = ?"
_ADD = "INSERT INTO handle VALUES (?, ?, ?, ?, ?)"
_TAKE = (
    "INSERT INTO address VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL) ON CONFLICT DO UPDATE SET pool = excluded.pool,"
    " block = excluded.block, container = excluded.container, ifname = excluded.ifname, network = excluded.network,"
    " place = excluded.place, released = NULL WHERE released IS NOT NULL"
)
_TAKEN = "an address of it is in use by another container"
_RELEASE = (
    "UPDATE address SET container = NULL, ifname = NULL, network = NULL, place = NULL, released = ?"
    " WHERE family = ? AND address = ?"
)


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


class Inside(NamedTuple):
    """The addresses of a block, as numbers."""

    used: list[int]
    """By containers."""
    kept: list[int]
    """From containers."""
    released: list[tuple[int, float]]
    """Those that were in use before, and when they were released in seconds since 1970: the longest ago first."""


class Ledger:
    """Calls may be cancelled: the change then still happens. Changes of one handle must not overlap."""

    def __init__(self, path: str, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.blank = False
        """Whether open found no trace of an address: the node has never had any, or somebody lost the file."""
        self.given = Given()
        self.blocks: dict[tuple[Family, bytes], OwnedBlock] = {}
        self._file = _File(path)
        self.by_handle = _ByHandle(self._file, self.given)
        self.by_address: Mapping[bytes, Attachment] = _ByAddress(self._file, self.by_handle)
        """By packed address; 4 and 16 octets tell the families apart."""
        self.clock = clock
        self._last_release = 0.0
        self._writer = GroupCommit(KIND, path)

    async def open(self) -> None:
        """Read the file, or make a new one. Raises LedgerError and NewerStateError."""
        await self._writer.open()
        try:
            await asyncio.to_thread(self._load)
        except BaseException:
            await self.close()
            raise

    def _load(self) -> None:
        self._file.open()
        if self._file.rows("SELECT 1 FROM handle WHERE NOT json_valid(attributes) LIMIT 1"):
            raise sqlite.corrupt(KIND, self.path, "attributes that are no JSON")
        for row in self._file.rows("SELECT family, prefix, pool, generation FROM block"):
            self.blocks[row[0], row[1]] = OwnedBlock(*row)
        # The first column is handle_text
        query = (
            "SELECT CAST(network || char(0) || container || char(0) || ifname AS BLOB), address, block, pool, place"
            " FROM address WHERE released IS NULL"
        )
        self.given.load(self._file.stream(query))
        ((self._last_release,),) = self._file.rows("SELECT coalesce(max(released), 0) FROM address")
        self.blank = not (self.blocks or self.given or self._last_release)

    async def close(self) -> None:
        """Write what is waiting and close the file. Does nothing the second time."""
        self._file.close()
        await self._writer.close()

    def inside(self, family: Family, block: bytes) -> Inside:
        """Return the addresses of a block that are or were in use."""
        query = "SELECT address, block, network, released FROM address WHERE family = ? AND address BETWEEN ? AND ?"
        found = Inside([], [], [])
        for packed, of, network, at in self._file.rows(query + " ORDER BY released", (family, *_edges(family, block))):
            address = int.from_bytes(packed, "big")
            if at is not None:
                found.released.append((address, at))
            elif of == block:
                (found.kept if network == RESERVED_NETWORK else found.used).append(address)
        return found

    def assigned(self, family: Family, block: bytes) -> list[tuple[Attachment, Assignment]]:
        """Return who has the addresses of a block."""
        return [
            (attachment, one)
            for attachment in self.by_handle.inside(family, *_edges(family, block))
            for one in attachment.assignments
            if (one.family, one.block) == (family, block)
        ]

    async def add(self, handle: Handle, assignments: Sequence[Assignment], attributes: Mapping[str, Any]) -> Attachment:
        """Record the addresses of a handle that has none, all or none of them."""
        attachment = Attachment(handle, tuple(assignments), dict(attributes), self.clock())
        key = _key(handle)
        statements = [Statement(_ADD, (*key, attachment.created, _encode(attributes)))]
        for place, one in enumerate(assignments):
            statements.append(Statement(_TAKE, (one.family, one.packed, one.pool, one.block, *key, place), _TAKEN))
        await self.write(statements, lambda: self.given.put(handle, assignments))
        return attachment

    async def remove(self, handle: Handle) -> tuple[Assignment, ...]:
        """Forget a handle and return what it had."""
        gone = self.given.get(handle)
        if gone is None:
            return ()
        # Releases are told apart by their times, which are also their order
        self._last_release = max(self.clock(), self._last_release + _TICK)
        statements = [Statement(f"DELETE FROM handle WHERE {_IS_HANDLE}", _key(handle))]
        statements += (Statement(_RELEASE, (self._last_release, one.family, one.packed)) for one in gone)
        await self.write(statements, lambda: self.given.drop(handle))
        return gone

    async def annotate(self, handle: Handle, attributes: Mapping[str, Any]) -> bool:
        """Replace the attributes of a handle; return whether it is known."""
        if self.given.get(handle) is None:
            return False
        update = Statement(f"UPDATE handle SET attributes = ? WHERE {_IS_HANDLE}", (_encode(attributes), *_key(handle)))
        await self.write([update], _nothing)
        return True

    async def own(self, blocks: Sequence[OwnedBlock]) -> None:
        """Remember blocks as this node's own."""
        await self.write(
            [Statement("INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?)", tuple(block)) for block in blocks],
            lambda: self.blocks.update(((block.family, block.prefix), block) for block in blocks),
        )

    async def disown(self, family: Family, wire: bytes) -> None:
        """Forget a block, which of its addresses were in use before, and which were kept from containers."""
        had = [attachment.handle for attachment, _ in self.assigned(family, wire)]
        kept = [handle for handle in dict.fromkeys(had) if handle.network == RESERVED_NETWORK]
        delete = (
            "DELETE FROM address WHERE (released IS NOT NULL OR network = ?) AND family = ? AND address BETWEEN ? AND ?"
        )

        def forget() -> None:
            self.blocks.pop((family, wire), None)
            for handle in kept:
                self.given.drop(handle)

        await self.write(
            [
                Statement("DELETE FROM block WHERE family = ? AND prefix = ?", (family, wire)),
                Statement(delete, (RESERVED_NETWORK, family, *_edges(family, wire))),
                *(Statement(f"DELETE FROM handle WHERE {_IS_HANDLE}", _key(handle)) for handle in kept),
            ],
            forget,
        )

    async def write(self, statements: list[Statement], apply: Callable[[], object]) -> None:
        """Write statements, all or none of them, and apply them to memory once they are on disk."""
        await self._writer.write(statements, apply)


class _File:
    """The file as a reader sees it: committed changes, and nothing else."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        with self._translated():
            self._connection = sqlite3.connect(
                self._path, timeout=KIND.busy_seconds, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA query_only=1")
            self._connection.execute(f"PRAGMA cache_size=-{sqlite.CACHE}")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """Return the rows of a query. Raises LedgerError."""
        if self._connection is None:
            raise LedgerError(f"ledger {self._path} is not open")
        with self._translated():
            return self._connection.execute(query, values).fetchall()

    def stream(self, query: str) -> Iterator[Any]:
        """Yield the rows of a query, which may be many."""
        if self._connection is None:
            raise LedgerError(f"ledger {self._path} is not open")
        with self._translated():
            yield from self._connection.execute(query)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise sqlite.translate(KIND, self._path, error) from error


class _ByHandle(Mapping[Handle, Attachment]):
    """What memory and file both have: a change that is on its way is in one of them only."""

    def __init__(self, file: _File, given: Given) -> None:
        self._file = file
        self._given = given

    def __getitem__(self, handle: Handle) -> Attachment:
        assignments = self._given.get(handle)
        query = f"SELECT created, attributes FROM handle WHERE {_IS_HANDLE}"
        found = self._file.rows(query, _key(handle)) if assignments is not None else ()
        if assignments is None or not found:
            raise KeyError(handle)
        ((created, attributes),) = found
        return Attachment(handle, assignments, json.loads(attributes), created)

    def __iter__(self) -> Iterator[Handle]:
        handles = (Handle(*row) for row in self._file.rows("SELECT network, container, ifname FROM handle"))
        return (handle for handle in handles if self._given.get(handle) is not None)

    def __len__(self) -> int:
        return len(self._given)

    def values(self) -> ValuesView[Attachment]:
        return _Attachments(self)

    def all(self) -> Iterator[Attachment]:
        return self._attachments("SELECT network, container, ifname, created, attributes FROM handle")

    def of_network(self, network: str) -> list[Attachment]:
        """Return the attachments of one network, without a look at those of others."""
        query = "SELECT network, container, ifname, created, attributes FROM handle WHERE network = ?"
        return list(self._attachments(query, (network,)))

    def inside(self, family: Family, first: bytes, last: bytes) -> Iterator[Attachment]:
        """Yield who has addresses of a range."""
        # Who has two of them is one all the same. CROSS: the range first, then each one's handle
        query = (
            "SELECT DISTINCT network, container, ifname, created, attributes FROM address CROSS JOIN handle"
            " USING (container, ifname, network) WHERE family = ? AND address BETWEEN ? AND ?"
        )
        return self._attachments(query, (family, first, last))

    def _attachments(self, query: str, values: Sequence[object] = ()) -> Iterator[Attachment]:
        for row in self._file.rows(query, values):
            handle = Handle(*row[:3])
            if (assignments := self._given.get(handle)) is not None:
                yield Attachment(handle, assignments, json.loads(row[4]), row[3])


class _Attachments(ValuesView[Attachment]):
    """All at the price of one query."""

    def __init__(self, mapping: _ByHandle) -> None:
        super().__init__(mapping)
        self._all = mapping.all

    def __iter__(self) -> Iterator[Attachment]:
        return self._all()


class _ByAddress(Mapping[bytes, Attachment]):
    def __init__(self, file: _File, by_handle: Mapping[Handle, Attachment]) -> None:
        self._file = file
        self._by_handle = by_handle

    def __getitem__(self, packed: bytes) -> Attachment:
        query = "SELECT network, container, ifname FROM address WHERE family = ? AND address = ? AND released IS NULL"
        found = self._file.rows(query, (4 if len(packed) == 4 else 6, packed))
        if not found:
            raise KeyError(packed)
        return self._by_handle[Handle(*found[0])]

    def __iter__(self) -> Iterator[bytes]:
        return (packed for (packed,) in self._file.rows("SELECT address FROM address WHERE released IS NULL"))

    def __len__(self) -> int:
        ((count,),) = self._file.rows("SELECT count(*) FROM address WHERE released IS NULL")
        return int(count)


def _key(handle: Handle) -> tuple[str, str, str]:
    """Return a handle in the order of the file's keys: what tells most apart first."""
    return handle.container_id, handle.ifname, handle.network


def _edges(family: Family, block: bytes) -> list[bytes]:
    """Return the first and last address of a block, packed."""
    return [address.to_bytes(BITS[family] // 8, "big") for address in span(family, block)]


def _encode(attributes: Mapping[str, Any]) -> str:
    return json.dumps(attributes, separators=(",", ":"))


def _nothing() -> None:
    pass
