"""Automatic reclaim: dead nodes are found by the living, and nobody's block is taken who may still use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.load import check_text
from config.model import Config
from ipam import cluster as cluster_of
from ipam import fence, membership, reclaimer, records
from ipam.errors import FencedError, NodeAliveError
from ipam.records import Block
from ipam.service import Ipam
from ipam.store import Delete, Put
from tests.unit.test_ipam_membership import Flaky
from tests.unit.test_ipam_service import handle

ON = {"lease": 3, "fenceAfter": 10, "reclaimAfter": 100, "quarantine": 1}


class Clock:
    """Seconds since the machine's start; they may jump ahead, as after a suspension."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return fence.boot_clock() + self.ahead


class Cluster:
    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self.directory = directory
        self.stack = stack
        self.clocks: dict[str, Clock] = {}
        self.stores: dict[str, Flaky] = {}
        self.standing: dict[str, int] = {}

    def config(self, name: str, **ipam: Any) -> Config:
        text = yaml.safe_dump(
            {
                "apiVersion": "podroute/v1",
                "node": {"name": name, "as": 65000, "routerId": "10.0.0.1"},
                "stateDir": str(self.directory / name),
                "store": f"sqlite://{self.directory}/store.db",
                "pools": {"p": {"cidr": "10.64.0.0/28", "blockSize": 30}},
                "ipam": {**ON, **ipam},
            }
        )
        report = check_text(text, "f")
        assert report.config is not None, report.problems
        return report.config

    async def start(self, name: str, *, seen: Callable[[Block], str] = lambda _: "", **ipam: Any) -> Ipam:
        if name not in self.stores:
            self.stores[name] = Flaky(str(self.directory / "store.db"))
            await self.stores[name].open()
            self.stack.push_async_callback(self.stores[name].close)
        self.clocks.setdefault(name, Clock())
        self.standing[name] = 0

        def standing() -> None:
            self.standing[name] += 1

        node = Ipam(
            self.config(name, **ipam),
            store=self.stores[name],
            on_standing=standing,
            seen=seen,
            clock=self.clocks[name],
        )
        await node.start()
        self.stack.push_async_callback(node.stop)
        return node

    async def end_lease(self, name: str) -> None:
        """As if its lease had run out."""
        await next(iter(self.stores.values())).transact([], [Delete(records.live_key(name))])

    async def blocks(self) -> dict[str, str]:
        store = next(iter(self.stores.values()))
        listing = await store.list(records.BLOCKS)
        return {block.cidr: block.owner for block in map(records.decode_block, listing.entries)}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "RETRY", 0.01)
    monkeypatch.setattr(reclaimer, "LOOK", 0.01)
    monkeypatch.setattr(fence, "TICK", 0.01)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(tmp_path, stack)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)


async def watched(node: Ipam, name: str) -> None:
    """Return when a node has noticed that another is gone."""
    assert node.reclaimer is not None
    async with asyncio.timeout(60):
        while name not in node.reclaimer.gone:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)


