"""How blocks come and go: ahead of need, back when idle, up to a limit; and which pools they come from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config import prefix
from config.load import check_text
from config.model import Config
from config.values import RESERVED_NETWORK
from ipam import cluster, records, service
from ipam.errors import AddressInUseError, BlockLimitError, NoPoolError, PoolExhaustedError, PoolInUseError
from ipam.given import Handle
from ipam.pool import Pool
from ipam.quarantine import Running
from ipam.service import Ipam
from ipam.store import Delete
from tests.unit.test_ipam_service import configuration, handle


def configured(tmp_path: Path, pools: Any, **ipam: int) -> Config:
    config = configuration(tmp_path, pools=pools)
    return config.model_copy(update={"ipam": config.ipam.model_copy(update=ipam)})


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)


async def test_the_next_block_is_there_before_it_is_needed(tmp_path: Path) -> None:
    ipam = Ipam(configured(tmp_path, {"p": {"cidr": "10.64.0.0/24", "blockSize": 28}}))
    await ipam.start()
    for number in range(13):
        await ipam.allocate(handle(f"{number}"))
    assert len(ipam.blocks()) == 1
    await ipam.allocate(handle("13"))  # two of sixteen are left
    await until(lambda: len(ipam.blocks()) == 2)
    await ipam.stop()


@pytest.mark.parametrize("size", [30, 31, 32])
async def test_small_blocks_too_are_fetched_ahead(tmp_path: Path, size: int) -> None:
    ipam = Ipam(configured(tmp_path, {"p": {"cidr": "10.64.0.0/24", "blockSize": size}}))
    await ipam.start()
    for number in range((1 << 32 - size) - 1):
        await ipam.allocate(handle(f"{number}"))
    if size == 32:
        await ipam.allocate(handle("only"))
    await until(lambda: len(ipam.blocks()) == 2)
    assert sum(usage.size - usage.used for usage in ipam.usage()) >= 1
    await ipam.stop()


async def test_the_block_size_stays_while_there_are_blocks(tmp_path: Path) -> None:
    config = configured(tmp_path, {"p": {"cidr": "10.64.0.0/24", "blockSize": 28}})
    ipam = Ipam(config)
    await ipam.start()
    (block,) = ipam.blocks()
    text = f"pool p has 1 live blocks \\({block.cidr} of node n1 for one\\), so its block size stays /28"
    with pytest.raises(PoolInUseError, match=text):
        await cluster.change_pool(ipam.shared(), "p", block_size=27)
    await ipam.shared().transact([], [Delete(records.block_key(4, block.prefix))])
    assert (await cluster.change_pool(ipam.shared(), "p", block_size=27)).block_size == 27
    with pytest.raises(PoolInUseError, match=r"blocks of /23 do not fit pool p .*: give 24 to 32"):
        await cluster.change_pool(ipam.shared(), "p", block_size=23)
    await ipam.stop()


async def test_an_idle_block_goes_back_and_one_stays(tmp_path: Path) -> None:
    config = configured(tmp_path, {"p": {"cidr": "10.64.0.0/24", "blockSize": 30}}, idle_after=1)
    ipam = Ipam(config)
    await ipam.start()
    for number in range(9):
        await ipam.allocate(handle(f"{number}"))
    assert len(ipam.blocks()) == 3
    for number in range(9):
        await ipam.release(handle(f"{number}"))
    await until(lambda: len(ipam.blocks()) == 1)
    left = ipam.blocks()
    await ipam.stop()
    again = Ipam(config)
    await again.start()
    assert [block.cidr for block in again.blocks()] == [block.cidr for block in left]
    await again.stop()


async def test_addresses_kept_from_containers_are_counted_apart_and_hold_no_block(tmp_path: Path) -> None:
    """As a plugin on a subnet needs them: network, gateway and broadcast."""
    config = configured(tmp_path, {"p": {"cidr": "10.64.0.0/24", "blockSize": 28}}, idle_after=1)
    ipam = Ipam(config)
    await ipam.start()
    (first,) = ipam.blocks()
    base = 0 if first.cidr != "10.64.0.0/28" else 16
    await ipam.allocate(handle("a"), addresses=[f"10.64.0.{base}"])
    await ipam.allocate(handle("b"), addresses=[first.cidr.partition("/")[0]])
    second = next(block for block in ipam.blocks() if block != first)
    kept = Handle(RESERVED_NETWORK, second.cidr, "gateway")
    await ipam.allocate(kept, addresses=[f"10.64.0.{base + 1}"], families=())
    usage = {one.block.cidr: one for one in ipam.usage()}[second.cidr]
    assert (usage.used, usage.reserved, usage.free) == (1, 1, 14)
    assert sorted(set(ipam.picture(4, second.prefix))) == ["free", "reserved", "used"]
    await ipam.stop()

    again = Ipam(config)
    await again.start()
    usage = {one.block.cidr: one for one in again.usage()}[second.cidr]
    assert (usage.used, usage.reserved, usage.free) == (1, 1, 14)
    await again.release(handle("a"))
    await until(lambda: again.holder(f"10.64.0.{base + 1}") is None)  # nobody has an address of the block any more
    assert [block.cidr for block in again.blocks()] == [first.cidr]
    await again.stop()


async def test_a_limit_is_named_when_it_is_hit(tmp_path: Path) -> None:
    ipam = Ipam(configured(tmp_path, {"p": {"cidr": "10.64.0.0/24", "blockSize": 31}}, blocks_per_node=2))
    await ipam.start()
    for number in range(4):
        await ipam.allocate(handle(f"{number}"))
    with pytest.raises(BlockLimitError) as caught:
        await ipam.allocate(handle("4"))
    assert str(caught.value) == (
        "every address of this node's 2 ipv4 blocks is in use, and ipam.blocksPerNode allows 2: "
        "delete containers, or raise it in the file of node n1"
    )
    await ipam.stop()


async def test_manual_and_disabled_pools(tmp_path: Path) -> None:
    pools = {
        "auto": {"cidr": "10.64.0.0/24"},
        "byhand": {"cidr": "10.65.0.0/24", "manual": True},
        "off": {"cidr": "10.66.0.0/24", "disabled": True},
    }
    ipam = Ipam(configured(tmp_path, pools))
    await ipam.start()
    assert {block.pool for block in ipam.blocks()} == {"auto"}
    assert (await ipam.allocate(handle("a")))[0].pool == "auto"
    assert (await ipam.allocate(handle("b"), pools=["byhand"]))[0].pool == "byhand"
    assert (await ipam.allocate(handle("c"), addresses=["10.65.0.9"]))[0].address == "10.65.0.9"
    with pytest.raises(NoPoolError, match="pool off is disabled, and no other ipv4 pool serves node n1"):
        await ipam.allocate(handle("d"), pools=["off"])
    await ipam.stop()


async def test_reserved_addresses_go_to_who_asks_for_them_only(tmp_path: Path) -> None:
    pools = {"p": {"cidr": "10.64.0.0/29", "blockSize": 30, "reservations": ["10.64.0.0/30", "10.64.0.5/32"]}}
    ipam = Ipam(configured(tmp_path, pools), cool_down=0)
    await ipam.start()
    assert [block.cidr for block in ipam.blocks()] == ["10.64.0.4/30"]
    given = {(await ipam.allocate(handle(name)))[0].address for name in "abc"}
    assert given == {"10.64.0.4", "10.64.0.6", "10.64.0.7"}
    with pytest.raises(PoolExhaustedError):
        await ipam.allocate(handle("d"))
    assert (await ipam.allocate(handle("d"), addresses=["10.64.0.5"]))[0].address == "10.64.0.5"
    await ipam.release(handle("d"))
    with pytest.raises(PoolExhaustedError):
        await ipam.allocate(handle("e"))
    assert (await ipam.allocate(handle("f"), addresses=["10.64.0.2"]))[0].address == "10.64.0.2"
    await ipam.stop()


def lose_ledger(directory: Path) -> None:
    for file in directory.glob(service.LEDGER_FILE + "*"):
        file.unlink()


async def test_a_lost_ledger_gives_no_address_of_a_running_container(tmp_path: Path) -> None:
    config = configured(tmp_path, {"p": {"cidr": "10.64.0.0/29", "blockSize": 29}})
    ipam = Ipam(config)
    await ipam.start()
    given = [(await ipam.allocate(handle(name)))[0] for name in "abc"]
    await ipam.stop()
    lose_ledger(Path(config.state_dir))

    def running() -> list[Running]:
        return [Running(4, one.prefix, f"veth{number}") for number, one in enumerate(given)]

    again = Ipam(config, running=running)
    await again.start()
    others = {(await again.allocate(handle(name)))[0].address for name in "defgh"}
    assert not others & {one.address for one in given}
    with pytest.raises(AddressInUseError, match="in use by quarantine/veth0/unknown"):
        await again.allocate(handle("i"), addresses=[given[0].address])
    kept = [one for one in await again.attachments() if one.attributes.get("quarantine")]
    assert {one.attributes["hostInterface"] for one in kept} == {"veth0", "veth1", "veth2"}
    await again.stop()


def test_wholly_reserved_blocks_count_as_taken() -> None:
    pool = Pool.parse("p", "10.64.0.0/28", 30, reservations=["10.64.0.4/30"])
    assert pool.first_free(0, 4, ()) == 0
    assert pool.first_free(1, 4, ()) == 2
    first, last = 0x0A400004, 0x0A400007
    assert list(pool.reserved(first, last)) == [first, first + 1, first + 2, last]
    assert prefix.text(4, pool.block(1)) == "10.64.0.4/30"


def test_a_reservation_outside_of_its_pool_is_refused() -> None:
    text = (
        "apiVersion: podroute/v1\nnode: {name: n1, as: 65000, routerId: 10.0.0.1}\n"
        "pools: {p: {cidr: 10.64.0.0/16, reservations: [10.65.0.0/28]}}\n"
    )
    (problem,) = check_text(text, "f").problems
    assert problem.render("f") == (
        "f:pools.p.reservations[0]: is 10.65.0.0/28, must be a part of the pool, 10.64.0.0/16"
    )
