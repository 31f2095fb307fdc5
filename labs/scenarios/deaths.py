"""A node dies for good while another one restarts."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

from labs.impairments import Link
from labs.node import Node
from labs.scenarios.files import Given, configured, edit
from labs.scenarios.looking import gone, has_route
from labs.scenarios.story import Scenario, Story
from labs.topology import Topology

BEFORE, AFTER = ["192.0.2.3/32", "2001:db8::3/128"], ["198.51.100.3/32", "2001:db8::33/128"]
"""What n3 announces besides its blocks, before and after n1's restart."""
MINE = ["192.0.2.1/32", "2001:db8::1/128"]
"""What n1 announces before its restart, and no more after it."""
PATIENCE = 10_000
"""Milliseconds in which those that live are through with each other."""


def _announcing(plan: Topology, directory: Path) -> Topology:
    def change(name: str, given: Given) -> None:
        given["advertise"] = {"n1": MINE, "n2": [], "n3": BEFORE}[name]

    return configured(plan, directory, change)


async def _dies_meanwhile(story: Story) -> None:
    n1, n2, n3 = (story.node(name) for name in ("n1", "n2", "n3"))
    dead = await n2.agent.blocks()
    await story.stop(n1, signal.SIGTERM)
    edit(n1, lambda given: given.update(advertise=[]))
    await story.stop(n2, signal.SIGKILL)
    await Link.find(story.net, "n2:eth1").down()
    story.event("n2 dies for good: agent and link are gone")
    edit(n3, lambda given: given.update(advertise=AFTER))
    await n3.run("podroute", "reload")
    story.event("n3 announces other prefixes than before")
    await story.start(n1)
    taken = []
    for prefix in AFTER:
        taken.append(await story.until(f"n1 has a route to {prefix} of n3", partial(has_route, n1, prefix), timeout=90))
    for prefix in BEFORE:
        what = f"n1 has no route to {prefix}, which n3 does not announce any more"
        taken.append(await story.until(what, partial(gone, n1, prefix), timeout=90))
    for prefix in MINE:
        what = f"n3 has no route to {prefix}, which n1 does not announce any more"
        taken.append(await story.until(what, partial(gone, n3, prefix), timeout=90))
    story.check(sum(taken) <= PATIENCE, f"n1 and n3 were through with each other after {sum(taken):.0f} ms")
    for node in (n1, n3):
        held = [block for block in dead if await has_route(node, block)]
        story.check(held == dead, f"{node.name} keeps its routes to the dead n2: {await _stale(node)}")
    await story.rest(0.5)


async def _stale(node: Node) -> str:
    peers = await node.agent.get("/v1/peers")
    return ", ".join(f"{peer['name']} {peer['state']}" for peer in peers)


SCENARIOS = (
    Scenario(
        name="node-dies-meanwhile",
        promise="While one node restarts, another one dies for good: only the routes to the dead one wait for the end "
        "of its restart time; the others follow what is announced, and no packet between those that live is lost.",
        topology="mesh",
        steps=_dies_meanwhile,
        ends=("n1", "n3"),
        prepare=_announcing,
    ),
)
