"""Nodes come, go and move; blocks and prefixes come and go."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

from labs.node import Node
from labs.pods import Pod
from labs.scenarios.files import Given, configured, edit
from labs.scenarios.looking import all_established, configure, ended, gone, has_route
from labs.scenarios.routers import replacing
from labs.scenarios.story import Scenario, Story
from labs.scenarios.watch import Watch
from labs.topology import Topology
from labs.waiting import together


async def _joins_and_leaves(story: Story) -> None:
    n1, n4 = story.node("n1"), story.node("n4")
    blocks = await n4.agent.blocks()
    await n4.run("podroute", "stop", "--mode", "purge")
    story.event("n4 leaves: `podroute stop --mode purge`")
    for block in blocks:
        await story.until(f"n1 has no route to {block}", partial(gone, n1, block))
    await story.until("n4's agent has ended", partial(ended, n4))
    await story.start(n4)
    await story.settle()
    again = await n4.agent.blocks()
    held = [await has_route(n1, block) for block in again]
    story.check(again == blocks and all(held), f"n4 has {' and '.join(again)} as before, n1 has routes to them")


OLD, NEW = "10.1.1", "10.1.5"
OLD6, NEW6 = "fd00:1:1:", "fd00:1:5:"


NEIGHBOURS = (
    "router bgp 65011",
    f"neighbor {NEW}.2 remote-as 4200000001",
    f"neighbor {NEW}.2 peer-group NODES",
    f"neighbor {NEW6}:2 remote-as 4200000001",
    f"neighbor {NEW6}:2 peer-group NODES6",
)
"""What the ToR is told of n1's new addresses."""


async def _renumbered(story: Story) -> None:
    tor, n1, n2 = (story.node(name) for name in ("tor1", "n1", "n2"))
    async with Watch(tor, n1, n2) as watch:
        await _renumber(story, tor, n1)
    watch.judge_kept(story, [*await n1.agent.blocks(), *await n2.agent.blocks()])


async def _renumber(story: Story, tor: Node, n1: Node) -> None:
    """Other addresses on the link beside the old ones, other sessions, then the old ones go."""
    before = story.pod("n1").addresses
    await n1.run("ip", "addr", "add", f"{NEW}.2/30", "dev", "eth1")
    await n1.run("ip", "addr", "add", f"{NEW6}:2/64", "dev", "eth1")
    await configure(tor, "interface eth1", f"ip address {NEW}.1/30", f"ipv6 address {NEW6}:1/64", "exit", *NEIGHBOURS)
    edit(n1, _peer_anew)
    await n1.run("podroute", "reload")
    story.event("n1 has other addresses beside the old ones, and peers with the ToR on both: `podroute reload`")
    await story.until("all of n1's sessions are established", partial(all_established, n1))
    await story.settle()
    edit(n1, _forget_old)
    await n1.run("podroute", "reload")
    story.event("n1's old peers leave its file: `podroute reload`")
    await configure(tor, "router bgp 65011", f"no neighbor {OLD}.2", f"no neighbor {OLD6}:2")
    await configure(tor, "interface eth1", f"no ip address {OLD}.1/30", f"no ipv6 address {OLD6}:1/64")
    await n1.run("ip", "addr", "del", f"{OLD}.2/30", "dev", "eth1")
    await n1.run("ip", "addr", "del", f"{OLD6}:2/64", "dev", "eth1")
    story.event("the old addresses are gone")
    await story.settle()
    edit(n1, lambda given: given["node"].update(routerId=f"{NEW}.2"))
    await story.stop(n1, signal.SIGTERM)
    await story.start(n1)
    await story.settle()
    status = await n1.agent.get("/v1/status")
    story.check(status["node"]["routerId"] == f"{NEW}.2", f"n1's router ID is {status['node']['routerId']}")
    found = (await n1.run("ip", "route")).stdout + (await n1.run("ip", "-6", "route")).stdout
    story.check(
        f"via {OLD}.1" not in found and f"via {OLD6}:1" not in found, "no route of n1 leads to the old addresses"
    )
    story.check(story.pod("n1").addresses == before, "the pod on n1 has the addresses that it had")


def _renumbering(plan: Topology, directory: Path) -> Topology:
    return replacing(configured(plan, directory), directory)


def _peer_anew(given: Given) -> None:
    for name, (own, tor) in {"tor-v4": (f"{NEW}.2", f"{NEW}.1"), "tor-v6": (f"{NEW6}:2", f"{NEW6}:1")}.items():
        given["peers"][f"{name}-new"] = {**given["peers"][name], "address": tor, "localAddress": own}


