"""Twenty nodes as processes on one store, killed at random; then everything that is left is compared.

    python -m tests.ipam_hammer sqlite|etcd SECONDS [NODES]

With etcd three members run: one is killed and started again, and the leader is paused (SIGSTOP) for a while. One pool
is large; the other has fewer addresses than are wanted, so that nodes borrow from each other all the time. Exit status
1 and a line for each disagreement where something is wrong. Whole agents with containers: tests.agents_hammer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from agent.ipam_check import Picture, compare
from config.load import check_text
from config.model import Config
from ipam import cluster
from ipam.errors import IpamError
from ipam.given import Handle
from ipam.loans import NETWORK as LOANS
from ipam.service import Ipam
from tests.etcd import PATIENCE, Etcd, etcd

NODES = 20
_CALLERS = 5
_GRACE = 1.0
"""Seconds that nodes have to end in."""


def configuration(directory: Path, name: str, store: str) -> Config:
    """Return the file of a node; blocks are small, so that many are claimed."""
    text = yaml.safe_dump(
        {
            "apiVersion": "podroute/v1",
            "node": {"name": name, "as": 65000, "routerId": "10.0.0.1"},
            "stateDir": str(directory / name),
            "store": store,
            "pools": {
                "p4": {"cidr": "10.64.0.0/18", "blockSize": 30},
                "p6": {"cidr": "fd00:64::/120", "blockSize": 126},
            },
            "ipam": {"idleAfter": 1, "borrowing": True},
        }
    )
    config = check_text(text, name).config
    assert config is not None
    return config


async def node(config: Config, until: float) -> None:
    """Allocate and release with several callers."""
    ipam = Ipam(config, cool_down=0)
    await ipam.start()

    async def caller(number: int) -> None:
        chance = random.Random()
        mine = [one.handle for one in await ipam.attachments() if one.handle.ifname == f"eth{number}"]
        while time.monotonic() < until:
            handle = Handle("net", f"{chance.getrandbits(64):x}", f"eth{number}")
            try:
                if mine and chance.random() < len(mine) / 12:
                    await ipam.release(mine.pop(chance.randrange(len(mine))))
                else:
                    await ipam.allocate(handle)
                    mine.append(handle)
            except IpamError:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0)

    await asyncio.gather(*(caller(number) for number in range(_CALLERS)))
    await ipam.stop()


def spawn(config: Config, until: float) -> int:
    """Fork a process that is a node; return its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        asyncio.run(node(config, until))
        status = 0
    except IpamError:
        status = 0  # the store was away for too long, or the time over
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


@contextmanager
def stores(kind: str, directory: Path) -> Iterator[tuple[str, Etcd | None]]:
    if kind == "sqlite":
        yield f"sqlite://{directory}/store.db", None
        return
    with etcd(3) as members:
        yield members.url, members


def disturb(members: Etcd, progress: float, done: set[str]) -> None:
    """Kill a member at a fifth of the time and bring it back, then pause the leader."""
    if progress > 0.2 and "killed" not in done:
        members.kill(0)
        done.add("killed")
    elif progress > 0.5 and "back" not in done:
        members.start_member(0)
        done.add("back")
    elif progress > 0.6 and "paused" not in done:
        leader = members.leader()
        members.signal(leader, signal.SIGSTOP)
        done |= {"paused"}
    elif progress > 0.8 and "resumed" not in done:
        for index in range(3):
            members.signal(index, signal.SIGCONT)
        done.add("resumed")


def hammer(configs: list[Config], seconds: float, members: Etcd | None) -> tuple[int, list[str]]:
    """Keep a process per node going and kill one every 50 ms; return how many died, and what crashed by itself."""
    start = time.monotonic()
    running = {spawn(config, start + seconds): config for config in configs}
    kills, crashed, done = 0, [], set[str]()
    while time.monotonic() < start + seconds:
        time.sleep(0.05)
        if members is not None:
            disturb(members, (time.monotonic() - start) / seconds, done)
        victim = random.choice(list(running))
        os.kill(victim, signal.SIGKILL)
        kills += 1
        _, status = os.waitpid(victim, 0)
        config = running.pop(victim)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            crashed.append(f"{config.node.name} ended by itself with {os.WEXITSTATUS(status)}")
        running[spawn(config, start + seconds)] = config
    # Those that are left end by themselves, or in the middle of something as all before
    time.sleep(_GRACE)
    for process, config in running.items():
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            crashed.append(f"{config.node.name} ended with {os.WEXITSTATUS(status)}")
    return kills, crashed


async def inspect(configs: list[Config]) -> tuple[int, int, list[str]]:
    """Start every node once more; return how many addresses are in use, how many of them borrowed, and what is wrong.

    What nodes say to each other about loans takes a moment; what is wrong is what still is after that.
    """
    nodes = [Ipam(config) for config in configs]
    try:
        await asyncio.gather(*(ipam.start() for ipam in nodes))
        give_up = time.monotonic() + PATIENCE
        while True:
            used, borrowed, wrong = await compared(nodes)
            if not wrong or time.monotonic() > give_up:
                return used, borrowed, wrong
            for ipam in nodes:
                ipam.compare_again()
            await asyncio.sleep(1)
    finally:
        for ipam in nodes:
            await ipam.stop()


async def compared(nodes: list[Ipam]) -> tuple[int, int, list[str]]:
    """Return what ``inspect`` does, as of now: what `podroute ipam check` would say, and what no node sees alone."""
    wrong: list[str] = []
    given: Counter[bytes] = Counter()
    records = await cluster.blocks(nodes[0].shared())
    for ipam in nodes:
        name, attachments = ipam.identity.name, await ipam.attachments()
        picture = Picture(ipam.identity.uuid, ipam.blocks(), records, attachments, [], [])
        wrong += [f"{name}: {one.kind}: {one.text}" for one in compare(picture)]
        containers = [attachment for attachment in attachments if attachment.handle.network != LOANS]
        given.update(a.packed for attachment in containers for a in attachment.assignments)
        wrong += [f"{name}: half of {one.handle}" for one in containers if len(one.assignments) != 2]
        wrong += [f"{name}: lost {lost.prefix.hex()}" for lost in ipam.lost()]
    wrong += [f"address {packed.hex()} is given twice" for packed, times in given.items() if times > 1]
    loans = {loan.packed for block in records for loan in block.loans}
    wrong += [f"address {packed.hex()} is on loan to nobody" for packed in loans - given.keys()]
    return given.total(), len(loans), wrong


def main(kind: str, seconds: float, nodes: int = NODES) -> int:
    logging.getLogger("podroute").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="hammer-"))
        stack.callback(shutil.rmtree, directory)
        store, members = stack.enter_context(stores(kind, directory))
        configs = [configuration(directory, f"n{number}", store) for number in range(nodes)]
        kills, wrong = hammer(configs, seconds, members)
        if members is not None:
            members.wait_healthy()
        used, borrowed, found = asyncio.run(inspect(configs))
    for line in (*wrong, *found):
        print(line)
    done = f"{kills} kills, {used} addresses in use, {borrowed} of them borrowed, {len(wrong + found)} faults"
    print(f"{kind}: {nodes} nodes, {seconds:g} s, {done}")
    return 1 if wrong or found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:])))
