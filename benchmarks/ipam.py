"""`make bench-ipam`: addresses, claims and a full node, on this machine, in one run.

    python -m benchmarks.ipam [--parts pairs,claims,mesh,full] [--seconds S] [--callers N] [--nodes N,N,...]
                              [--blocks N] [--executions N] [--tries N]

Addresses are allocated and released in the agent, durably, by concurrent callers; Debian's ``host-local``, which keeps
one file an address, stands beside it as runtimes use it, one process per call. Claims go to one etcd, from simulated
nodes. A mesh of whole agents gets a new node. The full node has a million addresses in use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import yaml

from agent import ipam_views
from agent.garbage import GarbageCollector
from benchmarks.ipam_mesh import new_nodes
from benchmarks.report import Report, Row
from config.load import check_text
from config.model import Config
from config.store import Store as Settings
from ipam import records
from ipam.claims import Claims
from ipam.etcd_gateway import Gateway
from ipam.etcd_store import EtcdStore
from ipam.given import Handle
from ipam.identity import Identity
from ipam.pool import Pool, span
from ipam.records import Block, NodeRecord
from ipam.service import LEDGER_FILE, Ipam
from ipam.sqlite_store import SqliteStore
from ipam.store import Put
from tests.etcd import etcd
from tests.stores import Counting

HOST_LOCAL = Path("/usr/lib/cni/host-local")
PLACE = "/var/tmp"
"""A disk, not a tmpfs: what is measured is durable."""
_CLIENTS = 16
"""Connections' owners among which simulated nodes are spread."""
_PARTS = ("pairs", "claims", "mesh", "full")
_MESH = 3
"""Nodes that are there before a new one."""
_PATIENCE = 60.0
"""Seconds that a request may take: all nodes' pass through one process here."""


def main() -> int:
    parser = argparse.ArgumentParser(description="podroute's IPAM, and host-local beside it.")
    parser.add_argument(
        "--parts", default="pairs,claims,mesh,full", help="which; only all together are written to the results"
    )
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--callers", type=int, default=50)
    parser.add_argument("--nodes", default="200,500,1000,2000")
    parser.add_argument("--blocks", type=int, default=15_625)
    parser.add_argument("--executions", type=int, default=200)
    parser.add_argument("--tries", type=int, default=10)
    options = parser.parse_args()
    parts = options.parts.split(",")
    rows: list[Row] = []
    directory = Path(tempfile.mkdtemp(prefix="bench-ipam-", dir=PLACE))
    try:
        if "pairs" in parts:
            rows += pairs(directory / "pairs", options.seconds, options.callers, options.executions)
        if "claims" in parts and shutil.which("etcd"):
            rows += claims([int(number) for number in options.nodes.split(",")])
        if "mesh" in parts and os.geteuid() == 0:
            rows += new_nodes("sqlite", _MESH, options.tries)
            rows += new_nodes("etcd", _MESH, options.tries) if shutil.which("etcd") else []
        if "full" in parts:
            rows += full_node(directory / "full", options.blocks)
    finally:
        shutil.rmtree(directory)
    report = Report("ipam", rows, vars(options))
    report.print()
    if set(parts) == set(_PARTS):
        report.write()
    return 1 if report.missed else 0


def configuration(directory: Path, pool: str) -> Config:
    directory.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(
        {
            "apiVersion": "podroute/v1",
            "node": {"name": "n1", "as": 65000, "routerId": "10.0.0.1"},
            "stateDir": str(directory / "state"),
            "store": f"sqlite://{directory}/store.db",
            "pools": {"p": {"cidr": pool, "blockSize": 26}},
            "ipam": {"lease": 600},  # a busy machine is no reason to count as dead
        }
    )
    config = check_text(text, "benchmark").config
    assert config is not None
    return config


# Addresses


