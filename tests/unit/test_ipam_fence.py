"""A node that may be reclaimed stops using its blocks in time, whatever clocks, crashes and configurations do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ipam.errors import IdentityError
from ipam.fence import FENCE_FILE, Fence


class Machine:
    """A clock since the machine's start, and which start it is."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.boot = "first"


@asynccontextmanager
async def fence(path: Path, machine: Machine, after: int | None = 10) -> AsyncIterator[tuple[Fence, list[bool]]]:
    told: list[bool] = []
    made = Fence(
        str(path), after, lambda: told.append(made.fenced), clock=lambda: machine.now, boot=lambda: machine.boot
    )
    made.open()
    try:
        yield made, told
    finally:
        await made.close()


def fenced(one: Fence) -> bool:
    return one.fenced


@pytest.fixture
def machine() -> Machine:
    return Machine()


async def test_nothing_was_promised_before_the_record_said_so(tmp_path: Path, machine: Machine) -> None:
    async with fence(tmp_path, machine) as (one, _):
        machine.now += 1000
        assert not fenced(one)


async def test_it_falls_after_its_time_and_rises_with_the_next_sign_of_life(tmp_path: Path, machine: Machine) -> None:
    async with fence(tmp_path, machine) as (one, told):
        one.promise(machine.now)
        one.kept(machine.now)
        machine.now += 9.9
        one.check()
        assert not fenced(one)
        machine.now += 0.1
        assert fenced(one)
        one.check()
        one.check()
        assert told == [True]
        one.confirmed(machine.now)
        assert told == [True, False]
        # A sign of life counts from when it was asked for, not from when the answer came
        one.confirmed(machine.now - 10)
        assert fenced(one)


async def test_a_restart_without_the_store_keeps_what_was_promised(tmp_path: Path, machine: Machine) -> None:
    async with fence(tmp_path, machine) as (one, _):
        one.promise(machine.now)
        one.kept(machine.now)
    machine.now += 5
    async with fence(tmp_path, machine, after=None) as (again, told):  # turned off in the file, but not in the store
        assert not fenced(again)
        machine.now += 5
        again.check()
        assert told == [True]
        again.promise(machine.now)
        assert fenced(again)
        again.kept(machine.now)  # now the store's record says so
        machine.now += 1000
        assert not fenced(again)
        assert not (tmp_path / FENCE_FILE).exists()


async def test_the_shorter_promise_holds_until_the_longer_one_is_in_the_store(tmp_path: Path, machine: Machine) -> None:
    async with fence(tmp_path, machine) as (one, _):
        one.promise(machine.now)
        one.kept(machine.now)
    async with fence(tmp_path, machine, after=100) as (again, _):
        again.promise(machine.now)
        machine.now += 10
        assert fenced(again)
        again.kept(machine.now)
        machine.now += 99
        assert not fenced(again)


@pytest.mark.parametrize("damage", ["reboot", "corrupt", "ahead", "nulls"])
async def test_a_time_that_cannot_be_trusted_is_none(tmp_path: Path, machine: Machine, damage: str) -> None:
    async with fence(tmp_path, machine) as (one, _):
        one.promise(machine.now)
        one.kept(machine.now)
    if damage == "reboot":
        machine.boot, machine.now = "second", machine.now + 1
    elif damage == "corrupt":
        (tmp_path / FENCE_FILE).write_bytes(b"")
    elif damage == "nulls":
        (tmp_path / FENCE_FILE).write_text(json.dumps({"after": 10, "boot": "first", "confirmed": None}))
    else:
        machine.now -= 500
    async with fence(tmp_path, machine) as (again, told):
        assert fenced(again)
        again.promise(machine.now)
        assert fenced(again)
        again.kept(machine.now)
        assert not fenced(again)
        assert told == [False]


async def test_what_cannot_be_put_on_disk_is_not_promised(tmp_path: Path, machine: Machine) -> None:
    (tmp_path / (FENCE_FILE + ".new")).mkdir()
    async with fence(tmp_path, machine) as (one, _):
        with pytest.raises(IdentityError, match=r"fence.json cannot be written: .*ipam.reclaimAfter\) needs it"):
            one.promise(machine.now)
