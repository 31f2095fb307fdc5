from __future__ import annotations

import asyncio
import sqlite3
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config import prefix
from config.prefix import Family
from ipam import sqlite
from ipam.errors import LedgerError
from ipam.given import Assignment, Given, Handle
from ipam.ledger import KIND, Attachment, Ledger, OwnedBlock

BLOCK = prefix.parse("10.64.0.0/26")[1]
BLOCK6 = prefix.parse("fd00:64::/122")[1]
ALL = prefix.parse("10.64.0.0/16")[1]
NUMBERS = {"a": 7, "b": 8, "c": 9}


def assignment(text: str) -> Assignment:
    family, wire = prefix.of_address(text)
    return Assignment(family, text, wire, f"p{family}", BLOCK if family == 4 else BLOCK6)


def handle(name: str) -> Handle:
    return Handle("net", name, "eth0")


@asynccontextmanager
async def opened(path: Path, clock: float = 100.0) -> AsyncIterator[Ledger]:
    ledger = Ledger(str(path), clock=lambda: clock)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


def released(ledger: Ledger) -> list[str]:
    """Return the IPv4 addresses that were in use before, the longest ago first."""
    return [prefix.address_text(address.to_bytes(4, "big")) for address, _ in ledger.inside(4, ALL).released]


async def test_what_was_added_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    pair = [assignment("10.64.0.1"), assignment("fd00:64::1")]
    async with opened(path) as ledger:
        assert ledger.blank
        made = await ledger.add(handle("a"), pair, {"netns": "/run/netns/a", "args": {"K8S_POD_NAME": "p"}})
        assert made == Attachment(
            handle("a"), tuple(pair), {"netns": "/run/netns/a", "args": {"K8S_POD_NAME": "p"}}, 100
        )
        assert ledger.by_handle == {handle("a"): made}
        assert ledger.by_address == {pair[0].packed: made, pair[1].packed: made}
    async with opened(path) as ledger:
        assert not ledger.blank
        assert ledger.by_handle == {handle("a"): made}
        assert ledger.by_address == {pair[0].packed: made, pair[1].packed: made}
        assert released(ledger) == []


async def test_what_is_in_a_block(tmp_path: Path) -> None:
    async with opened(tmp_path / "ledger.db") as ledger:
        for name, address in (("a", "10.64.0.5"), ("b", "10.64.0.6"), ("c", "10.64.0.64")):
            await ledger.add(handle(name), [assignment(address), assignment(f"fd00:64::{name}")], {"x": name})
        twice = await ledger.add(handle("d"), [assignment("10.64.0.7"), assignment("10.64.0.8")], {})
        await ledger.remove(handle("b"))
        first = int.from_bytes(assignment("10.64.0.0").packed, "big")
        inside = ledger.inside(4, BLOCK)
        assert inside.used == [first + 5, first + 7, first + 8]
        assert [address for address, _ in inside.released] == [first + 6]
        a = ledger.by_handle[handle("a")]
        found = ledger.assigned(4, BLOCK)
        assert sorted(found, key=lambda each: each[1].packed) == [
            (a, assignment("10.64.0.5")),
            *((twice, one) for one in twice.assignments),
        ]
        assert len(ledger.assigned(6, BLOCK6)) == 2


async def test_assignments_of_one_block(tmp_path: Path) -> None:
    pair = [assignment("10.64.0.1"), assignment("fd00:64::1")]
    elsewhere = assignment("10.65.0.9")
    block = (pair[0].family, pair[0].block)
    async with opened(tmp_path / "ledger.db") as ledger:
        both = await ledger.add(handle("a"), pair, {})
        other = await ledger.add(handle("b"), [replace(elsewhere, block=prefix.make(4, 10 << 24 | 65 << 16, 24))], {})
        await ledger.add(handle("c"), [assignment("10.64.0.3")], {})
        await ledger.remove(handle("c"))
        assert ledger.assigned(*block) == [(both, pair[0])]
        assert ledger.assigned(6, pair[1].block) == [(both, pair[1])]
        assert ledger.assigned(4, other.assignments[0].block) == [(other, *other.assignments)]
        assert ledger.assigned(4, prefix.make(4, 10 << 24 | 65 << 16, 25)) == [], "a block of another length is another"


