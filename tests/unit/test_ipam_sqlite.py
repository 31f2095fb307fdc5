"""What can be wrong with a SQLite file of ours, and the text it gets."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ipam import ledger, sqlite, sqlite_store
from ipam.errors import (
    IpamError,
    LedgerCorruptError,
    LedgerError,
    NewerStateError,
    StoreCorruptError,
    StoreError,
    StoreUnavailableError,
)
from ipam.given import Handle
from ipam.ledger import Ledger
from ipam.sqlite_store import SqliteStore
from ipam.store import Put

NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be somebody whom file modes hold back."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Return a directory that nobody owns, below no private one."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        if os.geteuid() == 0:
            os.chown(made, NOBODY, NOBODY)
        yield Path(made)
        os.chmod(made, 0o755)


async def make_store(path: Path) -> None:
    store = SqliteStore(str(path))
    await store.open()
    await store.transact([], [Put(f"/t/{number:04}", b"x" * 200) for number in range(200)])
    await store.close()


async def failure(path: Path) -> IpamError:
    store = SqliteStore(str(path))
    with pytest.raises(IpamError) as caught:
        await store.open()
    return caught.value


async def ledger_failure(path: Path) -> IpamError:
    with pytest.raises(IpamError) as caught:
        await Ledger(str(path)).open()
    return caught.value


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database " * 100)
    error = await failure(path)
    assert isinstance(error, StoreCorruptError)
    assert str(error) == (
        f"store {path} is corrupt (file is not a database): stop the agents that share it, move it away together with "
        "its -wal and -shm files, and restore a copy or start them on a new one: each claims the blocks in its ledger "
        "again"
    )
    error = await ledger_failure(path)
    assert isinstance(error, LedgerCorruptError)
    assert str(error) == (
        f"ledger {path} is corrupt (file is not a database): move it away together with its -wal and -shm files and "
        "start the agent again: containers that run keep their addresses; or restore a copy taken since the last "
        "container was started"
    )


async def test_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await make_store(path)
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xa5" * 4096)
    error = await failure(path)
    assert isinstance(error, StoreCorruptError)
    assert str(error).startswith(f"store {path} is corrupt (")


async def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await make_store(path)
    os.truncate(path, 4096 * 2)
    assert isinstance(await failure(path), StoreCorruptError)


async def test_the_database_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE t (x)")
    before = path.read_bytes()
    error = await failure(path)
    assert isinstance(error, StoreError)
    assert str(error) == f"{path} is a SQLite file, but no store of podroute: give another path"
    assert path.read_bytes() == before


async def test_a_store_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await make_store(path)
    error = await ledger_failure(path)
    assert str(error) == f"{path} is a SQLite file, but no ledger of podroute: give another path"


async def test_newer_state_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await make_store(path)
    with closing(sqlite3.connect(path)) as newer, newer:
        newer.execute("PRAGMA user_version=99")
    error = await failure(path)
    assert isinstance(error, NewerStateError)
    assert str(error) == (
        f"store {path} was written by a newer podroute (schema 99, this one knows 2): "
        "install that version or a newer one"
    )


async def test_an_older_file_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as older, older:
        for statement in sqlite_store.KIND.steps[0]:
            older.execute(statement)
        older.execute("INSERT INTO record VALUES ('/t/a', 'x', 1, 1)")
        older.execute(f"PRAGMA application_id={sqlite_store.KIND.application_id}")
        older.execute("PRAGMA user_version=1")
    store = SqliteStore(str(path))
    await store.open()
    entry = await store.get("/t/a")
    assert entry is not None
    await store.transact([], [Put("/t/b", b"", await store.grant(5))])
    await store.close()


async def test_a_read_only_file(open_directory: Path) -> None:
    path = open_directory / "store.db"
    with unprivileged():
        await make_store(path)
        path.chmod(0o444)
        error = await failure(path)
    assert type(error) is StoreError
    assert str(error) == (
        f"store {path} is read-only: the agent must be able to write the file and its directory; "
        "check owner, mode and mount options"
    )


async def test_a_read_only_directory(open_directory: Path) -> None:
    with unprivileged():
        os.chmod(open_directory, 0o555)
        error = await failure(open_directory / "store.db")
        below = await failure(open_directory / "state" / "store.db")
    assert str(error) == (
        f"store {open_directory}/store.db cannot be opened: check that its directory exists and that the agent may "
        "write it"
    )
    assert str(below) == f"store {open_directory}/state/store.db cannot be created: Permission denied"


async def test_a_path_that_is_a_directory(tmp_path: Path) -> None:
    error = await failure(tmp_path)
    assert str(error).startswith(f"store {tmp_path} cannot be opened: ")


async def test_a_locked_store_is_waited_for_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "KIND", replace(sqlite_store.KIND, busy_seconds=0.05))
    path = tmp_path / "store.db"
    store = SqliteStore(str(path))
    await store.open()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError) as caught:
            await store.transact([], [Put("/t/a", b"")])
        error = await failure(path)
        other.execute("ROLLBACK")
    for one in (caught.value, error):
        assert one.retry
        assert str(one) == (
            f"store {path} is locked by another process for more than 0.05 s: find out who has it open (fuser) and "
            "end that"
        )
    assert (await store.transact([], [Put("/t/a", b"")])).committed
    await store.close()


async def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """SQLite's own limit of pages stands in for the disk's end."""
    path = tmp_path / "store.db"
    await make_store(path)
    with closing(sqlite.connect(sqlite_store.KIND, str(path))) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(sqlite3.Error) as caught:
            connection.execute("INSERT INTO record VALUES ('/t/x', zeroblob(100000), 1, 1, 0)")
    error = sqlite.translate(sqlite_store.KIND, str(path), caught.value)
    assert str(error) == f"store {path} cannot grow, the disk is full: make room, nothing is lost"


async def test_a_ledger_whose_rows_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    made = Ledger(str(path))
    await made.open()
    await made.close()
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("INSERT INTO handle VALUES ('c', 'i', 'n', 0, '{')")
    error = await ledger_failure(path)
    assert isinstance(error, LedgerCorruptError)
    assert str(error).startswith(f"ledger {path} is corrupt (attributes that are no JSON): move it away")


async def test_a_closed_ledger_says_so(tmp_path: Path) -> None:
    closed = Ledger(str(tmp_path / "ledger.db"))
    await closed.open()
    await closed.close()
    await closed.close()
    with pytest.raises(LedgerError, match="is not open"):
        await closed.add(Handle("n", "c", "i"), [], {})


def test_both_kinds_of_file_are_told_apart() -> None:
    assert ledger.KIND.application_id != sqlite_store.KIND.application_id
