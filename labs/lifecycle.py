"""Nodes going through their stages, each waiting for what it has to wait for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from labs.errors import CommandError, LabError
from labs.node import Node
from labs.processes import await_end
from labs.stages import Phase, Stage, StageExec, before, requirements
from labs.topology import Healthcheck, Link, Topology
from labs.waiting import off_loop

RunExec = Callable[[str, StageExec], Awaitable[None]]
"""Runs a command of a node's stage."""


class Lifecycle:
    """What the nodes of one lab have finished."""

    def __init__(self, plan: Topology, run: RunExec) -> None:
        self._nodes = plan.nodes
        self._run = run
        self._needed = requirements(plan.nodes)
        self._finished = {step: asyncio.Event() for step in self._needed}
        self._awaited = {
            wait for node in plan.nodes.values() for stage in node.stages.values() for wait in stage.wait_for
        }

    def calls_for(self, node: str, stage: Stage) -> bool:
        """Tell whether something waits for a node's stage, or happens in it: ``healthy`` and ``exit`` may not be."""
        return (node, stage) in self._awaited or stage in self._nodes[node].stages

    @asynccontextmanager
    async def stage(self, node: str, stage: Stage) -> AsyncIterator[None]:
        """Enter a node's stage when it may be entered, and finish it when the block ends."""
        for step in sorted(self._needed[node, stage]):
            if step[0] != node:
                await self._finished[step].wait()
        await self._execs(node, stage, Phase.ENTER)
        yield
        await self._execs(node, stage, Phase.EXIT)
        self._finished[node, stage].set()

    async def _execs(self, node: str, stage: Stage, phase: Phase) -> None:
        plan = self._nodes[node].stages.get(stage)
        for command in plan.execs if plan else ():
            if command.phase is phase:
                await self._run(node, command)


def apart(plan: Topology) -> set[Link]:
    """Return the links whose ends are attached one after the other: one node waits for the other to have its links."""
    needed = requirements(plan.nodes)
    earlier = {name: before(needed, (name, Stage.CREATE_LINKS)) for name in plan.nodes}

    def waits(node: str, other: str) -> bool:
        return (other, Stage.CREATE_LINKS) in earlier.get(node, ())

    return {
        link for link in plan.links if link.z and (waits(link.a.node, link.z.node) or waits(link.z.node, link.a.node))
    }


async def until_healthy(node: Node, check: Healthcheck) -> None:
    """Wait until a node's test succeeds. Raises LabError with what it said when it has failed too often."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    failures = 0
    while True:
        try:
            await node.run(*check.test, timeout=check.timeout)
            return
        except CommandError as error:
            failures = failures + 1 if loop.time() - started >= check.start_period else 0
            if failures >= check.retries:
                raise LabError(
                    f"node {node.name} is not healthy, {failures} checks failed, the last: {error}"
                ) from None
        await asyncio.sleep(check.interval)


async def until_exit(node: Node) -> None:
    """Wait until a node's own command has ended."""
    if process := node.process:
        await off_loop(lambda: await_end([process], math.inf), abandon=True)
