"""The contract of a shared store: what etcd v3 and a SQLite file both can do.

Keys are text in byte order, values are opaque octets. Every transaction that changed something has a revision greater
than all before; a record knows the revision that created it and the last that wrote it. A range is
``start <= key < end``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    key: str
    value: bytes
    created: int
    """Revision that created the record; a record deleted and made again has a greater one."""
    modified: int


class Range(NamedTuple):
    start: str
    end: str
    limit: int = 0
    """At most so many records, in key order; 0: all."""

    @classmethod
    def key(cls, key: str) -> Range:
        """Return the range of one key."""
        return cls(key, key + "\0")

    @classmethod
    def below(cls, path: str) -> Range:
        """Return the range of all keys that begin with ``path``, which ends in a slash."""
        return cls(path, path[:-1] + "0")


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The record was last written by this revision; 0: there is none."""

    key: str
    modified: int


@dataclass(frozen=True, slots=True)
class Quiet:
    """No record in the range was written after a revision; 0: the range is empty."""

    start: str
    end: str
    since: int = 0


@dataclass(frozen=True, slots=True)
class Holds:
    """The record has this value."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Differs:
    """There is such a record, and it has another value."""

    key: str
    value: bytes


Condition = Unchanged | Quiet | Holds | Differs


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0
    """The record goes when this lease ends; 0: it stays."""


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


Write = Put | Delete

MOST_CONDITIONS = 128
"""Conditions of a transaction and of all attempts of one choice together; etcd's `--max-txn-ops`."""


@dataclass(frozen=True, slots=True)
class Attempt:
    conditions: Sequence[Condition]
    writes: Sequence[Write]


@dataclass(frozen=True, slots=True)
class Choice:
    """Of its attempts the first whose conditions all hold is carried out, and no other."""

    attempts: Sequence[Attempt]
    """At least one."""
    otherwise: Sequence[Range] = ()
    """What is read where none is carried out."""


class Listing(NamedTuple):
    entries: tuple[Entry, ...]
    """In key order."""
    revision: int
    """The store's revision when it was read."""


class Chosen(NamedTuple):
    attempt: int | None
    """Which one was carried out, counted from 0; None: none was."""
    read: tuple[tuple[Entry, ...], ...] = ()


class Outcome(NamedTuple):
    committed: bool
    """Whether the transaction's own conditions held."""
    revision: int
    """Of the transaction where it changed something, else of the state that it found."""
    read: tuple[tuple[Entry, ...], ...] = ()
    """Where it was refused: the ranges asked for, as of the same moment."""
    chosen: tuple[Chosen, ...] = ()
    """Where it was not: what became of each choice."""


class Change(NamedTuple):
    key: str
    entry: Entry | None
    """The record as it was written; None: it is gone."""


class Changes(NamedTuple):
    changes: tuple[Change, ...]
    """In the order in which they happened."""
    revision: int
    """Of the last of them: where to watch from next."""
    complete: bool
    """Whether these are all records that there are, because what happened in between can no longer be told."""


class Store(Protocol):
    """Raises StoreUnavailableError where trying again later may help, StoreError where it will not."""

    @property
    def url(self) -> str:
        """Where the store is, for messages; without secrets."""

    async def get(self, key: str) -> Entry | None: ...

    async def list(self, wanted: Range) -> Listing: ...

    async def transact(
        self,
        conditions: Sequence[Condition],
        writes: Sequence[Write],
        otherwise: Sequence[Range] = (),
        choices: Sequence[Choice] = (),
    ) -> Outcome:
        """Write all, and settle each choice, if every condition holds, else read the ranges of ``otherwise``.

        It is one round trip whatever happens. All conditions, also those of attempts, look at the state before it.
        After StoreUnavailableError it may have happened or not. No key may be written twice, nor in the attempts of two
        choices. Raises LeaseExpiredError.
        """

    def watch(self, wanted: Range, since: int) -> AsyncGenerator[Changes, None]:
        """Yield what happens in a range after a revision, without end.

        A store that is away ends nothing: it goes on with what happened meanwhile, or with ``complete`` changes.
        """

    async def grant(self, seconds: int) -> int:
        """Return a new lease, which ends so many seconds after it was last kept alive."""

    async def keep_alive(self, lease: int) -> bool:
        """Let a lease begin again; False where it has ended."""

    async def revoke(self, lease: int) -> None:
        """End a lease, and with it its records."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...
