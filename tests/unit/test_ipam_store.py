"""The contract that every store keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ipam.errors import StoreError
from ipam.sqlite_store import SqliteStore
from ipam.store import Delete, Put, Quiet, Range, Store, Unchanged

ALL = Range.below("/t/")


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    """Two openings of one store, as two agents have them."""
    async with AsyncExitStack() as stack:
        pair = SqliteStore(str(tmp_path / "store.db")), SqliteStore(str(tmp_path / "store.db"))
        for store in pair:
            await store.open()
            stack.push_async_callback(store.close)
        yield pair


async def test_records_and_their_revisions(stores: tuple[Store, Store]) -> None:
    one, other = stores
    assert await one.get("/t/a") is None
    assert (await one.list(ALL)).entries == ()
    first = await one.transact([], [Put("/t/a", b"1"), Put("/t/b", b"\x00\xff")])
    assert first.committed
    second = await other.transact([], [Put("/t/a", b"2")])
    assert second.revision > first.revision
    a = await one.get("/t/a")
    assert a is not None
    assert tuple(a) == ("/t/a", b"2", first.revision, second.revision)
    listing = await other.list(ALL)
    assert listing.revision == second.revision
    assert [(entry.key, entry.value) for entry in listing.entries] == [("/t/a", b"2"), ("/t/b", b"\x00\xff")]


async def test_a_record_made_again_is_another_one(stores: tuple[Store, Store]) -> None:
    one, _ = stores
    first = await one.transact([], [Put("/t/a", b"1")])
    await one.transact([], [Delete("/t/a")])
    assert await one.get("/t/a") is None
    again = await one.transact([], [Put("/t/a", b"1")])
    entry = await one.get("/t/a")
    assert entry is not None
    assert entry.created == entry.modified == again.revision > first.revision


async def test_ranges_and_limits(stores: tuple[Store, Store]) -> None:
    one, _ = stores
    await one.transact([], [Put(f"/t/{name}", b"") for name in "cab"] + [Put("/u", b""), Put("/t", b"")])
    assert [entry.key for entry in (await one.list(ALL)).entries] == ["/t/a", "/t/b", "/t/c"]
    assert [entry.key for entry in (await one.list(ALL._replace(limit=2))).entries] == ["/t/a", "/t/b"]
    assert [entry.key for entry in (await one.list(Range("/t/b", "/t/c"))).entries] == ["/t/b"]
    assert [entry.key for entry in (await one.list(Range.key("/t/b"))).entries] == ["/t/b"]


async def test_unchanged(stores: tuple[Store, Store]) -> None:
    one, other = stores
    made = await one.transact([Unchanged("/t/a", 0)], [Put("/t/a", b"1")])
    assert made.committed
    assert not (await other.transact([Unchanged("/t/a", 0)], [Put("/t/a", b"2")])).committed
    changed = await other.transact([Unchanged("/t/a", made.revision)], [Put("/t/a", b"2")])
    assert changed.committed
    assert not (await one.transact([Unchanged("/t/a", made.revision)], [Delete("/t/a")])).committed
    assert (await one.transact([Unchanged("/t/a", changed.revision)], [Delete("/t/a")])).committed
    assert not (await one.transact([Unchanged("/t/a", changed.revision)], [])).committed


async def test_quiet(stores: tuple[Store, Store]) -> None:
    one, other = stores
    first = await one.transact([Quiet("/t/a", "/t/c")], [Put("/t/b", b"")])
    assert first.committed
    assert not (await other.transact([Quiet("/t/a", "/t/c")], [Put("/t/bb", b"")])).committed
    assert (await other.transact([Quiet("/t/a", "/t/b"), Quiet("/t/c", "/t/d")], [Put("/t/x", b"")])).committed
    assert (await other.transact([Quiet("/t/a", "/t/c", first.revision)], [Put("/t/bb", b"")])).committed
    assert not (await other.transact([Quiet("/t/a", "/t/c", first.revision)], [Put("/t/bc", b"")])).committed


async def test_a_refused_transaction_writes_nothing_and_reads_what_was_asked(stores: tuple[Store, Store]) -> None:
    one, _ = stores
    made = await one.transact([], [Put("/t/a", b"1"), Put("/t/b", b"2")])
    refused = await one.transact(
        [Quiet("/t/c", "/t/d"), Unchanged("/t/a", 0)],
        [Put("/t/c", b"3"), Delete("/t/b")],
        [Range.key("/t/b"), Range.key("/t/c"), ALL._replace(limit=1)],
    )
    assert not refused.committed
    assert refused.revision == made.revision
    assert [[entry.key for entry in entries] for entries in refused.read] == [["/t/b"], [], ["/t/a"]]
    assert [entry.key for entry in (await one.list(ALL)).entries] == ["/t/a", "/t/b"]


async def test_of_many_who_want_one_key_one_gets_it(stores: tuple[Store, Store]) -> None:
    one, other = stores
    tries = [(one, other)[n % 2].transact([Unchanged("/t/a", 0)], [Put("/t/a", b"%d" % n)]) for n in range(40)]
    outcomes = await asyncio.gather(*tries)
    assert [outcome.committed for outcome in outcomes].count(True) == 1
    entry = await one.get("/t/a")
    assert entry is not None
    assert outcomes[int(entry.value)].committed


async def test_counting_by_compare_and_swap_loses_nothing(stores: tuple[Store, Store]) -> None:
    async def add(store: Store) -> None:
        while True:
            entry = await store.get("/t/n")
            number, revision = (int(entry.value), entry.modified) if entry else (0, 0)
            outcome = await store.transact([Unchanged("/t/n", revision)], [Put("/t/n", b"%d" % (number + 1))])
            if outcome.committed:
                return

    await asyncio.gather(*(add(stores[n % 2]) for n in range(20)))
    entry = await stores[0].get("/t/n")
    assert entry is not None
    assert entry.value == b"20"


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "store.db"))
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="is not open"):
        await store.get("/t/a")
