"""What happens to nodes and their agents."""

from __future__ import annotations

import signal

from labs.fabric import converge
from labs.node import Node
from labs.scenarios.story import Scenario, Story
from labs.scenarios.watch import Watch


async def has_route(node: Node, prefix: str) -> bool:
    """Tell whether the node's kernel has a route to exactly this prefix, whoever made it."""
    family = "-6" if ":" in prefix else "-4"
    return bool((await node.run("ip", family, "route", "show", "exact", prefix)).stdout)


async def _joins_and_leaves(story: Story) -> None:
    n1, n4 = story.node("n1"), story.node("n4")
    blocks = await n4.agent.blocks()
    await n4.stop()
    story.event("n4 leaves: its agent is stopped")
    for block in blocks:
        await story.until(f"n1 has no route to {block}", lambda block=block: _gone(n1, block))  # type: ignore[misc]
    n4.start()
    story.event("n4 joins: its agent is started")
    await story.until("n4's agent answers", lambda: _answers(n4))
    for block in await n4.agent.blocks():
        await story.until(f"n1 has a route to {block}", lambda block=block: has_route(n1, block))  # type: ignore[misc]
    await story.settle()
    story.check(await n4.agent.blocks() == blocks, "n4 has the blocks that it had")


async def _gone(node: Node, prefix: str) -> bool:
    return not await has_route(node, prefix)


async def _answers(node: Node) -> bool:
    await node.agent.answering()
    return True


PREFIXES = 50


async def _prefixes(story: Story) -> None:
    tor, n1, n2 = (story.node(name) for name in ("tor1", "n1", "n2"))
    lines4 = [f"network 203.0.113.{4 * number}/30" for number in range(PREFIXES)]
    lines6 = [f"network fd00:113:{number:x}::/48" for number in range(PREFIXES)]
    for word, wanted in (("", PREFIXES), ("no ", 0)):
        script = ["configure terminal", "router bgp 65011", "no bgp network import-check"]
        for family, lines in (("ipv4", lines4), ("ipv6", lines6)):
            script += [f"address-family {family} unicast", *(word + line for line in lines), "exit-address-family"]
        await tor.run("vtysh", input="\n".join(_open_route_map(tor) + script + ["end", ""]))
        verb = "withdraws" if word else "announces"
        story.event(f"the ToR {verb} {PREFIXES} IPv4 and {PREFIXES} IPv6 prefixes")
        for node in (n1, n2):
            what = f"{node.name} has {wanted} of them per family"
            await story.until(what, lambda node=node, wanted=wanted: _count(node, wanted))  # type: ignore[misc]
        await story.rest(0.3)
    await story.settle()


def _open_route_map(_: Node) -> list[str]:
    """The shipped topology passes only what its fabric has; the test prefixes are let through as well."""
    return [
        "configure terminal",
        "ip prefix-list FABRIC seq 100 permit 203.0.113.0/24 le 30",
        "ipv6 prefix-list FABRIC6 seq 100 permit fd00:113::/32 le 48",
        "end",
    ]


async def _count(node: Node, wanted: int) -> bool:
    said4 = (await node.run("ip", "-4", "route", "show", "root", "203.0.113.0/24")).stdout
    said6 = (await node.run("ip", "-6", "route", "show", "root", "fd00:113::/32")).stdout
    return (said4.count("203.0.113."), said6.count("fd00:113:")) == (wanted, wanted)


def _restarted(number: signal.Signals) -> Scenario:
    killed = number == signal.SIGKILL

    async def steps(story: Story) -> None:
        n1, tor = story.node("n1"), story.node("tor1")
        await n1.agent.converged()
        pod = story.pod("n1").addresses
        async with Watch(n1) as here, Watch(tor) as there:
            await n1.stop(number)
            story.event(f"n1's agent is {'killed' if killed else 'stopped'}: {number.name}")
            await story.rest(0.2)
            n1.start()
            story.event("n1's agent is started")
            await story.until("n1's agent answers", lambda: _answers(n1))
            await story.settle()
        story.check(not here.lines, f"routes changed on n1: {len(here.lines)}" + _some(here.lines))
        story.figure("routes changed on the ToR", f"{len(there.lines)} times")
        kept = [address for address in pod if await story.pod("n2").ping(address)]
        story.check(kept == pod, "the pod on n1 has the addresses that it had, and answers")

    return Scenario(
        name="agent-killed" if killed else "agent-restart",
        promise=(
            f"An agent that {'is killed' if killed else 'stops'} and starts again leaves every route of its own "
            "node's kernel in place. Without graceful restart its ToR withdraws the node's block meanwhile."
        ),
        topology="one-tor",
        steps=steps,
        outage=15_000,
        core=killed,
    )


def _some(lines: list[str]) -> str:
    return "".join(f"; {line}" for line in lines[:3])


async def _password(story: Story) -> None:
    tor, n1 = story.node("tor1"), story.node("n1")
    neighbours = ("10.1.1.2", "fd00:1:1::2")
    for word, up in (("", False), ("no ", True)):
        setting = [f"{word}neighbor {address} password {'' if word else 'other'}".strip() for address in neighbours]
        await tor.run("vtysh", input="\n".join(["configure terminal", "router bgp 65011", *setting, "end", ""]))
        story.event(f"the ToR's password for n1 is {'right again' if up else 'another one'}")
        state = "all" if up else "none"
        await story.until(f"{state} of n1's sessions are established", lambda up=up: _sessions(n1, up))  # type: ignore[misc]
        if not up:
            block = (await n1.agent.blocks())[0]
            n2 = story.node("n2")
            await story.until("n2 has no route to n1's block", lambda block=block, n2=n2: _gone(n2, block))  # type: ignore[misc]
            others = [peer["state"] for peer in await n2.agent.get("/v1/peers")]
            story.check(set(others) == {"Established"}, f"n2's sessions: {', '.join(others)}")
    await converge(story.net)
    story.event("converged")
    lost = [a for a in story.pod("n2").addresses if not await story.pod("n1").ping(a)]
    story.check(not lost, "pods reach each other with the right password again")


async def _sessions(node: Node, up: bool) -> bool:
    states = [peer["state"] for peer in await node.agent.get("/v1/peers")]
    return all((state == "Established") == up for state in states)


SCENARIOS = (
    Scenario(
        name="node-joins-and-leaves",
        promise="Nodes come and go; pods of other nodes lose no packet, and a node that comes back has its blocks.",
        topology="two-racks",
        steps=_joins_and_leaves,
        ends=("n1", "n3"),
    ),
    Scenario(
        name="fifty-prefixes",
        promise="Prefixes that the fabric announces and withdraws reach the kernels, and disturb no other traffic.",
        topology="one-tor",
        steps=_prefixes,
        core=True,
    ),
    _restarted(signal.SIGKILL),
    _restarted(signal.SIGTERM),
    Scenario(
        name="wrong-password",
        promise="A peer with another TCP MD5 password gets no session and disturbs no other; the right one heals it.",
        topology="one-tor",
        steps=_password,
        outage=None,
    ),
)
