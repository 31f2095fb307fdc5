"""Borrowing: a node with a full pool gets single addresses of another, which never hands them out meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.load import check_text
from config.model import Config
from ipam import cluster, ledger, loans, membership, records
from ipam.errors import LedgerError, NewerStateError, NotRunningError, PoolExhaustedError, StoreUnavailableError
from ipam.given import Handle
from ipam.records import Block
from ipam.service import Ipam
from ipam.store import Delete, Entry
from tests.unit.test_ipam_crash import sound, text
from tests.unit.test_ipam_membership import Flaky
from tests.unit.test_ipam_service import handle

POOLS = {"p": {"cidr": "10.64.0.0/29", "blockSize": 30}}


class Told:
    def __init__(self) -> None:
        self.blocks: set[str] = set()

    def __call__(self, granted: Sequence[Block], released: Sequence[Block]) -> None:
        self.blocks |= {block.cidr for block in granted}
        self.blocks -= {block.cidr for block in released}


class Pair:
    """Nodes n1 and n2 that share a pool of two blocks of four addresses."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self.directory = directory
        self.stack = stack
        self.stores: dict[str, Flaky] = {}
        self.told: dict[str, Told] = {}

    def config(self, name: str, **ipam: Any) -> Config:
        settings = yaml.safe_dump({"ipam": {"borrowing": True, **ipam}})
        report = check_text(text(self.directory, name, POOLS) + settings, "f")
        assert report.config is not None, report.problems
        return report.config

    async def start(self, name: str, **ipam: Any) -> Ipam:
        if name not in self.stores:
            self.stores[name] = Flaky(str(self.directory / "store.db"))
            await self.stores[name].open()
            self.stack.push_async_callback(self.stores[name].close)
        self.told[name] = Told()
        config = self.config(name, **ipam)
        node = Ipam(config, store=self.stores[name], on_blocks=self.told[name], cool_down=0)
        await node.start()
        self.stack.push_async_callback(node.stop)
        return node

    async def records(self) -> list[Block]:
        return await cluster.blocks(self.stores["n1"])

    async def loans(self) -> dict[str, str]:
        """Return who uses which borrowed address, as the block records have it."""
        return {loan.packed.hex(): loan.node for block in await self.records() for loan in block.loans}

    async def until_loans(self, wanted: dict[str, str]) -> None:
        async with asyncio.timeout(60):
            while await self.loans() != wanted:  # noqa: ASYNC110 (nothing tells)
                await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "RETRY", 0.01)
    monkeypatch.setattr(loans, "PATIENCE", 10.0)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        yield Pair(tmp_path, stack)


async def fill(node: Ipam, prefix: str, count: int) -> list[str]:
    return [(await node.allocate(handle(f"{prefix}{number}")))[0].address for number in range(count)]


def lent_by(node: Ipam) -> list[str]:
    return [one.ifname for one in node.ledger.by_handle if one.network == loans.NETWORK]


async def settled(node: Ipam, lent: list[str]) -> None:
    async with asyncio.timeout(60):
        while lent_by(node) != lent:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.02)


async def test_an_address_is_borrowed_and_returned(pair: Pair) -> None:
    lender, borrower = await pair.start("n1"), await pair.start("n2")
    own = await fill(borrower, "own", 4)
    (loan,) = await borrower.allocate(handle("x"))
    assert loan.address not in own
    (theirs,) = lender.blocks()
    assert loan.address.startswith("10.64.0.")
    assert await pair.loans() == {loan.packed.hex(): "n2"}
    assert lent_by(lender) == [loan.address]
    # Its user announces it, the lender announces its block
    assert f"{loan.address}/32" in pair.told["n2"].blocks
    assert pair.told["n1"].blocks == {theirs.cidr}
    assert [one.packed for one in lender.blocks()[0].loans] == [loan.packed]
    sound([lender, borrower], await pair.records(), whole=True)
    # The lender has three left, and never hands out the fourth
    rest = await fill(lender, "l", 3)
    assert len({*rest, *own, loan.address}) == 8
    for node in (lender, borrower):
        with pytest.raises(PoolExhaustedError):
            await node.allocate(handle("none"))
    # A borrowed address is as good as any other: the same handle gets it again
    assert await borrower.allocate(handle("x")) == [loan]
    await borrower.release(handle("x"))
    await pair.until_loans({})
    assert f"{loan.address}/32" not in pair.told["n2"].blocks
    await settled(lender, [])
    assert (await lender.allocate(handle("again")))[0].address == loan.address
    sound([lender, borrower], await pair.records(), whole=True)


async def test_without_borrowing_nobody_asks_and_nobody_lends(pair: Pair) -> None:
    await pair.start("n1", borrowing=False)
    borrower = await pair.start("n2")
    await fill(borrower, "own", 4)
    with pytest.raises(PoolExhaustedError):
        await borrower.allocate(handle("x"))
    await borrower.stop()
    assert await pair.loans() == {}


