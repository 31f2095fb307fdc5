from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.load import check_text
from config.model import Config
from config.prefix import Family
from ipam import cluster, records
from ipam.errors import (
    AddressInUseError,
    AddressNotInPoolError,
    IpamError,
    LedgerCorruptError,
    NameTakenError,
    NoPoolError,
    NotRunningError,
    PoolConflictError,
    PoolExhaustedError,
    StateInUseError,
    StoreCorruptError,
    StoreUnavailableError,
)
from ipam.given import Assignment, Handle
from ipam.keeper import BlockKeeper
from ipam.records import Block
from ipam.service import Ipam
from ipam.sqlite_store import SqliteStore
from ipam.store import Choice, Condition, Delete, Outcome, Put, Range, Write

DUAL = {"pods4": {"cidr": "10.64.0.0/22"}, "pods6": {"cidr": "fd00:64::/112"}}
TINY = {"pods4": {"cidr": "10.64.0.0/30", "blockSize": 31}}


def configuration(tmp_path: Path, name: str = "n1", pools: Any = None, **more: Any) -> Config:
    text = yaml.safe_dump(
        {
            "apiVersion": "podroute/v1",
            "node": {"name": name, "as": 65000, "routerId": "10.0.0.1", **more},
            "stateDir": str(tmp_path / name),
            "store": f"sqlite://{tmp_path}/store.db",
            "pools": DUAL if pools is None else pools,
        },
        sort_keys=False,
    )
    report = check_text(text, "f")
    assert report.config is not None, report.problems
    return report.config


def handle(name: str) -> Handle:
    return Handle("net", name, "eth0")


def texts(assignments: Sequence[Assignment]) -> list[str]:
    return [assignment.address for assignment in assignments]


class Log:
    def __init__(self) -> None:
        self.granted: list[Block] = []

    def __call__(self, granted: Sequence[Block], released: Sequence[Block]) -> None:
        assert not released
        self.granted += granted


