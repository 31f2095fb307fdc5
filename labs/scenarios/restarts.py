"""The agent goes and comes back: told to, killed, twice within a moment, as another release, with its store away."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from labs.node import Node
from labs.scenarios.files import Given, configured
from labs.scenarios.looking import ways
from labs.scenarios.story import Scenario, Story
from labs.scenarios.watch import Watch
from labs.topology import Topology

GRACEFUL, KILLED = signal.SIGTERM, signal.SIGKILL


def _restarted(number: signal.Signals, times: int) -> Callable[[Story], Awaitable[None]]:
    async def steps(story: Story) -> None:
        pod = story.pod("n1").addresses
        for turn in range(1, times + 1):
            async with Watch(story.node("n1"), story.node("n2"), story.node("tor1")) as watch:
                await _restart(story, number)
            watch.judge(story, f"restart {turn}")
        kept = [address for address in pod if await story.pod("n2").ping(address)]
        story.check(kept == pod, "the pod on n1 has the addresses that it had, and answers")

    return steps


async def _restart(story: Story, number: signal.Signals) -> None:
    """End what routes on n1, and start it again."""
    n1 = story.node("n1")
    await story.stop(n1, number)
    await story.rest(0.2)
    await story.start(n1)
    await story.settle()


def _without(plan: Topology, directory: Path) -> Topology:
    def change(_: str, given: Given) -> None:
        given["bgp"]["gracefulRestart"] = {"enabled": False}

    return configured(plan, directory, change)


async def _control(story: Story) -> None:
    async with Watch(story.node("tor1")) as watch:
        await _restart(story, GRACEFUL)
    lines = watch.lines["tor1"]
    story.check(bool(lines), f"routes that changed in the kernel of tor1: {len(lines)}")


async def _within_window(story: Story) -> None:
    """tor2 answers no more: n1, back from its first restart, still waits for its table when it restarts again."""
    n1, n2, tor2 = (story.node(name) for name in ("n1", "n2", "tor2"))
    mine, theirs = await n1.agent.blocks(), await n2.agent.blocks()
    for block in theirs:
        await story.until(f"n1 has two ways to {block}", partial(ways, n1, block, 2))
    for block in mine:
        await story.until(f"n2 has two ways to {block}", partial(ways, n2, block, 2))
    await tor2.run("pkill", "-STOP", "-x", "bgpd")
    story.event("tor2's bgpd is stopped (SIGSTOP): it takes connections, and says nothing")
    for turn in ("first", "second"):
        await story.stop(n1, GRACEFUL)
        await story.start(n1)
        await story.until("n1 has its sessions with tor1", partial(_up, n1, "tor1"))
        await story.until(f"n1, after its {turn} restart, waits for the table of tor2 only", partial(_defers, n1))
    await story.rest(0.5)
    await tor2.run("pkill", "-CONT", "-x", "bgpd")
    story.event("tor2's bgpd goes on")
    await story.settle()


async def _up(node: Node, router: str) -> bool:
    peers = [peer for peer in await node.agent.get("/v1/peers") if peer["name"].startswith(router)]
    return bool(peers) and all(peer["state"] == "Established" for peer in peers)


async def _defers(node: Node) -> bool:
    waiting = [line for line in (await node.agent.get("/v1/status"))["waitingFor"] if "after our restart" in line]
    return len(waiting) == 2 and all("tor2" in line and "tor1" not in line for line in waiting)


SCENARIOS = (
    Scenario(
        name="agent-restart",
        promise="Three restarts of the agent in a row, each after our End-of-RIB: no packet is lost, and no route "
        "changes in the kernels of nodes and ToR, IPv4 and IPv6 (graceful restart, RFC 4724).",
        topology="one-tor",
        steps=_restarted(GRACEFUL, 3),
        core=True,
        compared=True,
    ),
    Scenario(
        name="agent-killed",
        promise="An agent that is killed and starts again interrupts nothing: its routes stay in the kernel, and its "
        "ToR waits for it (graceful restart, RFC 4724).",
        topology="one-tor",
        steps=_restarted(KILLED, 1),
        core=True,
        compared=True,
    ),
    Scenario(
        name="agent-restart-control",
        promise="The same restart without graceful restart, for comparison: the ToR withdraws the node's blocks.",
        topology="one-tor",
        steps=_control,
        outage=None,
        prepare=_without,
    ),
    Scenario(
        name="agent-restart-again",
        promise="An agent that restarts again before its first restart is complete, because one ToR keeps it waiting, "
        "costs a second at most: its own blocks are announced at once, which confirms them (RFC 4724 section 4.2).",
        topology="dual-tor",
        steps=_within_window,
        outage=1000,
    ),
)