async def test_a_loan_survives_restarts_of_both_also_without_the_store(pair: Pair) -> None:
    lender, borrower = await pair.start("n1"), await pair.start("n2")
    own = await fill(borrower, "own", 4)
    (loan,) = await borrower.allocate(handle("x"))
    await lender.stop()
    await borrower.stop()
    pair.stores["n1"].away = pair.stores["n2"].away = True
    lender, borrower = await pair.start("n1"), await pair.start("n2")
    assert f"{loan.address}/32" in pair.told["n2"].blocks
    assert await borrower.allocate(handle("x")) == [loan]
    assert loan.address not in await fill(lender, "l", 3)
    # Released without the store it stays on loan, for the next container here
    await borrower.release(handle("x"))
    with pytest.raises(StoreUnavailableError):
        await lender.allocate(handle("none"))
    pair.stores["n1"].away = pair.stores["n2"].away = False
    await pair.until_loans({})
    await settled(lender, [])
    assert len(own) == 4


async def test_a_lost_ledger_does_not_make_the_lender_forget(pair: Pair) -> None:
    lender, borrower = await pair.start("n1"), await pair.start("n2")
    await fill(borrower, "own", 4)
    (loan,) = await borrower.allocate(handle("x"))
    await lender.stop()
    for file in (pair.directory / "n1").glob("ledger.db*"):
        file.unlink()
    lender = await pair.start("n1")
    assert lent_by(lender) == [loan.address]
    assert loan.address not in await fill(lender, "l", 3)


async def test_a_dead_lender_is_reclaimed_and_the_address_stays_with_its_user(pair: Pair) -> None:
    lender, borrower = await pair.start("n1"), await pair.start("n2")
    await fill(borrower, "own", 4)
    (loan,) = await borrower.allocate(handle("x"))
    (theirs,) = lender.blocks()
    await lender.stop()
    # Dead or not, the loan holds
    assert await borrower.allocate(handle("x")) == [loan]
    await pair.stores["n2"].transact([], [Delete(records.live_key("n1"))])
    await cluster.reclaim(pair.stores["n2"], "n1", quarantine=1)
    (rests,) = [block for block in await pair.records() if block.prefix == theirs.prefix]
    assert (rests.owner, rests.uuid) == ("n1 (reclaimed)", "")
    await asyncio.sleep(1.2)  # the quarantine is over, and yet the block is nobody's while one address is in use
    borrower.compare_again()
    assert await borrower.allocate(handle("x")) == [loan]
    assert await pair.loans() == {loan.packed.hex(): "n2"}
    with pytest.raises(PoolExhaustedError):
        await borrower.allocate(handle("y"))
    # The lender is back, without that block: it frees what it had lent
    back = await pair.start("n1")
    assert back.blocks() == []
    await settled(back, [])
    assert back.lost() == []  # no container of its own was there
    await borrower.release(handle("x"))
    await pair.until_loans({})
    (rests,) = [block for block in await pair.records() if block.prefix == theirs.prefix]
    assert rests.uuid == ""


async def test_a_dead_borrower_returns_everything_by_being_reclaimed(pair: Pair) -> None:
    lender, borrower = await pair.start("n1"), await pair.start("n2")
    await fill(borrower, "own", 4)
    (loan,) = await borrower.allocate(handle("x"))
    await borrower.stop()
    await pair.stores["n1"].transact([], [Delete(records.live_key("n2"))])
    await cluster.reclaim(pair.stores["n1"], "n2", quarantine=60)
    assert await pair.loans() == {}
    assert lender.keeper.lender is not None
    await lender.keeper.lender.settle()
    assert lent_by(lender) == []
    # It comes back: the address is not its own any more
    again = await pair.start("n2")
    assert {lost.prefix for lost in again.lost()} >= {loan.prefix}
    assert pair.told["n2"].blocks == set()


async def test_a_lender_that_does_not_answer_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    lender, borrower = await pair.start("n1"), await pair.start("n2")
    await fill(borrower, "own", 4)
    await lender.stop()  # its offer stands until its lease ends
    with monkeypatch.context() as hasty:
        hasty.setattr(loans, "PATIENCE", 0.5)
        with pytest.raises(PoolExhaustedError):
            await borrower.allocate(handle("x"))
    left = await pair.stores["n2"].list(records.requests_to("n1"))
    assert left.entries == ()
    lender = await pair.start("n1")
    assert await borrower.allocate(handle("x"))


async def test_a_node_that_stops_does_not_wait_for_a_lender(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loans, "PATIENCE", 60.0)
    lender, borrower = await pair.start("n1"), await pair.start("n2")
    await fill(borrower, "own", 4)
    await lender.stop()
    waits = asyncio.create_task(borrower.allocate(handle("x")))
    async with asyncio.timeout(60):
        while not (await pair.stores["n1"].list(records.requests_to("n1"))).entries:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)
        await borrower.stop()
    with pytest.raises(NotRunningError, match="the agent is stopping"):
        await waits


