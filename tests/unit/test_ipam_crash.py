"""Nodes as processes, killed at any moment: no address twice, no block with two owners, nothing leaked."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from config import prefix
from config.load import check_text
from config.model import Config
from ipam import records
from ipam.loans import NETWORK as LOANS
from ipam.service import Ipam
from ipam.sqlite_store import SqliteStore

ROOT = Path(__file__).parents[2]


def text(directory: Path, name: str, pools: Any) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "podroute/v1",
            "node": {"name": name, "as": 65000, "routerId": "10.0.0.1"},
            "stateDir": str(directory / name),
            "store": f"sqlite://{directory}/store.db",
            "pools": pools,
        }
    )


def configuration(directory: Path, name: str, pools: Any) -> Config:
    config = check_text(text(directory, name, pools), "f").config
    assert config is not None
    return config


def sound(nodes: Sequence[Ipam], blocks: Sequence[records.Block], whole: bool) -> None:
    """Assert what must hold of nodes that share a store; ``whole``: of all nodes, so nobody else owns a block."""
    held = [block for node in nodes for block in node.blocks()]
    assert len({(block.family, block.prefix) for block in held}) == len(held)
    recorded = {*map(_who, blocks), *(_who(loan) for block in blocks for loan in _loans(block))}
    assert set(map(_who, held)) <= recorded
    if whole:
        assert set(map(_who, held)) == {one for one in recorded if one[-1]}
    given = Counter(
        packed
        for node in nodes
        for packed, attachment in node.ledger.by_address.items()
        if attachment.handle.network != LOANS
    )
    assert [packed for packed, times in given.items() if times > 1] == []
    for node in nodes:
        owned = {(block.family, block.prefix) for block in node.blocks()}
        attachments = node.ledger.by_handle.values()
        for attachment in attachments:
            for assignment in attachment.assignments:
                assert (assignment.family, assignment.block) in owned
                assert prefix.contains(assignment.block, assignment.prefix)
        assert sum(usage.used for usage in node.usage()) == sum(len(one.assignments) for one in attachments)
        # What is on loan is kept from all others by the node that lends it
        for block in node.blocks():
            for loan in _loans(block):
                assert node.ledger.by_address[loan.prefix[1:]].handle.network == LOANS


def _who(block: records.Block) -> tuple[object, ...]:
    return block.family, block.prefix, block.pool, block.generation, block.uuid


def _loans(block: records.Block) -> list[records.Block]:
    return [loan for uuid in {one.uuid for one in block.loans} for loan in block.on_loan(uuid)]


@contextmanager
def worker(config: Path, run: str, workers: int, rounds: int, keep: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.unit.ipam_worker", str(config), run, str(workers), str(rounds), str(keep)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Told:
    """What a node's processes said."""

    def __init__(self) -> None:
        self.sure: dict[str, list[str]] = {}
        self.open: dict[str, list[str]] = {}
        """Releases under way: they may have happened."""

    def read(self, line: str) -> None:
        match line.split():
            case ["A", pod, *addresses]:
                assert pod not in self.sure
                self.sure[pod] = addresses
            case ["r", pod]:
                self.open[pod] = self.sure.pop(pod)
            case ["R", pod]:
                del self.open[pod]


async def inspect(config: Path, *names: str) -> None:
    """Start the nodes of these files' directory and assert that they are sound together."""
    nodes = []
    for name in names:
        report = check_text((config / f"{name}.yaml").read_text(), name)
        assert report.config is not None
        nodes.append(Ipam(report.config))
        await nodes[-1].start()
    store = SqliteStore(str(config / "store.db"))
    await store.open()
    entries = (await store.list(records.BLOCKS)).entries
    await store.close()
    sound(nodes, [records.decode_block(entry) for entry in entries], whole=True)
    for node in nodes:
        await node.stop()


async def has(config: Path, name: str) -> dict[str, list[str]]:
    report = check_text((config / f"{name}.yaml").read_text(), name)
    assert report.config is not None
    node = Ipam(report.config)
    await node.start()
    found = {
        one.handle.container_id: [assignment.address for assignment in one.assignments]
        for one in await node.attachments()
    }
    await node.stop()
    return found


def test_a_node_killed_in_the_middle_forgets_nothing_and_leaks_nothing(tmp_path: Path) -> None:
    pools = {"p4": {"cidr": "10.64.0.0/20", "blockSize": 29}, "p6": {"cidr": "fd00::/112", "blockSize": 125}}
    config = tmp_path / "n1.yaml"
    config.write_text(text(tmp_path, "n1", pools))
    told = Told()
    chance = random.Random(5)
    for run in range(4):
        with worker(config, f"run{run}", workers=8, rounds=10000, keep=0.3) as process:
            assert process.stdout is not None
            lines = chance.randrange(20, 300)
            for _ in range(lines):
                told.read(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            for line in process.stdout:  # what was said before the end and not yet heard
                if line.endswith("\n"):
                    told.read(line)
            assert process.wait() == -signal.SIGKILL
        found = asyncio.run(has(tmp_path, "n1"))
        assert {pod: found.get(pod) for pod in told.sure} == told.sure
        for pod, addresses in told.open.items():
            assert found.get(pod, addresses) == addresses
        asyncio.run(inspect(tmp_path, "n1"))
        # What was allocated and not yet said, and releases that had not happened, are as the ledger says
        told.sure, told.open = found, {}


def test_many_processes_on_one_store_claim_every_block_once(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(4)]
    for name in names:
        pools = {"p4": {"cidr": "10.64.0.0/25", "blockSize": 30}}
        (tmp_path / f"{name}.yaml").write_text(text(tmp_path, name, pools))

    def finish(processes: Sequence[subprocess.Popen[str]]) -> list[Told]:
        all_told = []
        for process in processes:
            assert process.stdout is not None
            told = Told()
            for line in process.stdout:
                told.read(line)
            all_told.append(told)
        return all_told

    # One is killed as soon as it has said anything, the others use the pool up
    with worker(tmp_path / "n0.yaml", "killed", 4, 1000, 1) as doomed:
        with worker(tmp_path / "n1.yaml", "r", 4, 1000, 1) as one, worker(tmp_path / "n2.yaml", "r", 4, 1000, 1) as two:
            with worker(tmp_path / "n3.yaml", "r", 4, 1000, 1) as three:
                assert doomed.stdout is not None
                doomed.stdout.readline()
                doomed.kill()
                said = finish([one, two, three])
    addresses = [address for told in said for given in told.sure.values() for address in given]
    assert len(set(addresses)) == len(addresses)
    asyncio.run(inspect(tmp_path, *names))
    with worker(tmp_path / "n0.yaml", "again", 4, 1000, 1) as again:
        finish([again])
    everything = [asyncio.run(has(tmp_path, name)) for name in names]
    given = [address for found in everything for one in found.values() for address in one]
    assert len(given) == len(set(given)) == 128
    asyncio.run(inspect(tmp_path, *names))
