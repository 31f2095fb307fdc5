"""Anything that can happen to two nodes and their store, in any order, with crashes between any two steps.

A state machine on one SQLite file and on a real etcd. After every step: no address twice, no block with two owners,
nothing leaked, and what is advertised is owned. ``IPAM_EXAMPLES`` is how many sequences are tried.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import yaml
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from config.load import check_text
from config.model import Config
from config.prefix import FAMILIES
from ipam import cluster, fence, loans, membership, records, sqlite_store
from ipam.errors import FencedError, IpamError, PoolExhaustedError, StoreUnavailableError
from ipam.etcd_store import EtcdStore
from ipam.given import Handle
from ipam.service import Ipam
from ipam.sqlite_store import SqliteStore
from ipam.store import Choice, Condition, Delete, Outcome, Range, Store, Write
from tests.etcd import Etcd, etcd, needs_etcd
from tests.unit.test_ipam_crash import sound, text

EXAMPLES = int(os.environ.get("IPAM_EXAMPLES", "0"))
POINTS = ["before store", "after store", "before ledger", "after ledger"]
NAMES = ("n1", "n2")
PODS = "abcdefgh"
POOLS = {"p4": {"cidr": "10.64.0.0/29", "blockSize": 31}, "p6": {"cidr": "fd00::/126", "blockSize": 127}}
# No lease ends by itself within a test
IPAM = {"lease": 3600, "fenceAfter": 3600, "reclaimAfter": 4000, "borrowing": True}


class Crash(BaseException):
    """The process ends here."""


class Trouble:
    """What is to happen to a node: ``crash`` is one of POINTS, ``lost`` is "question" or "answer"."""

    crash = ""
    lost = ""
    crashed = False

    def end_here(self) -> None:
        self.crashed = True
        raise Crash

    async def transact(self, transact: Callable[[], Awaitable[Outcome]]) -> Outcome:
        if self.crash == "before store":
            self.end_here()
        if self.lost == "question":
            raise StoreUnavailableError("no answer")
        outcome = await transact()
        if self.lost == "answer":
            raise StoreUnavailableError("no answer")
        if self.crash == "after store":
            self.end_here()
        return outcome


class CrashingSqlite(SqliteStore):
    trouble: Trouble

    async def transact(
        self,
        conditions: Sequence[Condition],
        writes: Sequence[Write],
        otherwise: Sequence[Range] = (),
        choices: Sequence[Choice] = (),
    ) -> Outcome:
        return await self.trouble.transact(partial(super().transact, conditions, writes, otherwise, choices))


class CrashingEtcd(EtcdStore):
    trouble: Trouble

    async def transact(
        self,
        conditions: Sequence[Condition],
        writes: Sequence[Write],
        otherwise: Sequence[Range] = (),
        choices: Sequence[Choice] = (),
    ) -> Outcome:
        return await self.trouble.transact(partial(super().transact, conditions, writes, otherwise, choices))


class CrashingNode(Ipam):
    """A node that ends before or after it writes to its ledger or store, on a machine with clocks of its own."""

    def __init__(self, config: Config, store: CrashingSqlite | CrashingEtcd, clocks: Clocks) -> None:
        super().__init__(config, store=store, cool_down=0, clock=clocks.boot)
        self.trouble = store.trouble
        self.opened: Store = store
        self.ledger.clock = clocks.wall
        write = self.ledger.write

        async def crash(*words: Any) -> None:
            if self.trouble.crash == "before ledger":
                self.trouble.end_here()
            await write(*words)
            if self.trouble.crash == "after ledger":
                self.trouble.end_here()

        setattr(self.ledger, "write", crash)  # noqa: B010 (a method, to the type checker)


class Clocks:
    """A wall clock that jumps, and one since the machine's start, which a suspension advances."""

    wall_jump = 0.0
    suspended = 0.0

    def wall(self) -> float:
        return _real_time() + self.wall_jump

    def boot(self) -> float:
        return fence.boot_clock() + self.suspended


_real_time = time.time