async def test_an_answer_that_is_lost_lends_nothing_for_good(pair: Pair) -> None:
    """The lender's transaction may have happened or not; either way both sides agree in the end."""
    lender, borrower = await pair.start("n1"), await pair.start("n2")
    await fill(borrower, "own", 4)
    store, real = pair.stores["n1"], pair.stores["n1"].transact
    broken = [True]

    async def losing(*words: Any) -> Any:
        outcome = await real(*words)
        if broken[0] and any(getattr(one, "key", "").startswith(records.ROOT + "/requests/") for one in words[1]):
            broken[0] = False
            raise StoreUnavailableError("no answer")
        return outcome

    setattr(store, "transact", losing)  # noqa: B010 (a method, to the type checker)
    (loan,) = await borrower.allocate(handle("x"))
    assert not broken[0]
    await settled(lender, [loan.address])
    sound([lender, borrower], await pair.records(), whole=True)


async def test_a_lost_block_is_forgotten_with_the_last_that_was_lent_of_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    lender, borrower = await pair.start("n1"), await pair.start("n2")
    await fill(borrower, "own", 4)
    await borrower.allocate(handle("x"))
    (theirs,) = lender.blocks()
    await lender.stop()
    await pair.stores["n2"].transact([], [Delete(records.live_key("n1"))])
    await cluster.reclaim(pair.stores["n2"], "n1", quarantine=60)
    later = asyncio.Event()
    settle = loans.Lender.settle

    async def once_told(self: loans.Lender) -> None:
        if later.is_set():
            await settle(self)

    monkeypatch.setattr(loans.Lender, "settle", once_told)
    back = await pair.start("n1")
    assert [lost.prefix for lost in back.lost()] == [theirs.prefix]
    later.set()
    assert back.keeper.lender is not None
    await back.keeper.lender.settle()  # not as part of a join
    assert lent_by(back) == []
    assert back.lost() == []
    assert (theirs.family, theirs.prefix) not in back.ledger.blocks


async def test_an_address_that_the_ledger_cannot_lend_is_not_lost(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    lender, borrower = await pair.start("n1"), await pair.start("n2")
    await fill(borrower, "own", 4)
    add, full = lender.ledger.add, [True]

    async def failing(handle: Handle, *words: Any) -> Any:
        if full[0] and handle.network == loans.NETWORK:
            raise LedgerError("ledger cannot grow, the disk is full")
        return await add(handle, *words)

    monkeypatch.setattr(loans, "PATIENCE", 0.5)
    monkeypatch.setattr(lender.ledger, "add", failing)
    with pytest.raises(PoolExhaustedError):
        await borrower.allocate(handle("x"))
    full[0] = False
    given: list[str] = []
    async with asyncio.timeout(60):
        while len(given) < 4:  # the lender may have one in its hand yet, for a request that it has not seen given up
            with suppress(PoolExhaustedError):
                given += await fill(lender, f"l{len(given)}", 1)
            await asyncio.sleep(0.01)
    assert len(set(given)) == 4


async def test_containers_of_a_network_called_loan_keep_their_addresses(pair: Pair) -> None:
    node = await pair.start("n1")
    own = Handle("loan", "c1", "eth0")
    (given,) = await node.allocate(own)
    assert node.keeper.lender is not None
    await node.keeper.lender.settle()
    assert await node.allocate(own) == [given]
    assert given.address not in await fill(node, "l", 3)


async def test_loans_of_an_older_ledger_are_told_from_containers_of_a_network_called_loan(pair: Pair) -> None:
    path = pair.directory / "older.db"
    with closing(sqlite3.connect(path)) as older, older:
        for statement in (*ledger.KIND.steps[0], *ledger.KIND.steps[1]):
            older.execute(statement)
        for last, container, ifname, attributes in ((1, "n2", "10.64.0.1", '{"uuid":"u"}'), (2, "c", "eth0", "{}")):
            address = bytes((10, 64, 0, last))
            older.execute("INSERT INTO handle VALUES (?, ?, 'loan', 0, ?)", (container, ifname, attributes))
            row = (4, address, "p", bytes((30, 10, 64, 0, 0)), container, ifname, "loan", 0)
            older.execute("INSERT INTO address VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)
        older.execute(f"PRAGMA application_id={ledger.KIND.application_id}")
        older.execute("PRAGMA user_version=2")
    opened = ledger.Ledger(str(path))
    await opened.open()
    (lent,) = opened.by_handle.of_network(loans.NETWORK)
    assert lent.handle == Handle(loans.NETWORK, "n2", "10.64.0.1")
    assert opened.by_address[bytes((10, 64, 0, 2))].handle == Handle("loan", "c", "eth0")
    assert [one.address for one in lent.assignments] == ["10.64.0.1"]
    await opened.close()


def test_an_older_agent_refuses_a_block_with_loans() -> None:
    loan = records.Loan(bytes((10, 64, 0, 1)), "n2", "u2")
    block = Block(4, bytes((30, 10, 64, 0, 0)), "p", "n1", "u1", 7, "then", (loan,))
    entry = Entry(records.block_key(4, block.prefix), records.encode_block(block), 7, 9)
    assert records.decode_block(entry) == block
    assert b'"schema":3' in entry.value
    with pytest.raises(NewerStateError):
        records.decode_block(entry._replace(value=entry.value.replace(b'"schema":3', b'"schema":4')))
    assert [one.cidr for one in block.on_loan("u2")] == ["10.64.0.1/32"]
