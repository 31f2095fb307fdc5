"""What happens to links: cut, flapping, silent in one direction, slow with a full table on it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

from labs.impairments import Link
from labs.node import Node
from labs.scenarios.files import Given, configured, own_file
from labs.scenarios.looking import established_counts, sessions
from labs.scenarios.routers import two_ways
from labs.scenarios.story import Scenario, Story
from labs.topology import Bind, Topology


async def _cut(story: Story) -> None:
    await two_ways(story)
    link = Link.find(story.net, "tor1:eth1")
    await link.down()
    story.event("the link between tor1 and n1 is cut")
    await two_ways(story, 1)
    await story.rest(0.5)
    await link.up()
    story.event("the link is mended")
    await two_ways(story)
    await story.settle()


async def _flap(story: Story) -> None:
    link = Link.find(story.net, "tor1:eth1")
    for turn in range(1, 4):
        await link.down()
        await link.up()
        story.event(f"the only link of n1 flaps, {turn} of 3")
        await story.rest(0.2)
        for address in story.pod("n2").addresses:
            await story.until(f"n1's pod reaches {address}", partial(_reaches, story, address))
        await story.rest(0.5)
    await story.settle()
    await story.reach("after the flaps")


async def _reaches(story: Story, address: str) -> bool:
    return bool(await story.pod("n1").ping(address, wait=0.2))


RESTART_TIME = 5


def _short(plan: Topology, directory: Path) -> Topology:
    def change(_: str, given: Given) -> None:
        given["bgp"]["gracefulRestart"] = {"restartTime": RESTART_TIME}

    return configured(plan, directory, change)


async def _one_way(story: Story) -> None:
    await two_ways(story)
    link = Link.find(story.net, "tor1:eth1")
    await link.lose(100)
    story.event("what tor1 sends to n1 is lost; the other direction works")
    await two_ways(story, 1, within=30)
    await story.rest(0.5)
    await link.clear()
    story.event("the link works again")
    await two_ways(story)
    await story.settle()


FULL = 1_000_000
FEW = 1000
"""More than the fabric itself has."""
RATE = "8mbit"
TABLE = "/etc/bird/full.conf"
PROTOCOL = f"""protocol static full {{
  disabled;
  ipv4;
  include "{TABLE}";
}}

"""


def _full_table(plan: Topology, directory: Path) -> Topology:
    """BIRD, the second ToR of ``mixed``, has a full table for n1; pods' traffic prefers the first ToR."""
    table = directory / "full.conf"
    with table.open("w") as file:
        for number in range(FULL):
            file.write(f"route {16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.0/24 blackhole;\n")
    tor = plan.nodes["tor2"]
    tor = replace(tor, binds=(*tor.binds, Bind(table, TABLE, True, tor.place, False)))
    plan = replace(plan, nodes={**plan.nodes, "tor2": tor})

    def bird(text: str) -> str:
        head, begin, rest = text.partition("protocol bgp n2v4")
        head = head.replace("protocol bgp n1v4", PROTOCOL + "protocol bgp n1v4")
        return head + begin + rest.replace("export all", 'export where proto != "full"')

    def change(_: str, given: Given) -> None:
        rule = {"name": "second", "match": {"family": "ipv4"}, "action": "accept", "set": {"localPref": 50}}
        rule6 = {**rule, "name": "second6", "match": {"family": "ipv6"}}
        for name, peer in given["peers"].items():
            if name.startswith("tor2"):
                peer["import"] = {"default": "accept", "rules": [rule, rule6]}

    return configured(own_file(plan, directory, "tor2", "/etc/bird/bird.conf", bird), directory, change)


async def _slow(story: Story) -> None:
    n1, tor = story.node("n1"), story.node("tor2")
    before = await established_counts(n1)
    for place in ("tor2:eth1", "n1:eth2"):
        await Link.find(story.net, place).rate(RATE)
    story.event(f"the link between tor2 and n1 is limited to {RATE} in both directions")
    await tor.run("birdc", "enable", "full")
    story.event(f"tor2 announces {FULL} prefixes to n1")
    taken = await story.until(f"n1's kernel has {FULL} routes more", partial(_holds, n1, FULL), timeout=150)
    story.figure(f"{FULL} prefixes over {RATE}, until the last is in n1's kernel", f"{taken / 1000:.1f} s")
    await tor.run("birdc", "disable", "full")
    story.event("tor2 withdraws them")
    taken = await story.until("n1's kernel has none of them left", partial(_holds, n1, 0), timeout=120)
    story.figure("until the last is out of it", f"{taken / 1000:.1f} s")
    await story.settle()
    story.check(await established_counts(n1) == before, "no session of n1 was lost")
    states = await sessions(n1)
    story.check(set(states) == {"Established"}, f"n1's sessions: {', '.join(states)}")


async def _holds(node: Node, wanted: int) -> bool:
    peers = {peer["name"]: peer for peer in await node.agent.get("/v1/peers")}
    accepted = peers["tor2-v4"]["families"]["ipv4"]["accepted"]
    if accepted < wanted or (not wanted and accepted > FEW):
        await asyncio.sleep(0.2)
        return False
    await node.agent.converged(timeout=120)
    installed = (await node.agent.get("/v1/status"))["fib"]["ipv4"]["installed"]
    return bool(installed >= wanted if wanted else installed <= FEW)


SCENARIOS = (
    Scenario(
        name="link-cut",
        promise="One of a node's two links is cut: its traffic takes the other within a second.",
        topology="dual-tor",
        steps=_cut,
        outage=1000,
        core=True,
        compared=True,
    ),
    Scenario(
        name="link-flap",
        promise="The only link of a node flaps: its traffic is back when its session is, within five seconds.",
        topology="one-tor",
        steps=_flap,
        outage=5000,
        compared=True,
    ),
    Scenario(
        name="one-way-loss",
        promise="A link that is silent in one direction only is left by the node when the hold time, 9 s, is over, and "
        "by the ToR, which cannot tell it from a restart of the agent, when another keepalive, 3 s, and restartTime, "
        f"here {RESTART_TIME} s, are.",
        topology="dual-tor",
        steps=_one_way,
        outage=1000 * (9 + 3 + RESTART_TIME + 1),
        prepare=_short,
    ),
    Scenario(
        name="slow-link-full-table",
        promise=f"A full table of {FULL} prefixes comes and goes over a slow link: no session is lost, and pods whose "
        "packets take another link lose none.",
        topology="mixed",
        steps=_slow,
        prepare=_full_table,
    ),
)