def pairs(directory: Path, seconds: float, callers: int, executions: int) -> list[Row]:
    latencies, took = asyncio.run(_pairs(configuration(directory, "10.64.0.0/16"), seconds, callers))
    rate, p99 = len(latencies) / 2 / took, 1000 * percentile(latencies, 0.99)
    rows = [
        Row(f"allocate + release, {callers} callers", "pairs/s", rate, goal=3000, larger_is_better=True),
        Row(f"one call, {callers} callers, p99", "ms", p99, goal=10),
    ]
    if HOST_LOCAL.exists():
        alone, _ = asyncio.run(_pairs(configuration(directory / "alone", "10.64.0.0/16"), min(seconds, 3), 1))
        one = host_local(directory / "peer", executions, 1)
        many = host_local(directory / "peer", executions, callers)
        name = "host-local, a process each"
        rows += [
            Row("allocate + release, one caller", "ms", 2000 * percentile(alone, 0.5), 1000 * one, name),
            Row(f"allocate + release, {callers} callers", "pairs/s", rate, 1 / many, name, larger_is_better=True),
        ]
    return rows


async def _pairs(config: Config, seconds: float, callers: int) -> tuple[list[float], float]:
    """Return the seconds of each call, and of all together; garbage is collected as the agent has it."""
    ipam, garbage = Ipam(config), GarbageCollector()
    await ipam.start()
    garbage.start()
    found: list[float] = []
    start = time.perf_counter()

    async def caller(number: int) -> None:
        rounds = 0
        while time.perf_counter() < start + seconds:
            handle = Handle("net", f"{number}-{rounds}", "eth0")
            before = time.perf_counter()
            await ipam.allocate(handle)
            between = time.perf_counter()
            await ipam.release(handle)
            found.extend((between - before, time.perf_counter() - between))
            rounds += 1

    await asyncio.gather(*(caller(number) for number in range(callers)))
    took = time.perf_counter() - start
    garbage.stop()
    await ipam.stop()
    return found, took


def host_local(directory: Path, executions: int, at_once: int) -> float:
    """Return the seconds per ADD and DEL of host-local, with so many under way at once."""
    config = {
        "cniVersion": "1.0.0",
        "name": "net",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.64.0.0/16"}]], "dataDir": str(directory)},
    }
    standard_input = json.dumps(config).encode()

    def pair(number: int) -> None:
        for verb in ("ADD", "DEL"):
            env = {
                "CNI_COMMAND": verb,
                "CNI_CONTAINERID": f"c{number}",
                "CNI_NETNS": "/proc/self/ns/net",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": str(HOST_LOCAL.parent),
            }
            subprocess.run([HOST_LOCAL], input=standard_input, env=env, check=True, capture_output=True)

    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(pair, range(executions)))
    return (time.perf_counter() - start) / executions


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


# Claims


def claims(sizes: Sequence[int]) -> list[Row]:
    """Let each of so many nodes claim five blocks, all at once, out of a pool that holds four times as many."""
    rows, each = [], []
    for nodes in sizes:
        with etcd() as member:
            took, trips, duplicates = asyncio.run(_claims(member.url, nodes))
        each.append(1000 * took / len(trips))
        more = 100 * sum(count > 2 for count in trips) / len(trips)
        rows += [
            Row(f"{nodes} nodes x 5 blocks from one etcd", "s", took),
            Row(f"{nodes} nodes: one claim", "ms", each[-1]),
            Row(f"{nodes} nodes: round trips of all claims", "trips", sum(trips)),
            Row(f"{nodes} nodes: round trips of a claim, p99", "trips", percentile(trips, 0.99)),
            Row(f"{nodes} nodes: round trips of a claim, most", "trips", max(trips), goal=2),
            Row(f"{nodes} nodes: claims of more than two round trips", "%", more),
            Row(f"{nodes} nodes: blocks given twice", "blocks", duplicates, goal=0),
        ]
    if len(sizes) > 1:
        rows.append(Row(f"one claim, {sizes[-1]} nodes / {sizes[0]} nodes", "", each[-1] / each[0], goal=1.5))
    return rows


async def _claims(url: str, nodes: int) -> tuple[float, list[int], int]:
    place = Settings(url=url).place
    clients = [EtcdStore(Gateway(url, place.endpoints, timeout=_PATIENCE)) for _ in range(_CLIENTS)]
    for client in clients:
        await client.open()
    pool = Pool.parse("p", "10.64.0.0/10", 26)
    trips: list[int] = []
    found: list[bytes] = []

    async def join(number: int) -> tuple[Counting, Claims]:
        store = Counting(clients[number % _CLIENTS])
        identity = Identity(f"node-{number}", str(uuid4()))
        one = Claims(store, identity)
        await one.register(NodeRecord(identity.name, identity.uuid), 0)
        await one.seed([pool])
        return store, one

    joined: list[tuple[Counting, Claims]] = []
    for at in range(0, nodes, 100):
        joined += await asyncio.gather(*map(join, range(at, min(at + 100, nodes))))

    async def node(store: Counting, one: Claims) -> None:
        for _ in range(5):
            before = store.trips
            (block,) = await one.claim([[pool]])
            assert block is not None
            trips.append(store.trips - before)
            found.append(block.prefix)

    start = time.perf_counter()
    await asyncio.gather(*(node(*each) for each in joined))
    took = time.perf_counter() - start
    for client in clients:
        await client.close()
    return took, trips, len(found) - len(set(found))


