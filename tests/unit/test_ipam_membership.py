"""The store away at the start, in between, and back with other news."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from config.model import Config
from ipam import fence, membership, records
from ipam.claims import Claims
from ipam.errors import StoreUnavailableError
from ipam.fence import Fence
from ipam.identity import Identity
from ipam.membership import Membership
from ipam.pool import Pool
from ipam.records import Block, NodeRecord
from ipam.service import Ipam
from ipam.sqlite_store import SqliteStore
from ipam.store import Choice, Condition, Delete, Entry, Listing, Outcome, Put, Range, Write
from tests.unit.test_ipam_service import configuration, handle


class Flaky(SqliteStore):
    """A store that can be unplugged."""

    away = False

    def _look(self) -> None:
        if self.away:
            raise StoreUnavailableError(f"store {self.url} does not answer (unplugged)")

    async def get(self, key: str) -> Entry | None:
        self._look()
        return await super().get(key)

    async def list(self, wanted: Range) -> Listing:
        self._look()
        return await super().list(wanted)

    async def transact(
        self,
        conditions: Sequence[Condition],
        writes: Sequence[Write],
        otherwise: Sequence[Range] = (),
        choices: Sequence[Choice] = (),
    ) -> Outcome:
        self._look()
        return await super().transact(conditions, writes, otherwise, choices)

    async def grant(self, seconds: int) -> int:
        self._look()
        return await super().grant(seconds)

    async def keep_alive(self, lease: int) -> bool:
        self._look()
        return await super().keep_alive(lease)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "RETRY", 0.01)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configuration(tmp_path, pools={"p": {"cidr": "10.64.0.0/24", "blockSize": 30}})


async def store_of(config: Config) -> Flaky:
    store = Flaky(config.store.place.path)
    await store.open()
    return store


class Told:
    def __init__(self) -> None:
        self.blocks: set[str] = set()
        self.news = asyncio.Event()

    def __call__(self, granted: Sequence[Block], released: Sequence[Block]) -> None:
        self.blocks |= {block.cidr for block in granted}
        self.blocks -= {block.cidr for block in released}
        self.news.set()


async def until_joined(ipam: Ipam) -> None:
    async with asyncio.timeout(60):
        while not ipam.store().joined or ipam.store().problem:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)


async def test_a_node_that_never_had_a_block_starts_and_waits(config: Config) -> None:
    store, told = await store_of(config), Told()
    store.away = True
    ipam = Ipam(config, store=store, on_blocks=told)
    await ipam.start()
    assert not ipam.store().joined
    assert ipam.store().problem == f"store {store.url} does not answer (unplugged)"
    with pytest.raises(StoreUnavailableError) as caught:
        await ipam.allocate(handle("a"))
    assert str(caught.value) == (
        f"this node's ipv4 block is missing and no other one can be claimed: store {store.url} does not answer "
        "(unplugged)"
    )
    store.away = False
    async with asyncio.timeout(60):
        await told.news.wait()
    assert len(await ipam.allocate(handle("a"))) == 1
    await until_joined(ipam)
    await ipam.stop()
    await store.close()


async def test_owned_blocks_serve_while_the_store_is_away(config: Config) -> None:
    store = await store_of(config)
    ipam = Ipam(config, store=store)
    await ipam.start()
    (first,) = await ipam.allocate(handle("a"))
    owned = [block.cidr for block in ipam.blocks()]
    await ipam.stop()

    store.away = True
    told = Told()
    again = Ipam(config, store=store, on_blocks=told)
    await again.start()
    assert told.blocks == set(owned)
    assert await again.allocate(handle("a")) == [first]
    given = [(await again.allocate(handle(name)))[0].address for name in "bcd"]
    assert len({first.address, *given}) == 4
    with pytest.raises(StoreUnavailableError, match=r"block is full and no other one can be claimed: .*\(unplugged\)"):
        await again.allocate(handle("e"))
    told.news.clear()
    store.away = False
    await until_joined(again)
    assert not told.news.is_set()  # nothing was advertised or withdrawn because of it
    assert [block.cidr for block in again.blocks()] == owned
    assert again.blocks()[0].claimed_at
    assert len(await again.allocate(handle("e"))) == 1
    await again.stop()
    await store.close()


async def test_a_block_that_was_given_away_meanwhile_is_given_up(config: Config) -> None:
    store = await store_of(config)
    ipam = Ipam(config, store=store)
    await ipam.start()
    await ipam.allocate(handle("a"))
    (block,) = ipam.blocks()
    await ipam.stop()
    key = records.block_key(4, block.prefix)
    await store.transact([], [Delete(key)])
    stolen = Block(4, block.prefix, "p", "n2", "other")
    await store.transact([], [Put(key, records.encode_block(stolen))])

    store.away = True
    told = Told()
    again = Ipam(config, store=store, on_blocks=told)
    await again.start()
    assert told.blocks == {block.cidr}
    store.away = False
    await until_joined(again)
    assert block.cidr not in told.blocks
    assert len(told.blocks) == 1
    assert [lost.prefix for lost in again.lost()] == [block.prefix]
    (other,) = await again.allocate(handle("b"))
    assert other.block != block.prefix
    await again.stop()
    await store.close()


async def test_a_node_is_alive_as_long_as_it_says_so(config: Config) -> None:
    store = await store_of(config)
    ipam = Ipam(config, store=store)
    await ipam.start()
    live = await store.get(records.live_key("n1"))
    assert live is not None
    assert live.value.decode() == ipam.identity.uuid
    await store.transact([], [Delete(live.key)])
    ipam.compare_again()
    async with asyncio.timeout(60):
        while await store.get(live.key) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await ipam.stop()
    await store.close()


async def test_a_join_that_takes_longer_than_the_lease_is_not_thrown_away(config: Config, tmp_path: Path) -> None:
    store, joins = await store_of(config), 0
    before = fence.boot_clock()

    async def slowly(claims: Claims, pools: list[Pool]) -> None:
        nonlocal joins
        joins += 1
        while fence.boot_clock() < before + 3.5:  # noqa: ASYNC110 (time is what is tested)
            await asyncio.sleep(0.1)

    me = Identity("n1", "u1")
    member = Membership(
        store,
        me,
        NodeRecord(me.name, me.uuid),
        [],
        on_joined=slowly,
        says=lambda: {records.usage_key("n1"): b"{}"},
        fence=Fence(str(tmp_path), None, lambda: None),
        opened=True,
        lease=2,
    )
    assert await member.start()
    assert joins == 1
    live = await store.get(records.live_key("n1"))
    assert live is not None
    # What the store said then holds from when this node was last known to be alive, not from when it began
    confirmed = member.state.confirmed
    assert confirmed is not None
    assert confirmed > before + 1
    await member.stop()
    await store.close()


async def test_a_comparison_that_was_asked_for_is_made_once_the_store_is_back(config: Config) -> None:
    store, told = await store_of(config), Told()
    ipam = Ipam(config, store=store, on_blocks=told)
    await ipam.start()
    (block,) = ipam.blocks()
    store.away = True
    ipam.compare_again()
    async with asyncio.timeout(60):
        while not ipam.store().problem:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)
    store.away = False
    key = records.block_key(4, block.prefix)
    stolen = Block(4, block.prefix, "p", "n2", "other")
    await store.transact([], [Delete(key)])
    await store.transact([], [Put(key, records.encode_block(stolen))])
    async with asyncio.timeout(60):
        while block.cidr in told.blocks:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)
    await ipam.stop()
    await store.close()