async def test_a_dead_node_is_reclaimed_after_its_time_and_no_earlier(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    one, dead = await cluster.start("n1"), await cluster.start("n2")
    await dead.allocate(handle("a"))
    (block,) = dead.blocks()
    await dead.stop()
    await cluster.end_lease("n2")
    await watched(one, "n2")
    cluster.clocks["n1"].ahead += 50
    await asyncio.sleep(0.1)
    assert (await cluster.blocks())[block.cidr] == "n2"
    cluster.clocks["n1"].ahead += 51

    async def reclaimed() -> bool:
        return (await cluster.blocks()).get(block.cidr) != "n2"

    await until(reclaimed)
    assert "DEAD NODE RECLAIMED: its lease has been gone for long enough" in caplog.messages
    # It comes back, finds its block gone, and says so
    again = await cluster.start("n2")
    assert [lost.prefix for lost in again.lost()] == [block.prefix]
    assert not again.owns(4, block.prefix)
    assert cluster.standing["n2"]
    # Its last container there is deleted: nothing is lost any more
    await again.release(handle("a"))
    assert again.lost() == []


async def test_without_consent_nothing_is_reclaimed(cluster: Cluster) -> None:
    one = await cluster.start("n1")
    dead = await cluster.start("n2", reclaimAfter="never", fenceAfter=None)
    await dead.stop()
    await cluster.end_lease("n2")
    cluster.clocks["n1"].ahead += 10000
    await asyncio.sleep(0.5)
    assert one.reclaimer is not None
    assert not one.reclaimer.gone
    assert "n2" in (await cluster.blocks()).values()


async def test_a_node_that_joined_in_between_counts_from_anew(cluster: Cluster) -> None:
    one, dead = await cluster.start("n1"), await cluster.start("n2")
    await dead.stop()
    await cluster.end_lease("n2")
    await watched(one, "n2")
    watcher = one.reclaimer
    assert watcher is not None
    gone = watcher.gone["n2"]
    # Back and gone again, while nobody looked
    again = await cluster.start("n2")
    await again.stop()
    await cluster.end_lease("n2")
    watcher.gone["n2"] = gone
    cluster.clocks["n1"].ahead += 101

    async def anew() -> bool:
        known = watcher.gone.get("n2")  # out of it while its second life is being looked at
        return known is not None and known.revision != gone.revision

    await until(anew)
    assert "n2" in (await cluster.blocks()).values()
    with pytest.raises(NodeAliveError):
        await cluster_of.reclaim(cluster.stores["n1"], "n2", revision=gone.revision)


async def test_a_block_that_a_peer_still_tells_of_is_not_given_away(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    told = ["peer tor still tells of it"]
    one = await cluster.start("n1", seen=lambda _: told[0])
    dead = await cluster.start("n2")
    await dead.stop()
    await cluster.end_lease("n2")
    await watched(one, "n2")
    cluster.clocks["n1"].ahead += 101

    async def said() -> bool:
        return "dead node not reclaimed yet: its block may be in use" in caplog.messages

    await until(said)
    assert "n2" in (await cluster.blocks()).values()
    told[0] = ""

    async def reclaimed() -> bool:
        return "n2" not in (await cluster.blocks()).values()

    await until(reclaimed)


async def test_a_lender_that_announces_its_block_does_not_keep_a_dead_borrower_alive(cluster: Cluster) -> None:
    loan = records.Loan(bytes((10, 64, 0, 1)), "n2", "u2")
    lent = Block(4, bytes((30, 10, 64, 0, 0)), "p", "n3", "u3", 0, "then", (loan,))
    asked: list[str] = []
    told = ["10.64.0.0/30", "10.64.0.1/32"]

    def seen(block: Block) -> str:
        asked.append(block.cidr)
        return "still told of" if block.cidr in told else ""

    await cluster.start("n1", seen=seen)
    store = cluster.stores["n1"]
    dead = records.NodeRecord("n2", "u2", reclaim_after=100)
    await store.transact(
        [],
        [
            Put(records.node_key("n2"), records.encode_node(dead)),
            Put(records.block_key(4, lent.prefix), records.encode_block(lent)),
        ],
    )
    watcher = reclaimer.Reclaimer(store, "n1", 1, seen, clock=cluster.clocks["n1"])
    watching = asyncio.create_task(watcher.run())
    while "n2" not in watcher.gone:  # noqa: ASYNC110 (nothing tells)
        await asyncio.sleep(0.01)
    cluster.clocks["n1"].ahead += 101
    while not asked:  # noqa: ASYNC110 (nothing tells)
        await asyncio.sleep(0.01)
    assert set(asked) == {"10.64.0.1/32"}
    told.remove("10.64.0.1/32")

    async def returned() -> bool:
        listing = await store.list(records.BLOCKS)
        return not any(records.decode_block(entry).loans for entry in listing.entries)

    await until(returned)
    watching.cancel()


async def test_a_node_that_is_cut_off_is_fenced_and_comes_back_unharmed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await cluster.start("n1")
    (given,) = await node.allocate(handle("a"))
    cluster.stores["n1"].away = True
    # The wall clock has no say: neither ahead nor back
    for jump in (1e9, -1e9):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda jump=jump: 1e9 + jump)
            await asyncio.sleep(0.05)
            assert not node.fenced
            assert await node.allocate(handle(f"jump{jump}"))
    cluster.clocks["n1"].ahead += 11

    async def fenced() -> bool:
        return node.fenced

    await until(fenced)
    assert not any(node.advertised(block) for block in node.blocks())
    with pytest.raises(FencedError, match=r"node n1 is fenced: the store sqlite://.* has not been heard of for 10 s"):
        await node.allocate(handle("b"))
    assert await node.allocate(handle("a")) == [given]
    await node.release(handle("a"))
    cluster.stores["n1"].away = False

    async def lifted() -> bool:
        return not node.fenced

    await until(lifted)
    assert all(node.advertised(block) for block in node.blocks())
    assert await node.allocate(handle("b"))


async def test_with_automatic_reclaim_off_nothing_is_withdrawn_because_of_the_store(cluster: Cluster) -> None:
    node = await cluster.start("n1", reclaimAfter="never", fenceAfter=None)
    cluster.stores["n1"].away = True
    cluster.clocks["n1"].ahead += 1e6
    await asyncio.sleep(0.1)
    assert not node.fenced
    assert await node.allocate(handle("a"))
    assert all(node.advertised(block) for block in node.blocks())


async def test_a_cut_off_node_that_starts_again_is_fenced_from_the_start(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    node = await cluster.start("n1")
    await node.stop()
    cluster.clocks["n1"].ahead += 11
    there = await cluster.start("n1")  # with the store there is nothing to say
    assert not there.fenced
    assert all(there.advertised(block) for block in there.blocks())
    await there.stop()
    assert not any("NODE FENCED" in message for message in caplog.messages)
    cluster.stores["n1"].away = True
    cluster.clocks["n1"].ahead += 11
    again = await cluster.start("n1")
    assert any(message.startswith("NODE FENCED from the start") for message in caplog.messages)
    assert again.fenced
    assert again.blocks()
    assert not any(again.advertised(block) for block in again.blocks())
    with pytest.raises(FencedError):
        await again.allocate(handle("a"))