def _forget_old(given: Given) -> None:
    del given["peers"]["tor-v4"], given["peers"]["tor-v6"]


def _small_blocks(plan: Topology, directory: Path) -> Topology:
    def change(_: str, given: Given) -> None:
        given["pools"]["pods4"]["blockSize"], given["pools"]["pods6"]["blockSize"] = 30, 126
        given["ipam"] = {"idleAfter": 1}

    return configured(plan, directory, change)


async def _blocks(story: Story) -> None:
    n1, n2 = story.node("n1"), story.node("n2")
    first = await n1.agent.blocks()
    pods = [Pod(n1, f"more{number}") for number in range(4)]
    story.event(f"four more pods start on n1, whose blocks {' and '.join(first)} have four addresses each")
    await together(pod.start() for pod in pods)
    added = [block for block in await n1.agent.blocks() if block not in first]
    story.event(f"n1 has further blocks: {', '.join(added)}")
    story.check(len(added) >= 2, "n1 got a further block of each family")
    for block in added:
        await story.until(f"n2 has a route to {block}", partial(has_route, n2, block))
    for pod in pods:
        answered = [address for address in pod.addresses if await story.pod("n2").ping(address)]
        story.check(answered == pod.addresses, f"n2's pod reaches {' and '.join(pod.addresses)}")
    await together(pod.stop() for pod in pods)
    story.event("the four pods are deleted")
    for block in added:
        await story.until(f"n2 has no route to {block}", partial(gone, n2, block))
    left = await n1.agent.blocks()
    story.check(left == first, f"n1 has {' and '.join(left)} again")
    await story.settle()


PREFIXES = 50
OPEN = (
    "ip prefix-list FABRIC seq 100 permit 203.0.113.0/24 le 30",
    "ipv6 prefix-list FABRIC6 seq 100 permit fd00:113::/32 le 48",
)
"""The shipped topology passes only what its fabric has: the prefixes of this scenario are let through as well."""


async def _prefixes(story: Story) -> None:
    tor, n1, n2 = (story.node(name) for name in ("tor1", "n1", "n2"))
    lines4 = [f"network 203.0.113.{4 * number}/30" for number in range(PREFIXES)]
    lines6 = [f"network fd00:113:{number:x}::/48" for number in range(PREFIXES)]
    for word, wanted in (("", PREFIXES), ("no ", 0)):
        script = ["router bgp 65011", "no bgp network import-check"]
        for family, lines in (("ipv4", lines4), ("ipv6", lines6)):
            script += [f"address-family {family} unicast", *(word + line for line in lines), "exit-address-family"]
        await configure(tor, *OPEN, *script)
        verb = "withdraws" if word else "announces"
        story.event(f"the ToR {verb} {PREFIXES} IPv4 and {PREFIXES} IPv6 prefixes")
        for node in (n1, n2):
            await story.until(f"{node.name} has {wanted} of them per family", partial(_count, node, wanted))
        await story.rest(0.3)
    await story.settle()


async def _count(node: Node, wanted: int) -> bool:
    said4 = (await node.run("ip", "-4", "route", "show", "root", "203.0.113.0/24")).stdout
    said6 = (await node.run("ip", "-6", "route", "show", "root", "fd00:113::/32")).stdout
    return (said4.count("203.0.113."), said6.count("fd00:113:")) == (wanted, wanted)


SCENARIOS = (
    Scenario(
        name="node-joins-and-leaves",
        promise="Nodes come and go; pods of other nodes lose no packet, and a node that comes back has its blocks.",
        topology="two-racks",
        steps=_joins_and_leaves,
        ends=("n1", "n3"),
    ),
    Scenario(
        name="node-renumbered",
        promise="A node gets other addresses and another router ID; its pods keep theirs and lose no packet.",
        topology="one-tor",
        steps=_renumbered,
        prepare=_renumbering,
    ),
    Scenario(
        name="block-added-and-released",
        promise="A node whose block is full gets a further one, and gives it back when it is empty; the fabric knows "
        "it for just that time, and no other traffic is disturbed.",
        topology="one-tor",
        steps=_blocks,
        prepare=_small_blocks,
    ),
    Scenario(
        name="fifty-prefixes",
        promise="Prefixes that the fabric announces and withdraws reach the kernels, and disturb no other traffic.",
        topology="one-tor",
        steps=_prefixes,
        core=True,
    ),
)
