"""Whole agents on one store whose containers come, go and vanish while agents are killed; then `podroute ipam check`.

    python -m tests.agents_hammer SECONDS

Needs root. Each agent has a network namespace and some runtimes that ADD and DEL with the real plugin; now and then a
container goes without DEL. Exit status 1 where `check` finds anything at the end, in ledger, store, kernel or
namespaces, or where anything is left once all containers are gone.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time

from tests.agents import PATIENCE, Agent, agents
from tests.kernel.test_agent_life import call
from tests.netns import Netns

AGENTS, RUNTIMES, PODS = 4, 2, 4
POOLS = {"p4": {"cidr": "10.64.0.0/24", "blockSize": 30}, "p6": {"cidr": "fd00:64::/120", "blockSize": 126}}


class Runtime:
    """Starts and ends containers of one agent, one after the other, and does what runtimes do after a failure."""

    def __init__(self, agent: Agent, number: int) -> None:
        self._agent = agent
        self._name = f"{agent.name}-{number}"
        self._pods: dict[str, Netns] = {}
        self._count = 0
        self.added = 0

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            if self._pods and random.random() < len(self._pods) / (2 * PODS):
                await self._remove(random.choice(list(self._pods)), quietly=random.random() < 0.2)
            else:
                await self._add()

    async def end(self) -> None:
        for name in list(self._pods):
            await self._remove(name)

    async def _add(self) -> None:
        self._count += 1
        name, pod = f"{self._name}-{self._count}", Netns()
        # A path of its own: a descriptor's number would be another namespace's soon
        path = self._agent.directory / name
        path.symlink_to(pod.path)
        pod.path = str(path)
        self._pods[name] = pod
        done = await asyncio.to_thread(call, self._agent, "ADD", pod, name)
        if done.returncode:
            await self._remove(name)
        else:
            self.added += 1

    async def _remove(self, name: str, *, quietly: bool = False) -> None:
        pod = self._pods.pop(name)
        if not quietly:
            done = await asyncio.to_thread(call, self._agent, "DEL", pod, name)
            assert not done.returncode, f"DEL failed: {done.stdout}"
        (self._agent.directory / name).unlink()
        pod.close()


async def killer(running: list[Agent], until: float) -> int:
    kills = 0
    while time.monotonic() < until:
        await asyncio.sleep(random.uniform(0.5, 1.5))
        agent = random.choice(running)
        await agent.stop(signal.SIGKILL)
        await agent.start()
        kills += 1
    return kills


async def agreed(agent: Agent) -> str:
    """Return what `podroute ipam check` finds once nothing is under way, nothing where all agrees."""
    give_up = time.monotonic() + PATIENCE
    while True:
        done = await asyncio.to_thread(agent.command, "ipam", "check")
        if not done.returncode or time.monotonic() > give_up:
            return done.stdout + done.stderr if done.returncode else ""
        await asyncio.sleep(0.5)


async def hammer(seconds: float) -> int:
    spaces = [Netns() for _ in range(AGENTS)]
    try:
        async with agents() as (directory, running):
            for number, ns in enumerate(spaces, 1):
                ipam = {"graceTime": 1, "idleAfter": 2, "lease": 3, "borrowing": True}
                agent = Agent(ns, directory, f"n{number}", 65000 + number, pools=POOLS, ipam=ipam)
                running.append(await agent.start())
            runtimes = [Runtime(agent, number) for agent in running for number in range(RUNTIMES)]
            until = time.monotonic() + seconds
            kills, *_ = await asyncio.gather(killer(running, until), *(one.run(until) for one in runtimes))
            wrong = [f"{agent.name}: {found}" for agent in running if (found := await agreed(agent))]
            for runtime in runtimes:
                await runtime.end()
            for agent in running:
                if found := await agreed(agent):
                    wrong.append(f"{agent.name}, emptied: {found}")
                if pods := await agent.get("/v1/pods"):
                    wrong.append(f"{agent.name}, emptied: still has {pods}")
                if "Traceback" in agent.log:
                    wrong.append(f"{agent.name}: {agent.log}")
    finally:
        for ns in spaces:
            ns.close()
    for line in wrong:
        print(line)
    added = sum(runtime.added for runtime in runtimes)
    print(f"agents: {AGENTS} nodes, {seconds:g} s, {kills} kills, {added} containers, {len(wrong)} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(hammer(float(sys.argv[1]))))
