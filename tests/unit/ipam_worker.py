"""A node in a process of its own, to be killed: allocates and releases, and says on stdout what it knows to be true.

``A handle address...`` after an allocation, ``r handle`` before a release and ``R handle`` after it. A line is written
only when the call before it has returned, so what the reader has seen must be so after any crash.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

from config.load import load
from ipam.errors import PoolExhaustedError
from ipam.given import Handle
from ipam.service import Ipam


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


async def work(ipam: Ipam, worker: int, run: str, rounds: int, keep: float) -> None:
    chance = random.Random(f"{run}/{worker}")
    mine: list[Handle] = []
    for number in range(rounds):
        handle = Handle("net", f"{run}-{worker}-{number}", "eth0")
        try:
            assignments = await ipam.allocate(handle)
        except PoolExhaustedError:
            break
        say("A", handle.container_id, *(assignment.address for assignment in assignments))
        mine.append(handle)
        if chance.random() > keep:
            gone = mine.pop(chance.randrange(len(mine)))
            say("r", gone.container_id)
            await ipam.release(gone)
            say("R", gone.container_id)


async def main(path: str, run: str, workers: int, rounds: int, keep: float) -> None:
    ipam = Ipam(load(path), cool_down=0)
    await ipam.start()
    say("started", json.dumps([block.cidr for block in ipam.blocks()]))
    await asyncio.gather(*(work(ipam, worker, run, rounds, keep) for worker in range(workers)))
    await ipam.stop()
    say("stopped")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