class Machine(RuleBasedStateMachine):
    """Two nodes on one store, with few addresses, against what their callers were told."""

    etcd: ClassVar[Etcd | None] = None

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.clocks = {name: Clocks() for name in NAMES}
        self.nodes: dict[str, CrashingNode] = {}
        self.told: dict[tuple[str, str], list[str]] = {}
        self.patches = ExitStack()
        self.patches.enter_context(patch.object(loans, "PATIENCE", 0.5))
        self.patches.enter_context(patch.object(sqlite_store, "_POLL", 0.005))
        self.patches.enter_context(patch.object(membership, "RETRY", 0.01))
        self.patches.enter_context(patch("time.time", self.clocks["n1"].wall))
        if self.etcd is not None:
            self.etcd.etcdctl("del", "", "--prefix")
        for name in NAMES:
            self.start(name)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            for name in self.nodes:
                self.end(name)
            self.runner.close()
            self.patches.close()
            shutil.rmtree(self.directory)

    def config(self, name: str) -> Config:
        data = yaml.safe_load(text(self.directory, name, POOLS)) | {"ipam": IPAM}
        if self.etcd is not None:
            data["store"] = self.etcd.url
        config = check_text(yaml.safe_dump(data), "f").config
        assert config is not None
        return config

    def start(self, name: str, *, away: bool = False) -> None:
        async def start() -> CrashingNode:
            config = self.config(name)
            store: CrashingSqlite | CrashingEtcd
            store = CrashingSqlite(config.store.place.path) if self.etcd is None else CrashingEtcd.of(config.store)
            store.trouble = Trouble()
            await store.open()
            store.trouble.lost = "question" if away else ""
            node = CrashingNode(config, store, self.clocks[name])
            await node.start()
            return node

        self.nodes[name] = self.runner.run(start())

    def end(self, name: str) -> None:
        node = self.nodes[name]
        node.trouble.crash = node.trouble.lost = ""

        async def end() -> None:
            await node.stop()
            await node.opened.close()

        self.runner.run(end())

    def until_crash(self, victim: str, point: str, work: Callable[[], Awaitable[Any]]) -> bool:
        """Run work; a node that ends in the middle of it starts again. Return whether the work came to its end."""

        async def run() -> bool:
            # The crash ends a task of the node's own, and is taken out of it here
            try:
                await work()
            except Crash:
                return False
            except PoolExhaustedError:
                return True
            return True

        trouble = self.nodes[victim].trouble
        trouble.crash = point
        done = self.runner.run(run())
        trouble.crash = ""
        if trouble.crashed:
            self.end(victim)
            self.start(victim)
        return done

    @rule(
        name=st.sampled_from(NAMES),
        pod=st.sampled_from(PODS),
        victim=st.sampled_from(NAMES),
        point=st.sampled_from(["", "", "", *POINTS]),
    )
    def allocate(self, name: str, pod: str, victim: str, point: str) -> None:
        got: list[str] = []

        async def work() -> None:
            got.extend(one.address for one in await self.nodes[name].allocate(Handle("net", pod, "eth0")))

        done = self.until_crash(victim, point, work)
        before = self.told.get((name, pod))
        if before is not None:
            assert got in (before, [])
            assert self.has(name, pod) == before
        elif done:
            assert self.has(name, pod) == got
        self.note(name, pod)

    @rule(
        name=st.sampled_from(NAMES),
        pod=st.sampled_from(PODS),
        victim=st.sampled_from(NAMES),
        point=st.sampled_from(["", "", "", *POINTS]),
    )
    def release(self, name: str, pod: str, victim: str, point: str) -> None:
        done = self.until_crash(victim, point, lambda: self.nodes[name].release(Handle("net", pod, "eth0")))
        if done:
            assert self.has(name, pod) == []
        self.note(name, pod)

    @rule(name=st.sampled_from(NAMES), point=st.sampled_from(["", "", *POINTS]))
    def give_idle_blocks_back(self, name: str, point: str) -> None:
        async def work() -> None:
            for family in FAMILIES:
                for _ in range(2):  # the first look only notes since when
                    await self.nodes[name].keeper.give_back_idle(family, time.monotonic() + 1e9, 0)

        self.until_crash(name, point, work)

    @rule(
        name=st.sampled_from(NAMES),
        pod=st.sampled_from(PODS),
        victim=st.sampled_from(NAMES),
        lost=st.sampled_from(["question", "answer"]),
    )
    def allocate_while_the_store_fails(self, name: str, pod: str, victim: str, lost: str) -> None:
        async def work() -> None:
            with suppress(StoreUnavailableError):
                await self.nodes[name].allocate(Handle("net", pod, "eth0"))

        before = self.told.get((name, pod))
        self.nodes[victim].trouble.lost = lost
        self.until_crash(name, "", work)
        self.nodes[victim].trouble.lost = ""
        if before is not None:
            assert self.has(name, pod) == before
        self.note(name, pod)
        # What was left undecided is decided once the node compares with the store
        self.restart(victim)

    @rule(name=st.sampled_from(NAMES))
    def start_without_the_store(self, name: str) -> None:
        self.end(name)
        self.start(name, away=True)
        self.end(name)
        self.start(name)

    @rule(name=st.sampled_from(NAMES), jump=st.sampled_from([-1e9, -3600.0, 3600.0, 1e9]))
    def the_wall_clock_jumps(self, name: str, jump: float) -> None:
        self.clocks[name].wall_jump += jump
        self.restart(name)

    @rule(name=st.sampled_from(NAMES), pods=st.lists(st.sampled_from(PODS), max_size=3, unique=True))
    def be_cut_off_and_reclaimed(self, name: str, pods: list[str]) -> None:
        """Its blocks go to others while it runs; it is fenced before, and finds out after."""
        node, other = self.nodes[name], next(one for one in NAMES if one != name)
        node.trouble.lost = "question"
        self.clocks[name].suspended += 3601
        node.check_fence()
        assert node.fenced
        assert not any(node.advertised(block) for block in node.blocks())

        async def reclaim() -> None:
            with pytest.raises(FencedError):
                await node.allocate(Handle("net", "new", "eth0"))
            store = self.nodes[other].opened
            await store.transact([], [Delete(records.live_key(name))])
            await cluster.reclaim(store, name, quarantine=60)
            for block in await cluster.blocks(store):
                if not block.uuid and not block.loans:  # the quarantine is over
                    await store.transact([], [Delete(records.block_key(block.family, block.prefix))])

        self.runner.run(reclaim())
        for pod in pods:
            self.allocate(other, pod, other, "")
        node.trouble.lost = ""

        async def come_back() -> None:
            node.compare_again()
            async with asyncio.timeout(60):
                while node.fenced:  # noqa: ASYNC110 (nothing tells)
                    await asyncio.sleep(0.005)
            owned = {(block.family, block.prefix) for block in node.blocks()}
            # Its old containers are cut off: their operator deletes them
            for attachment in await node.attachments():
                if any((one.family, one.block) not in owned for one in attachment.assignments):
                    await node.release(attachment.handle)
            assert node.lost() == []

        self.runner.run(come_back())
        for pod in PODS:
            self.note(name, pod)

    @rule(name=st.sampled_from(NAMES))
    def restart(self, name: str) -> None:
        self.end(name)
        self.start(name)

    def has(self, name: str, pod: str) -> list[str]:
        found = self.nodes[name].ledger.by_handle.get(Handle("net", pod, "eth0"))
        return [one.address for one in found.assignments] if found else []

    def note(self, name: str, pod: str) -> None:
        """A call that was cut short may have happened or not, as a whole; which, is seen now."""
        found = self.has(name, pod)
        assert len(found) in (0, 2)
        self.told.pop((name, pod), None)
        if found:
            self.told[name, pod] = found

    async def settle(self) -> list[records.Block]:
        """Return the block records once what goes on in the background is done."""
        store = self.nodes["n1"].opened
        while True:
            for node in self.nodes.values():
                while node.keeper.busy:  # noqa: ASYNC110 (nothing tells)
                    await asyncio.sleep(0.001)
                assert node.keeper.lender is not None
                with suppress(IpamError):
                    await node.keeper.lender.settle()
            found = await cluster.blocks(store)
            held = sum(len(node.blocks()) for node in self.nodes.values())
            if held == sum(bool(block.uuid) + len(block.loans) for block in found):
                return found
            for node in self.nodes.values():  # what is undecided is decided by comparing
                node.compare_again()
            await asyncio.sleep(0.01)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "nodes"):
            return

        async def settled() -> list[records.Block]:
            async with asyncio.timeout(60):
                return await self.settle()

        blocks = self.runner.run(settled())
        sound(list(self.nodes.values()), blocks, whole=True)
        owners = {(block.family, block.prefix): block.uuid for block in blocks}
        owners |= {
            (loan.family, loan.prefix): one.uuid
            for block in blocks
            for one in block.loans
            for loan in block.on_loan(one.uuid)
        }
        for node in self.nodes.values():
            for block in node.blocks():
                if node.advertised(block):
                    assert owners[block.family, block.prefix] == node.identity.uuid
        for (name, pod), addresses in self.told.items():
            assert self.has(name, pod) == addresses


class EtcdMachine(Machine):
    """The same against the member that ``etcd`` is."""


Machine.TestCase.settings = settings(max_examples=EXAMPLES or 12, stateful_step_count=20, derandomize=not EXAMPLES)
TestOnSqlite = Machine.TestCase


@needs_etcd
def test_on_etcd() -> None:
    with etcd() as member:
        EtcdMachine.etcd = member
        try:
            run_state_machine_as_test(
                EtcdMachine,
                settings=settings(max_examples=EXAMPLES or 3, stateful_step_count=15, derandomize=not EXAMPLES),
            )
        finally:
            EtcdMachine.etcd = None
