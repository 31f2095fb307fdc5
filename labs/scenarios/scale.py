"""Many nodes at once: how long until all know all, and what that costs each."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from labs.fabric import podroute_nodes
from labs.node import Node
from labs.scenarios.curves import picture
from labs.scenarios.looking import ended, sessions
from labs.scenarios.story import Scenario, Story
from labs.waiting import together

SIZES = (5, 10, 20, 40)
PATIENCE = 180.0
"""Seconds: all agents start on this machine's CPUs."""
TICKS = os.sysconf("SC_CLK_TCK")
IDLE = 5.0
"""Seconds over which the CPU time of agents with nothing to do is taken."""


@dataclass(frozen=True, slots=True)
class Measured:
    """``cpu`` in seconds from the start of an agent until all had converged, ``idle`` in percent of one CPU
    afterwards, ``memory`` in MiB (proportional set size); each is the median of the agents that were started.
    """

    seconds: float
    sessions: int
    cpu: float
    idle: float
    memory: float


async def _grow(story: Story) -> None:
    nodes = podroute_nodes(story.net)
    staying = [node for node in nodes if node in [pod.node for pod in story.pods]]
    others = [node for node in nodes if node not in staying]
    found: dict[int, Measured] = {}
    for size in (size for size in SIZES if size <= len(nodes)):
        await _leave(story, staying[0], others)
        starting = others[: size - len(staying)]
        began = time.monotonic()
        for node in starting:
            node.start()
        story.event(f"{len(starting)} nodes start at once, {size} in all")
        await _all_know_all(story, [*staying, *starting])
        seconds = time.monotonic() - began
        story.event(f"every node has every block in its kernel (after {seconds:.1f} s)")
        found[size] = await _measure(seconds, [*staying, *starting], starting)
    for size, one in found.items():
        told = f"{one.seconds:.1f} s, {one.sessions} sessions; per node {one.cpu:.2f} s of CPU, idle {one.idle:.1f} %"
        story.figure(f"{size} nodes", f"{told}, {one.memory:.0f} MiB")
    panels: list[tuple[str, dict[int, float]]] = [
        ("seconds until all know all", {size: one.seconds for size, one in found.items()}),
        ("sessions", {size: one.sessions for size, one in found.items()}),
        ("CPU seconds per node till then", {size: one.cpu for size, one in found.items()}),
        ("MiB per node", {size: one.memory for size, one in found.items()}),
    ]
    story.draw(picture(panels, across="nodes"))
    story.check(max(found, default=0) == SIZES[-1], f"all of {', '.join(map(str, found))} nodes converged")


async def _leave(story: Story, witness: Node, nodes: Sequence[Node]) -> None:
    """Have nodes leave for good, and wait until somebody who stays knows it."""
    running = [node for node in nodes if node.process]
    blocks = [block for node in running for block in await node.agent.blocks()]
    await together(node.run("podroute", "stop", "--mode", "purge") for node in running)
    for node in running:
        await story.net.wait_for(f"end of {node.name}'s agent", partial(ended, node), timeout=PATIENCE)
    await story.net.wait_for("withdrawal of their blocks", partial(_none_of, witness, blocks), timeout=PATIENCE)
    story.event(f"{len(running)} nodes leave")


async def _all_know_all(story: Story, nodes: Sequence[Node]) -> None:
    """Wait until every kernel has every block. Agents tell when they have converged, kernels are asked after that."""
    await together(node.agent.answering(timeout=PATIENCE) for node in nodes)
    await together(node.agent.converged(timeout=PATIENCE) for node in nodes)
    blocks = {block for node in nodes for block in await node.agent.blocks()}
    for node in nodes:
        await story.net.wait_for(
            f"routes of {node.name} to all blocks", partial(_all_of, node, blocks), timeout=PATIENCE
        )


async def _known(node: Node) -> set[str]:
    said = [(await node.run("ip", family, "route", "show", "proto", "201")).stdout for family in ("-4", "-6")]
    return {word for line in "\n".join(said).splitlines() for word in line.split()[:2]}


async def _all_of(node: Node, blocks: set[str]) -> bool:
    return blocks <= await _known(node)


async def _none_of(node: Node, blocks: Sequence[str]) -> bool:
    return not set(blocks) & await _known(node)


async def _measure(seconds: float, nodes: Sequence[Node], started: Sequence[Node]) -> Measured:
    before = [_cpu(node) for node in started]
    states = [state for found in await together(sessions(node) for node in nodes) for state in found]
    resting = [_cpu(node) for node in started]
    await asyncio.sleep(IDLE)
    idle = [100 * (_cpu(node) - then) / IDLE for node, then in zip(started, resting, strict=True)]
    return Measured(
        seconds,
        states.count("Established"),
        statistics.median(before),
        statistics.median(idle),
        statistics.median(_memory(node) for node in started),
    )


def _cpu(node: Node) -> float:
    """Return the seconds of CPU that a node's agent has used, proc(5)."""
    fields = _proc(node, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _memory(node: Node) -> float:
    """Return the proportional set size of a node's agent in MiB, proc(5)."""
    (line,) = [line for line in _proc(node, "smaps_rollup").splitlines() if line.startswith("Pss:")]
    return int(line.split()[1]) / 1024


def _proc(node: Node, file: str) -> str:
    process = node.process
    return Path(f"/proc/{process.pid}/{file}").read_text() if process else ""


SCENARIOS = (
    Scenario(
        name="forty-nodes",
        promise="Up to 40 nodes start at once and all know all blocks, while pods of others that talk lose no packet.",
        topology="forty",
        steps=_grow,
        ends=("n1", f"n{SIZES[-1]}"),
    ),
)