async def test_removed_addresses_are_remembered_in_the_order_of_release(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with opened(path) as ledger:
        for name in NUMBERS:
            await ledger.add(handle(name), [assignment(f"10.64.0.{NUMBERS[name]}")], {})
        for name in "cab":
            assert await ledger.remove(handle(name)) == (assignment(f"10.64.0.{NUMBERS[name]}"),)
        assert await ledger.remove(handle("a")) == ()
        assert not ledger.by_handle
        assert not ledger.by_address
        await ledger.add(handle("d"), [assignment(f"10.64.0.{NUMBERS['a']}")], {})
    async with opened(path) as ledger:
        assert released(ledger) == [f"10.64.0.{NUMBERS[name]}" for name in "cb"]
        assert [at for _, at in ledger.inside(4, ALL).released] == pytest.approx([100.0, 100.0])
        assert set(ledger.by_handle) == {handle("d")}


async def test_attributes_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with opened(path) as ledger:
        assert not await ledger.annotate(handle("a"), {"x": 1})
        await ledger.add(handle("a"), [assignment("10.64.0.1")], {"x": 1})
        assert await ledger.annotate(handle("a"), {"y": [1, None]})
        assert ledger.by_address[assignment("10.64.0.1").packed].attributes == {"y": [1, None]}
    async with opened(path) as ledger:
        assert ledger.by_handle[handle("a")].attributes == {"y": [1, None]}


async def test_blocks(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    blocks = [OwnedBlock(4, BLOCK, "p4", 7), OwnedBlock(6, BLOCK6, "p6", 7)]
    async with opened(path) as ledger:
        await ledger.own(blocks)
        await ledger.own([blocks[0]._replace(generation=9)])
        for name, address in (("a", "10.64.0.63"), ("b", "10.64.0.64"), ("c", "fd00:64::")):
            await ledger.add(handle(name), [assignment(address)], {})
            await ledger.remove(handle(name))
        await ledger.disown(4, BLOCK)
    async with opened(path) as ledger:
        assert ledger.blocks == {(6, BLOCK6): blocks[1]}
        assert released(ledger) == ["10.64.0.64"]
        assert ledger.inside(6, BLOCK6).released


async def test_an_address_given_twice_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with opened(path) as ledger:
        await ledger.add(handle("a"), [assignment("10.64.0.1")], {})
        with pytest.raises(LedgerError, match="cannot hold this: an address of it is in use by another container"):
            await ledger.add(handle("b"), [assignment("10.64.0.2"), assignment("10.64.0.1")], {})
        assert set(ledger.by_handle) == {handle("a")}
    async with opened(path) as ledger:
        assert set(ledger.by_handle) == {handle("a")}
        assert len(ledger.by_address) == 1


async def test_one_bad_change_does_not_take_its_neighbours_along(tmp_path: Path) -> None:
    """Changes that share a commit are told apart when it fails."""
    path = tmp_path / "ledger.db"
    async with opened(path) as ledger:
        await ledger.add(handle("a"), [assignment("10.64.0.1")], {})
        adds = [ledger.add(handle(f"b{n}"), [assignment(f"10.64.0.{n}")], {}) for n in range(20)]
        results = await asyncio.gather(*adds, return_exceptions=True)
        assert [isinstance(result, LedgerError) for result in results] == [n == 1 for n in range(20)]
        assert len(ledger.by_handle) == 20
    async with opened(path) as ledger:
        assert len(ledger.by_handle) == 20


async def test_changes_made_at_once_share_commits(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with opened(path) as ledger:
        with closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")  # holds the writer, so that changes pile up behind it
            first = asyncio.ensure_future(ledger.add(handle("first"), [assignment("10.64.0.0")], {}))
            rest = [
                asyncio.ensure_future(ledger.add(handle(f"{n}"), [assignment(f"10.64.0.{n}")], {}))
                for n in range(1, 60)
            ]
            await asyncio.sleep(0)
            other.execute("ROLLBACK")
            await asyncio.gather(first, *rest)
        frames = (path.with_name(path.name + "-wal").stat().st_size - 32) // 4120
        assert frames < 60  # one commit each would have written at least two pages for every one


async def test_a_cancelled_call_still_happens(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with opened(path) as ledger:
        task = asyncio.ensure_future(ledger.add(handle("a"), [assignment("10.64.0.1")], {}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ledger.add(handle("b"), [assignment("10.64.0.2")], {})
        assert set(ledger.by_handle) == {handle("a"), handle("b")}


async def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "ledger.db") as ledger:
        with pytest.raises(LedgerError, match="cannot hold this"):
            await ledger.add(handle("\ud800"), [assignment("10.64.0.1")], {})
        attributes: dict[str, Any] = {"x": object()}
        with pytest.raises(TypeError):
            await ledger.add(handle("a"), [assignment("10.64.0.1")], attributes)
        assert not ledger.by_handle


@pytest.mark.parametrize("family", [4, 6])
async def test_every_handle_has_what_it_was_given(tmp_path: Path, family: Family) -> None:
    text = "10.64.0.{}" if family == 4 else "fd00:64::{:x}"
    async with opened(tmp_path / "ledger.db") as ledger:
        adds = [ledger.add(handle(f"{n}"), [assignment(text.format(n))], {"n": n}) for n in range(1, 64)]
        await asyncio.gather(*adds)
    async with opened(tmp_path / "ledger.db") as ledger:
        for n in range(1, 64):
            (found,) = ledger.by_handle[handle(f"{n}")].assignments
            assert found == assignment(text.format(n))


async def test_a_ledger_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite.connect(replace(KIND, steps=KIND.steps[:1]), str(path))) as old:
        for number, name in enumerate("ab", 1):
            old.execute("INSERT INTO attachment VALUES (?, 'net', ?, 'eth0', 50.5, ?)", (number, name, '{"x":1}'))
        given = {"10.64.0.1": 1, "fd00:64::1": 1, "10.64.0.2": 2}
        for one, number in ((assignment(text), number) for text, number in given.items()):
            row = (one.family, one.packed, one.pool, one.block, number)
            old.execute("INSERT INTO assignment VALUES (?, ?, ?, ?, ?)", row)
        for text in ("10.64.0.9", "10.64.0.3"):
            old.execute("INSERT INTO released (family, address, at) VALUES (4, ?, 60)", (assignment(text).packed,))
        old.execute("INSERT INTO block VALUES (4, ?, 'p4', 7)", (BLOCK,))
    async with opened(path) as ledger:
        assert ledger.by_handle == {
            handle("a"): Attachment(handle("a"), (assignment("10.64.0.1"), assignment("fd00:64::1")), {"x": 1}, 50.5),
            handle("b"): Attachment(handle("b"), (assignment("10.64.0.2"),), {"x": 1}, 50.5),
        }
        assert released(ledger) == ["10.64.0.9", "10.64.0.3"]
        assert ledger.blocks == {(4, BLOCK): OwnedBlock(4, BLOCK, "p4", 7)}
        assert not ledger.blank


async def test_addresses_come_back_in_the_order_in_which_they_were_given(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    mixed = tuple(map(assignment, ("fd00:64::1", "10.64.0.9", "10.64.0.1")))
    async with opened(path) as ledger:
        await ledger.add(handle("a"), mixed, {})
        assert ledger.given.get(handle("a")) == mixed
    async with opened(path) as ledger:
        assert ledger.given.get(handle("a")) == mixed


async def test_releases_keep_their_order_when_the_clock_is_set_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with opened(path, clock=1000.0) as ledger:
        await ledger.add(handle("a"), [assignment("10.64.0.9")], {})
        await ledger.remove(handle("a"))
    async with opened(path, clock=10.0) as ledger:
        await ledger.add(handle("b"), [assignment("10.64.0.1")], {})
        await ledger.remove(handle("b"))
        assert released(ledger) == ["10.64.0.9", "10.64.0.1"]


def test_a_handle_takes_little_memory() -> None:
    """A container ID has 64 digits; a node with many containers must not feel its ledger."""
    given = Given()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(10_000):
            one = assignment(f"10.64.{number >> 8}.{number & 255}")
            given.put(Handle("podroute", f"{number:064x}", "eth0"), [one])
        each = (tracemalloc.get_traced_memory()[0] - before) / 10_000
    finally:
        tracemalloc.stop()
    assert each < 256