# A full node


def full_node(directory: Path, count: int) -> list[Row]:
    config = configuration(directory, "10.64.0.0/10")
    addresses = asyncio.run(_fill(config, count))
    size = (Path(config.state_dir) / LEDGER_FILE).stat().st_size
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # its memory is the node's alone
        start_up, show, memory = fresh.submit(_full_run, config).result()
    what = f"{addresses:,} addresses in {count:,} blocks"
    return [
        Row(f"{what}: ipam show", "s", show, goal=2),
        Row(f"{what}: ledger", "MB", size / 1e6),
        Row(f"{what}: start of the agent's IPAM", "s", start_up),
        Row(f"{what}: memory", "MB", memory / 1e6),
        Row(f"{what}: memory of one address", "octets", memory / addresses),
    ]


async def _fill(config: Config, count: int) -> int:
    """Write a ledger and a store as they are when every address of so many blocks is in use."""
    ipam = Ipam(config)
    await ipam.start()
    identity, (pool,) = ipam.identity, ipam.pools()
    first = ipam.blocks()[0]
    await ipam.stop()
    blocks = [wire for wire in (pool.block(index) for index in range(count + 1)) if wire != first.prefix]
    blocks = [first.prefix, *blocks[: count - 1]]
    store = SqliteStore(config.store.place.path)
    await store.open()
    for begin in range(0, len(blocks), 1000):
        made = [Block(4, wire, pool.name, identity.name, identity.uuid) for wire in blocks[begin : begin + 1000]]
        puts = [Put(records.block_key(4, block.prefix), records.encode_block(block)) for block in made]
        await store.transact([], puts)
    generations = {entry.key: entry.created for entry in (await store.list(records.BLOCKS)).entries}
    await store.close()
    _write_ledger(Path(config.state_dir) / LEDGER_FILE, pool, blocks, generations)
    return len(blocks) << (32 - pool.block_size)


def _write_ledger(path: Path, pool: Pool, blocks: Sequence[bytes], generations: dict[str, int]) -> None:
    attributes = json.dumps({"netns": "/run/netns/x", "hostInterface": "pr0123456789abc", "mac": "0a:00:00:00:00:01"})
    number = 0
    with closing(sqlite3.connect(path)) as ledger, ledger:
        for wire in blocks:
            low, high = span(4, wire)
            row = (4, wire, pool.name, generations[records.block_key(4, wire)])
            ledger.execute("INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?)", row)
            names = [f"{each:064x}" for each in range(number, number + 1 + high - low)]
            ledger.executemany(
                "INSERT INTO handle VALUES (?, 'eth0', 'net', 0, ?)", [(name, attributes) for name in names]
            )
            ledger.executemany(
                "INSERT INTO address VALUES (4, ?, ?, ?, ?, 'eth0', 'net', 0, NULL)",
                [
                    (address.to_bytes(4, "big"), pool.name, wire, name)
                    for address, name in zip(range(low, high + 1), names, strict=True)
                ],
            )
            number += len(names)
    with closing(sqlite3.connect(path)) as ledger:
        ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _full_run(config: Config) -> tuple[float, float, int]:
    return asyncio.run(_full(config))


async def _full(config: Config) -> tuple[float, float, int]:
    """Return the seconds of a start and of `ipam show`, and by how many octets memory has grown over it."""
    before = _resident()
    ipam = Ipam(config)
    start = time.perf_counter()
    await ipam.start()
    started = time.perf_counter()
    node = cast(Any, SimpleNamespace(ipam=ipam, config=config))
    json.dumps(await ipam_views.show(node))
    shown = time.perf_counter()
    grown = _resident() - before
    await ipam.stop()
    return started - start, shown - started, grown


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
