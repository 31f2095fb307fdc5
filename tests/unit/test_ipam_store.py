"""The contract that every store keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from config.store import Store as Settings
from ipam.errors import LeaseExpiredError, StoreError
from ipam.etcd_store import EtcdStore
from ipam.sqlite_store import SqliteStore
from ipam.store import (
    MOST_CONDITIONS,
    Attempt,
    Change,
    Changes,
    Choice,
    Chosen,
    Condition,
    Delete,
    Differs,
    Holds,
    Put,
    Quiet,
    Range,
    Store,
    Unchanged,
)
from tests.etcd import Etcd, needs_etcd

ALL = Range.below("/t/")


@pytest.fixture(params=["sqlite", pytest.param("etcd", marks=needs_etcd)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], Store]:
    """Return a maker of stores that are all the same one, empty at first."""
    if kind == "sqlite":
        return lambda: SqliteStore(str(tmp_path / "store.db"), history=20)
    cluster: Etcd = request.getfixturevalue("member")
    cluster.etcdctl("del", "", "--prefix")
    return lambda: EtcdStore.of(Settings(url=cluster.url))


@pytest.fixture
async def stores(make: Callable[[], Store]) -> AsyncIterator[tuple[Store, Store]]:
    """Two openings of one store, as two agents have them."""
    async with AsyncExitStack() as stack:
        pair = make(), make()
        for store in pair:
            await store.open()
            stack.push_async_callback(store.close)
        yield pair


@pytest.fixture
def forget(kind: str, request: pytest.FixtureRequest) -> Callable[[Store, int], Awaitable[None]]:
    """Return what makes a store forget its history up to a revision."""

    async def sqlite(store: Store, revision: int) -> None:
        for _ in range(30):  # it remembers 20
            await store.transact([], [Put("/t/filler", b""), Delete("/t/gone")])
            await store.transact([], [Put("/t/gone", b"")])

    async def compact(store: Store, revision: int) -> None:
        request.getfixturevalue("member").etcdctl("compact", str(revision))

    return sqlite if kind == "sqlite" else compact


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


async def test_conditions_on_the_value(stores: tuple[Store, Store]) -> None:
    one, other = stores
    await one.transact([], [Put("/t/a", b"1")])
    assert (await other.transact([Holds("/t/a", b"1")], [Put("/t/x", b"")])).committed
    assert (await other.transact([Differs("/t/a", b"2")], [Put("/t/x", b"")])).committed
    for refused in (Holds("/t/a", b"2"), Differs("/t/a", b"1"), Holds("/t/none", b""), Differs("/t/none", b"1")):
        assert not (await one.transact([refused], [Delete("/t/a")])).committed


def attempt(key: str, *more: Condition) -> Attempt:
    return Attempt([Unchanged(key, 0), *more], [Put(key, b"mine")])


async def test_of_a_choice_the_first_attempt_that_can_be_is_carried_out(stores: tuple[Store, Store]) -> None:
    one, other = stores
    await one.transact([], [Put("/t/a", b"1"), Put("/t/b", b"1")])
    choice = Choice([attempt("/t/a"), attempt("/t/b"), attempt("/t/c"), attempt("/t/d")], [ALL])
    made = await other.transact([], [Put("/t/z", b"")], (), [choice])
    assert made.committed
    assert made.chosen == (Chosen(2),)
    c = await one.get("/t/c")
    assert c is not None
    assert (c.created, c.value) == (made.revision, b"mine")
    assert [entry.key for entry in (await one.list(ALL)).entries] == ["/t/a", "/t/b", "/t/c", "/t/z"]


async def test_a_choice_of_which_nothing_can_be_reads_what_was_asked(stores: tuple[Store, Store]) -> None:
    one, other = stores
    before = await one.transact([], [Put("/t/a", b"1"), Put("/t/b", b"1")])
    choice = Choice([attempt("/t/a"), attempt("/t/b")], [Range.key("/t/b"), Range.key("/t/none")])
    made = await other.transact([], [], (), [choice, Choice([attempt("/t/c", Unchanged("/t/a", 0))])])
    assert made.committed
    assert made.revision == before.revision
    first, second = made.chosen
    assert first.attempt is second.attempt is None
    assert [[entry.key for entry in entries] for entries in first.read] == [["/t/b"], []]
    assert second.read == ()


async def test_choices_are_settled_side_by_side_and_look_at_what_was_before(stores: tuple[Store, Store]) -> None:
    one, _ = stores
    await one.transact([], [Put("/t/a", b"1")])
    none = Choice([attempt("/t/a")], [Range.key("/t/a")])
    # What the transaction itself writes counts neither for it nor against it
    some = Choice([attempt("/t/b", Holds("/t/z", b"new")), attempt("/t/c", Unchanged("/t/z", 0))])
    made = await one.transact([], [Put("/t/z", b"new")], (), [none, some])
    assert [chosen.attempt for chosen in made.chosen] == [None, 1]
    assert [entry.key for entry in (await one.list(ALL)).entries] == ["/t/a", "/t/c", "/t/z"]


async def test_a_refused_transaction_chooses_nothing(stores: tuple[Store, Store]) -> None:
    one, _ = stores
    refused = await one.transact([Unchanged("/t/a", 7)], [], [ALL], [Choice([attempt("/t/b")])])
    assert (refused.committed, refused.read, refused.chosen) == (False, ((),), ())
    assert await one.get("/t/b") is None


async def test_the_longest_choice_there_may_be(stores: tuple[Store, Store]) -> None:
    one, _ = stores
    await one.transact([], [Put(f"/t/{n:03}", b"") for n in range(20)])
    each = 8
    many = range((MOST_CONDITIONS - 8) // each)
    attempts = [attempt(f"/t/{n:03}", *(Quiet(f"/u/{n}-{k}", f"/u/{n}-{k}~") for k in range(each - 1))) for n in many]
    others = [attempt(f"/w/{n}", *[Unchanged(f"/t/{n:03}", 0)] * (each - 1)) for n in many]
    free = [Quiet(f"/v/{k}", f"/v/{k}~") for k in range(8)]
    refused = await one.transact(free, [], (), [Choice(attempts, [ALL]), Choice(others, [ALL])])
    assert [chosen.attempt for chosen in refused.chosen] == [None, None]
    assert [len(chosen.read[0]) for chosen in refused.chosen] == [20, 20]
    await one.transact([], [Delete(f"/t/{len(attempts) - 1:03}")])
    (chosen,) = (await one.transact(free, [], (), [Choice(attempts, [ALL])])).chosen
    assert chosen == Chosen(len(attempts) - 1)


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


async def test_a_closed_store_says_so(make: Callable[[], Store]) -> None:
    store = make()
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="is not open"):
        await store.get("/t/a")


async def take(watch: AsyncIterator[Changes], count: int) -> list[Changes]:
    """Return what a watch tells until it has told ``count`` changes."""
    found: list[Changes] = []
    async with asyncio.timeout(60):
        async for changes in watch:
            found.append(changes)
            if sum(len(one.changes) for one in found) >= count:
                return found
    raise AssertionError("a watch has no end")


def flat(found: list[Changes]) -> list[tuple[str, bytes | None]]:
    return [(change.key, change.entry.value if change.entry else None) for one in found for change in one.changes]


async def test_a_watch_tells_what_happened_since_and_what_happens(stores: tuple[Store, Store]) -> None:
    one, other = stores
    await one.transact([], [Put("/t/old", b"0")])
    since = (await one.list(ALL)).revision
    await one.transact([], [Put("/t/a", b"1"), Put("/u/a", b"")])
    last = await one.transact([], [Put("/t/b", b"2"), Delete("/t/old")])
    async with aclosing(other.watch(ALL, since)) as watch:
        found = await take(watch, 3)
        told = flat(found)
        assert told[0] == ("/t/a", b"1")
        assert sorted(told[1:]) == [("/t/b", b"2"), ("/t/old", None)]
        assert not any(one.complete for one in found)
        assert found[-1].revision == last.revision
        next_one = asyncio.create_task(take(watch, 1))
        await one.transact([], [Put("/t/a", b"3")])
        assert flat(await next_one) == [("/t/a", b"3")]


async def test_a_watch_from_a_forgotten_revision_tells_all_there_is(
    stores: tuple[Store, Store], forget: Callable[[Store, int], Awaitable[None]]
) -> None:
    one, other = stores
    since = (await one.transact([], [Put("/t/a", b"1"), Put("/t/b", b"1")])).revision
    await one.transact([], [Delete("/t/a")])
    await one.transact([], [Put("/t/b", b"2")])
    await forget(one, (await one.transact([], [Put("/t/c", b"3")])).revision)
    async with aclosing(other.watch(ALL, since)) as watch:
        (found,) = await take(watch, 2)
        assert found.complete
        assert [change.key for change in found.changes if change.key < "/t/d"] == ["/t/b", "/t/c"]
        next_one = asyncio.create_task(take(watch, 1))
        await one.transact([], [Delete("/t/b")])
        (after,) = await next_one
        assert after.changes == (Change("/t/b", None),)
        assert not after.complete


async def test_a_watch_from_ahead_of_a_store_set_up_anew_tells_all_there_is(stores: tuple[Store, Store]) -> None:
    one, other = stores
    made = await one.transact([], [Put("/t/a", b"1")])
    async with aclosing(other.watch(ALL, made.revision + 1000)) as watch:
        (found,) = await take(watch, 1)
    assert found.complete
    assert flat([found]) == [("/t/a", b"1")]


async def test_a_record_goes_with_its_lease(stores: tuple[Store, Store]) -> None:
    one, other = stores
    lease = await one.grant(60)
    made = await one.transact([], [Put("/t/a", b"", lease), Put("/t/b", b"")])
    assert await other.keep_alive(lease)
    async with aclosing(other.watch(ALL, made.revision)) as watch:
        await one.revoke(lease)
        assert flat(await take(watch, 1)) == [("/t/a", None)]
    assert [entry.key for entry in (await one.list(ALL)).entries] == ["/t/b"]
    assert not await one.keep_alive(lease)
    await one.revoke(lease)
    with pytest.raises(LeaseExpiredError):
        await one.transact([], [Put("/t/c", b"", lease)])
    assert await one.get("/t/c") is None


async def test_a_lease_that_nobody_keeps_alive_ends(stores: tuple[Store, Store]) -> None:
    one, other = stores
    kept, left = await one.grant(2), await one.grant(2)
    made = await one.transact([], [Put("/t/kept", b"", kept), Put("/t/left", b"", left)])

    async def keep() -> None:
        while await one.keep_alive(kept):  # noqa: ASYNC110 (time is what is tested)
            await asyncio.sleep(0.3)

    keeper = asyncio.create_task(keep())
    async with aclosing(other.watch(ALL, made.revision)) as watch:
        assert flat(await take(watch, 1)) == [("/t/left", None)]
    assert not keeper.done()
    keeper.cancel()


async def test_a_record_written_without_its_lease_stays(stores: tuple[Store, Store]) -> None:
    one, _ = stores
    lease = await one.grant(60)
    await one.transact([], [Put("/t/a", b"", lease)])
    await one.transact([], [Put("/t/a", b"")])
    await one.revoke(lease)
    assert await one.get("/t/a") is not None