Start = Callable[..., Awaitable[Ipam]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start nodes that stop when the test ends."""
    async with AsyncExitStack() as stack:

        async def begin(name: str = "n1", pools: Any = None, **options: Any) -> Ipam:
            labels = {"labels": options.pop("labels")} if "labels" in options else {}
            ipam = Ipam(configuration(tmp_path, name, pools, **labels), **options)
            await ipam.start()
            stack.push_async_callback(ipam.stop)
            return ipam

        yield begin


async def test_a_node_starts_with_a_block_per_family(start: Start) -> None:
    seen = Log()
    ipam = await start(on_blocks=seen)
    assert [(block.family, block.pool, block.owner) for block in ipam.blocks()] == [
        (4, "pods4", "n1"),
        (6, "pods6", "n1"),
    ]
    assert seen.granted == ipam.blocks()
    assert all(block.generation > 0 and block.uuid == ipam.identity.uuid for block in ipam.blocks())
    assert [(usage.used, usage.size) for usage in ipam.usage()] == [(0, 64), (0, 64)]
    assert [pool.name for pool in ipam.pools()] == ["pods4", "pods6"]
    assert ipam.lost() == []


async def test_a_container_gets_one_address_per_family(start: Start) -> None:
    ipam = await start()
    four, six = await ipam.allocate(handle("a"), attributes={"netns": "/run/netns/a"})
    assert (four.family, six.family, four.pool, six.pool) == (4, 6, "pods4", "pods6")
    assert [four.block, six.block] == [block.prefix for block in ipam.blocks()]
    assert four.prefix[0] == 32
    assert six.prefix[0] == 128
    found = await ipam.lookup(handle("a"))
    assert found is not None
    assert found.assignments == (four, six)
    assert found.attributes == {"netns": "/run/netns/a"}
    assert await ipam.attachments() == [found]
    assert await ipam.lookup(handle("b")) is None


async def test_the_same_handle_gets_the_same_again(start: Start) -> None:
    ipam = await start()
    first = await ipam.allocate(handle("a"), attributes={"try": 1})
    assert await ipam.allocate(handle("a"), attributes={"try": 2}) == first
    assert await ipam.allocate(handle("a")) == first
    found = await ipam.lookup(handle("a"))
    assert found is not None
    assert found.attributes == {"try": 2}
    together = await asyncio.gather(*(ipam.allocate(handle("b")) for _ in range(8)))
    assert all(one == together[0] for one in together)
    assert [usage.used for usage in ipam.usage()] == [2, 2]


async def test_release(start: Start) -> None:
    ipam = await start()
    first = await ipam.allocate(handle("a"))
    assert await ipam.release(handle("a")) == first
    assert await ipam.release(handle("a")) == []
    assert await ipam.attachments() == []
    assert [usage.used for usage in ipam.usage()] == [0, 0]
    assert texts(await ipam.allocate(handle("b"))) != texts(first)


async def test_an_allocation_and_a_release_of_one_handle_keep_their_order(start: Start) -> None:
    ipam = await start()
    first, released, second = await asyncio.gather(
        ipam.allocate(handle("a")), ipam.release(handle("a")), ipam.allocate(handle("a"))
    )
    assert released == first
    assert second != first
    assert texts((await ipam.attachments())[0].assignments) == texts(second)


async def test_a_cancelled_allocation_still_happens_and_can_be_released(start: Start) -> None:
    ipam = await start()
    task = asyncio.ensure_future(ipam.allocate(handle("a")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(await ipam.release(handle("a"))) == 2
    assert [usage.used for usage in ipam.usage()] == [0, 0]


async def test_one_family_on_demand_and_families_without_a_pool(start: Start) -> None:
    ipam = await start(pools={"pods4": {"cidr": "10.64.0.0/22"}})
    four: list[Family] = [4]
    both: list[Family] = [4, 6]
    assert len(await ipam.allocate(handle("a"), families=four)) == 1
    assert len(await ipam.allocate(handle("b"))) == 1
    with pytest.raises(NoPoolError) as caught:
        await ipam.allocate(handle("c"), families=both)
    assert str(caught.value) == "no ipv6 pool serves node n1: add one to `pools`, or check its `nodes`"
    assert [usage.used for usage in ipam.usage()] == [2]
    with pytest.raises(NoPoolError, match="no ipv4 pool among x, y serves node n1"):
        await ipam.allocate(handle("c"), pools=["x", "y"])


async def test_a_node_without_pools(start: Start) -> None:
    ipam = await start(pools={})
    assert ipam.blocks() == []
    with pytest.raises(NoPoolError) as caught:
        await ipam.allocate(handle("a"))
    assert str(caught.value) == "no pool serves node n1: add one to `pools`, or check its `nodes`"
    assert not caught.value.retry


async def test_pools_by_label_and_by_name(start: Start) -> None:
    pools = {
        "mine": {"cidr": "10.1.0.0/24", "nodes": {"rack": "r1"}},
        "theirs": {"cidr": "10.2.0.0/24", "nodes": {"rack": "r2"}},
        "extra": {"cidr": "10.3.0.0/24"},
    }
    ipam = await start(pools=pools, labels={"rack": "r1"})
    assert [pool.name for pool in ipam.pools()] == ["mine", "extra"]
    assert [block.pool for block in ipam.blocks()] == ["mine"]
    (chosen,) = await ipam.allocate(handle("a"), pools=["extra"])
    assert chosen.pool == "extra"
    assert [block.pool for block in ipam.blocks()] == ["mine", "extra"]
    other = await start("n2", pools=pools, labels={"rack": "r2"})
    assert [pool.name for pool in other.pools()] == ["theirs", "extra"]


async def test_pools_that_another_node_brought_serve_too(start: Start) -> None:
    await start()
    ipam = await start("n2", pools={})
    assert [pool.name for pool in ipam.pools()] == ["pods4", "pods6"]
    assert len(await ipam.allocate(handle("a"))) == 2


async def test_further_blocks_are_claimed_when_the_owned_ones_are_full(start: Start) -> None:
    seen = Log()
    ipam = await start(pools={"pods4": {"cidr": "10.64.0.0/24", "blockSize": 30}}, on_blocks=seen)
    given = await asyncio.gather(*(ipam.allocate(handle(f"{n}")) for n in range(10)))
    assert len({address for one in given for address in texts(one)}) == 10
    assert len(seen.granted) == len(ipam.blocks()) == 3


async def settled(ipam: Ipam) -> None:
    while ipam.keeper.busy:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_what_is_lacking(start: Start) -> None:
    one = await start(pools=TINY)
    assert one.lacking(full=True) == ""
    assert one.lacking(["gone"], full=True) == "no ipv4 pool among gone serves node n1: add one to `pools`, or " + (
        "check its `nodes`"
    )
    for name in "abcd":
        await one.allocate(handle(name))
    one.lacking(full=True)  # another block is looked for
    await settled(one)
    assert "pool pods4 (10.64.0.0/30, 2 blocks of /31) is exhausted" in one.lacking(full=True)
    assert one.lacking(full=False) == ""
    two = await start(name="n2", pools=TINY)
    assert "is exhausted: every block is claimed" in two.lacking(full=False), "it never had one"
    await settled(two)

    await one.release(handle("a"))
    assert one.lacking(full=True) == ""
    for name in "bcd":
        await one.release(handle(name))
    await one.keeper.give_back_idle(4, 0.0, 0.0)
    await one.keeper.give_back_idle(4, 1.0, 0.0)
    assert len(one.blocks()) == 1
    two.lacking(full=False)  # no container is sent to a node that says so: asking is what finds the block
    await settled(two)
    assert two.lacking(full=True) == ""


async def test_a_full_pool(start: Start) -> None:
    ipam = await start(pools=TINY)
    for name in "abcd":
        await ipam.allocate(handle(name))
    with pytest.raises(PoolExhaustedError) as caught:
        await ipam.allocate(handle("e"))
    assert str(caught.value) == (
        "pool pods4 (10.64.0.0/30, 2 blocks of /31) is exhausted: every block is claimed, and all 4 addresses of the 2 "
        "that node n1 owns are in use; delete containers, or add a pool"
    )
    assert (caught.value.code, caught.value.retry) == ("pool-exhausted", True)
    gone = await ipam.release(handle("b"))
    assert await ipam.allocate(handle("e")) == gone  # without a rest, as there is no other


async def test_a_pool_without_a_free_block_is_no_reason_not_to_start(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    first = await start(pools=TINY)
    await asyncio.gather(*(first.allocate(handle(name)) for name in "abc"))
    second = await start("n2", pools=TINY)
    assert second.blocks() == []
    assert {record.getMessage() for record in caplog.records if record.levelno == logging.WARNING} == {"no free block"}
    with pytest.raises(PoolExhaustedError, match="all 0 addresses of the 0 that node n2 owns"):
        await second.allocate(handle("x"))


async def test_both_families_or_none(start: Start) -> None:
    ipam = await start(pools={**DUAL, "pods6": {"cidr": "fd00:64::/127", "blockSize": 127}})
    await ipam.allocate(handle("a"))
    await ipam.allocate(handle("b"))
    with pytest.raises(PoolExhaustedError, match="pool pods6"):
        await ipam.allocate(handle("c"))
    assert [usage.used for usage in ipam.usage()] == [2, 2]
    four: list[Family] = [4]
    assert len(await ipam.allocate(handle("c"), families=four)) == 1
    assert [usage.used for usage in ipam.usage()] == [3, 2]


async def test_released_addresses_come_back_last(start: Start) -> None:
    ipam = await start(pools={"pods4": {"cidr": "10.64.0.0/29", "blockSize": 29}}, cool_down=0)
    given = [texts(await ipam.allocate(handle(f"{n}")))[0] for n in range(3)]
    for n in (1, 0):
        await ipam.release(handle(f"{n}"))
    again = [texts(await ipam.allocate(handle(f"x{n}")))[0] for n in range(7)]
    assert not set(again[:5]) & set(given)
    assert again[5:] == [given[1], given[0]]


async def test_coming_and_going_does_not_collect_blocks(start: Start) -> None:
    ipam = await start(pools={"pods4": {"cidr": "10.64.0.0/24", "blockSize": 30}}, cool_down=3600)
    for n in range(30):
        await ipam.allocate(handle(f"{n}"))
        await ipam.release(handle(f"{n}"))
    assert len(ipam.blocks()) == 1


async def test_a_crowded_block_is_helped_out_rather_than_an_address_given_at_once(start: Start) -> None:
    ipam = await start(pools={"pods4": {"cidr": "10.64.0.0/24", "blockSize": 30}}, cool_down=3600)
    given = [texts(await ipam.allocate(handle(f"{n}")))[0] for n in range(4)]
    await ipam.release(handle("0"))
    assert texts(await ipam.allocate(handle("x")))[0] not in given
    assert len(ipam.blocks()) == 2


async def test_certain_addresses(start: Start) -> None:
    ipam, other = await start(), await start("n2")
    block = ipam.blocks()[0]
    wanted = next(f"10.64.{third}.7" for third in range(4) if f"10.64.{third}.0/26" != block.cidr)
    four, six = await ipam.allocate(handle("a"), addresses=[wanted])
    assert four.address == wanted
    assert six.family == 6
    assert len(ipam.blocks()) == 3
    with pytest.raises(AddressInUseError) as caught:
        await ipam.allocate(handle("b"), addresses=[wanted])
    assert str(caught.value) == f"address {wanted} is in use by net/a/eth0"
    with pytest.raises(AddressInUseError) as caught:
        await other.allocate(handle("b"), addresses=[wanted])
    assert str(caught.value) == (
        f"address {wanted} cannot be had here: block {wanted[:-1]}0/26 of pool pods4 belongs to node n1, not to n2"
    )
    with pytest.raises(AddressNotInPoolError) as not_in:
        await ipam.allocate(handle("b"), addresses=["192.0.2.1"])
    assert str(not_in.value) == "address 192.0.2.1 is in no pool that serves this node: pods4 (10.64.0.0/22)"
    with pytest.raises(AddressNotInPoolError, match='"eth0" is no IPv4 or IPv6 address'):
        await ipam.allocate(handle("b"), addresses=["eth0"])
    await ipam.release(handle("a"))
    assert texts(await ipam.allocate(handle("b"), addresses=[wanted]))[0] == wanted
    together = [ipam.allocate(handle(name), addresses=[six.address]) for name in "cd"]
    results = await asyncio.gather(*together, return_exceptions=True)
    (refused,) = [str(result) for result in results if isinstance(result, BaseException)]
    assert refused in (
        f"address {six.address} is in use by a request that is under way",
        f"address {six.address} is in use by net/c/eth0",
    )


async def test_everything_is_there_after_a_restart(start: Start, tmp_path: Path) -> None:
    ipam = await start()
    given = {name: await ipam.allocate(handle(name), attributes={"name": name}) for name in "abc"}
    await ipam.release(handle("b"))
    blocks = ipam.blocks()
    await ipam.stop()
    seen = Log()
    again = await start(on_blocks=seen)
    assert again.blocks() == seen.granted == blocks
    assert {one.handle.container_id: list(one.assignments) for one in await again.attachments()} == {
        "a": given["a"],
        "c": given["c"],
    }
    assert texts(await again.allocate(handle("d"))) not in [texts(one) for one in given.values()]


async def test_a_node_that_leaves_gives_everything_back(start: Start, tmp_path: Path) -> None:
    other, ipam = await start("n2"), await start()
    await ipam.allocate(handle("a"))
    await ipam.release(handle("a"))
    await ipam.stop(leave=True)
    keys = [entry.key for entry in (await other.shared().list(Range.below(f"{records.ROOT}/"))).entries]
    assert not [key for key in keys if key.endswith("/n1")]
    assert sorted(block.owner for block in await cluster.blocks(other.shared())) == ["n2", "n2"]
    again = await start()
    assert len(again.blocks()) == 2, "others, or the same: it starts as one that was never there"


async def test_a_node_that_leaves_with_containers_keeps_their_blocks_and_can_be_reclaimed(start: Start) -> None:
    other, ipam = await start("n2"), await start()
    given = await ipam.allocate(handle("a"))
    blocks = [block.prefix for block in ipam.blocks()]
    await ipam.stop(leave=True)
    assert {block.prefix for block in await cluster.blocks(other.shared())} >= set(blocks)
    again = await start()
    assert await again.allocate(handle("a")) == given
    await again.stop(leave=True)
    assert {block.prefix for block in await cluster.reclaim(other.shared(), "n1", quarantine=1)} == set(blocks)


async def test_stopped_means_stopped(start: Start) -> None:
    ipam = await start()
    under_way = [asyncio.ensure_future(ipam.allocate(handle(f"{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    await ipam.stop()
    results = await asyncio.gather(*under_way, return_exceptions=True)
    assert all(isinstance(result, (list, NotRunningError)) for result in results)
    with pytest.raises(NotRunningError):
        await ipam.allocate(handle("late"))
    again = await start()
    assert len(await again.attachments()) == sum(isinstance(result, list) for result in results)


async def test_a_second_agent_on_the_same_state_is_refused_and_the_first_goes_on(start: Start) -> None:
    ipam = await start()
    with pytest.raises(StateInUseError):
        await start()
    assert len(await ipam.allocate(handle("a"))) == 2


async def test_a_second_node_under_the_same_name_is_refused(start: Start, tmp_path: Path) -> None:
    ipam = await start()
    clone = configuration(tmp_path).model_copy(update={"state_dir": str(tmp_path / "clone")})
    second = Ipam(clone)
    with pytest.raises(NameTakenError) as caught:
        await second.start()
    assert ipam.identity.uuid in str(caught.value)
    assert second.identity.uuid in str(caught.value)
    assert second.identity.uuid != ipam.identity.uuid
    await ipam.stop()
    with pytest.raises(NameTakenError):
        await Ipam(clone).start()


async def test_a_start_that_fails_leaves_nothing_open(start: Start, tmp_path: Path) -> None:
    await start("n2")
    failing = Ipam(configuration(tmp_path, pools={"pods4": {"cidr": "10.64.0.0/22", "blockSize": 27}}))
    for _ in range(2):
        with pytest.raises(PoolConflictError):
            await failing.start()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PoolConflictError):
        await failing.start()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_corrupt_files_keep_a_node_from_starting(start: Start, tmp_path: Path) -> None:
    (tmp_path / "n1").mkdir()
    ledger = tmp_path / "n1" / "ledger.db"
    ledger.write_bytes(b"x" * 5000)
    with pytest.raises(LedgerCorruptError, match="containers that run keep their addresses"):
        await start()
    ledger.unlink()
    (tmp_path / "store.db").write_bytes(b"x" * 5000)
    with pytest.raises(StoreCorruptError, match="stop the agents that share it"):
        await start()


async def test_a_store_that_was_lost_gets_the_blocks_back(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ipam = await start()
    given = await ipam.allocate(handle("a"))
    blocks = ipam.blocks()
    await ipam.stop()
    for name in os.listdir(tmp_path):
        if name.startswith("store.db"):
            os.unlink(tmp_path / name)
    again = await start()
    assert [block.prefix for block in again.blocks()] == [block.prefix for block in blocks]
    assert await again.allocate(handle("a")) == given
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "block was missing in the store and is claimed again"
    ] * 2


async def test_a_lost_ledger_is_said_aloud(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ipam = await start()
    await ipam.allocate(handle("a"))
    await ipam.stop()
    os.unlink(tmp_path / "n1" / "ledger.db")
    again = await start()
    assert len(again.blocks()) == 2
    (error,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert error.startswith("the ledger is empty though this node owns blocks")


async def test_a_block_that_went_to_another_node_is_not_used(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pools = {"pods4": {"cidr": "10.64.0.0/24"}}
    ipam = await start(pools=pools)
    (given,) = await ipam.allocate(handle("a"))
    (block,) = ipam.blocks()
    await ipam.stop()
    store = SqliteStore(str(tmp_path / "store.db"))
    await store.open()
    key = records.block_key(4, block.prefix)
    theirs = Block(4, block.prefix, "pods4", "n2", "their-uuid", 0, "then")
    await store.transact([], [Delete(key), Put(key, records.encode_block(theirs))])
    await store.close()
    again = await start(pools=pools)
    assert [one.prefix for one in again.lost()] == [block.prefix]
    assert block.prefix not in [one.prefix for one in again.blocks()]
    assert any("was lost: block" in record.getMessage() for record in caplog.records)
    assert texts(await again.allocate(handle("a"))) == [given.address]  # it has it, for better or worse
    assert (await again.allocate(handle("b")))[0].block != block.prefix
    assert await again.release(handle("a")) == [given]


class Flaky(SqliteStore):
    """A store that stops answering, before or after it has done what was asked."""

    broken = ""

    async def transact(
        self,
        conditions: Sequence[Condition],
        writes: Sequence[Write],
        otherwise: Sequence[Range] = (),
        choices: Sequence[Choice] = (),
    ) -> Outcome:
        if self.broken == "before":
            raise StoreUnavailableError("no answer")
        outcome = await super().transact(conditions, writes, otherwise, choices)
        if self.broken == "after" and outcome.committed:
            raise StoreUnavailableError("no answer")
        return outcome


async def test_a_store_that_is_away_is_not_missed_until_the_blocks_are_full(start: Start, tmp_path: Path) -> None:
    store = Flaky(str(tmp_path / "store.db"))
    await store.open()
    ipam = await start(pools={"pods4": {"cidr": "10.64.0.0/24", "blockSize": 30}}, store=store)
    store.broken = "before"
    given = [texts(await ipam.allocate(handle(f"{n}")))[0] for n in range(4)]
    with pytest.raises(StoreUnavailableError) as caught:
        await ipam.allocate(handle("x"))
    assert str(caught.value) == "this node's ipv4 block is full and no other one can be claimed: no answer"
    assert caught.value.retry
    await ipam.release(handle("2"))
    assert texts(await ipam.allocate(handle("y"))) == [given[2]]
    store.broken = ""
    assert len(await ipam.allocate(handle("x"))) == 1
    assert len(ipam.blocks()) == 2
    await ipam.stop()
    await store.close()


@pytest.mark.parametrize("restart", [False, True])
async def test_a_claim_whose_answer_is_lost_is_not(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    monkeypatch.setattr(BlockKeeper, "look_ahead", lambda *_: None)  # the claim is to be the caller's
    store = Flaky(str(tmp_path / "store.db"))
    await store.open()
    pools = {"pods4": {"cidr": "10.64.0.0/24", "blockSize": 30}}
    ipam = await start(pools=pools, store=store)
    for n in range(4):
        await ipam.allocate(handle(f"{n}"))
    store.broken = "after"
    with pytest.raises(StoreUnavailableError):
        await ipam.allocate(handle("x"))
    assert len(ipam.blocks()) == 1
    store.broken = ""
    if restart:
        await ipam.stop()
        ipam = await start(pools=pools, store=store)
    await ipam.allocate(handle("x"))
    assert len(ipam.blocks()) == 2
    assert len((await store.list(records.BLOCKS)).entries) == 2
    await ipam.stop()
    await store.close()


async def test_a_failing_ledger_gives_nothing_away(start: Start) -> None:
    ipam = await start()
    with pytest.raises(IpamError, match="cannot hold this"):
        await ipam.allocate(handle("\ud800"))
    with pytest.raises(TypeError):
        await ipam.allocate(handle("a"), attributes={"x": object()})
    assert [usage.used for usage in ipam.usage()] == [0, 0]
    first = await ipam.allocate(handle("b"))
    assert ip_address(first[0].address).packed[-1] % 64 == 0


def test_every_error_has_a_code_of_its_own() -> None:
    codes: list[str] = []
    classes = [IpamError]
    while classes:
        one = classes.pop()
        codes.append(one.code)
        classes += one.__subclasses__()
    assert len(codes) == len(set(codes))


async def test_blocks_of_a_pool_that_serves_the_node_no_more_are_not_announced_where_the_pool_is_not(
    start: Start,
) -> None:
    pools = {"p": {"cidr": "10.64.0.0/16", "blockSize": 26, "nodes": {"rack": "r1"}, "notAdvertised": True}}
    ipam = await start(pools=pools, labels={"rack": "r1"})
    await ipam.allocate(handle("c"))
    await ipam.stop()
    moved = await start(pools=pools, labels={"rack": "r2"})
    (block,) = moved.blocks()
    assert moved.pools() == []
    assert not moved.advertised(block)
