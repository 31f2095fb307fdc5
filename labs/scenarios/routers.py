"""What happens to ToRs: their BGP killed, restarted with and without grace, the whole router rebooted."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from labs import frr
from labs.node import Node
from labs.scenarios.files import FRR_CONFIG, FRR_DAEMONS, own_file
from labs.scenarios.looking import ways
from labs.scenarios.story import Scenario, Story
from labs.scenarios.watch import Watch
from labs.topology import Topology
from labs.waiting import together


async def two_ways(story: Story, wanted: int = 2, *, within: float = 60.0) -> None:
    """Wait until the nodes' kernels have that many ways to each other's blocks, some seconds at most."""
    waiting = []
    for node, other in (("n1", "n2"), ("n2", "n1")):
        for block in await story.daemon.blocks(story.node(other)):
            what = f"{node} has {wanted} way{'s' if wanted > 1 else ''} to {block}"
            waiting.append(story.until(what, partial(ways, story.node(node), block, wanted), timeout=within))
    await together(waiting)


DEAF = """table inet starting {
  chain in { type filter hook input priority 0; tcp dport 179 drop; }
  chain out { type filter hook output priority 0; tcp dport 179 drop; }
}"""


async def start_bgpd(router: Node) -> None:
    """Start an FRR's bgpd again, and hand it the configuration, before it hears from its peers.

    It takes that line by line. A session that comes up meanwhile is closed by a later line: a second restart within the
    first, at which stale routes have to go (RFC 4724 section 4.2). On a busy machine there is time for that.
    """
    variables = frr.parse((router.root / "etc/frr/daemons").read_text())
    await router.run("nft", "-f", "-", input=DEAF)
    await router.run(*frr.commands(variables)["bgpd"])
    await frr.load(router)
    await router.run("nft", "delete", "table", "inet", "starting")


async def _end(router: Node, daemon: str, number: signal.Signals) -> None:
    """End a daemon of an FRR, and wait until it is gone."""
    await router.run("pkill", f"-{number.name.removeprefix('SIG')}", "-x", daemon)
    while not (await router.run("pgrep", "-x", daemon, check=False)).returncode:
        pass


def _bgpd_ends(number: signal.Signals) -> Callable[[Story], Awaitable[None]]:
    async def steps(story: Story) -> None:
        tor = story.node("tor1")
        await two_ways(story)
        await _end(tor, "bgpd", number)
        story.event(f"tor1's bgpd gets {number.name}")
        await two_ways(story, 1)
        await story.rest(0.5)
        await start_bgpd(tor)
        story.event("tor1's bgpd is started")
        await two_ways(story)
        await story.settle()

    return steps


def replacing(plan: Topology, directory: Path) -> Topology:
    """Have tor1's zebra replace IPv6 routes: if not told so, it deletes a route before it puts the new one."""
    option = 'zebra_options="--v6-rr-semantics'
    return own_file(plan, directory, "tor1", FRR_DAEMONS, lambda text: text.replace('zebra_options="', option))


def _graceful(plan: Topology, directory: Path) -> Topology:
    plan = replacing(plan, directory)
    words = "router bgp 65011\n bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n"
    return own_file(plan, directory, "tor1", FRR_CONFIG, lambda text: text.replace("router bgp 65011\n", words))


async def _restarted_gracefully(story: Story) -> None:
    tor = story.node("tor1")
    async with Watch(story.node("n1"), story.node("n2")) as watch:
        await _end(tor, "bgpd", signal.SIGKILL)
        story.event("tor1's bgpd ends without a word; its zebra keeps the routes")
        await story.rest(0.5)
        await start_bgpd(tor)
        story.event("tor1's bgpd is started")
        await story.settle()
    watch.judge(story, "restart")


async def _rebooted(story: Story) -> None:
    tor = story.node("tor1")
    await two_ways(story)
    interfaces = ("eth1", "eth2")
    for interface in interfaces:
        await tor.run("ip", "link", "set", interface, "down")
    for daemon in ("bgpd", "staticd", "zebra"):
        await _end(tor, daemon, signal.SIGKILL)
    for family in ("-4", "-6"):
        await tor.run("ip", family, "route", "flush", "table", "main", check=False)
    await tor.run("ip", "nexthop", "flush")
    for interface in (*interfaces, "lo"):
        await tor.run("ip", "addr", "flush", "dev", interface, "scope", "global")
    story.event("tor1 reboots: links down, all daemons killed, routes, next hops and addresses gone")
    await two_ways(story, 1)
    await story.rest(0.5)
    for interface in interfaces:
        await tor.run("ip", "link", "set", interface, "up")
    await frr.start(tor)
    story.event("tor1 is up: links, then FRR with its configuration")
    await two_ways(story)
    await story.settle()


SCENARIOS = (
    Scenario(
        name="tor-bgpd-killed",
        promise="One of two ToRs loses its BGP: nodes use the other within a second, and both when it is back.",
        topology="dual-tor",
        steps=_bgpd_ends(signal.SIGKILL),
        outage=1000,
        compared=True,
    ),
    Scenario(
        name="tor-restarted",
        promise="One of two ToRs restarts its BGP without graceful restart: nodes use the other within a second, and "
        "both when it is back.",
        topology="dual-tor",
        steps=_bgpd_ends(signal.SIGTERM),
        outage=1000,
    ),
    Scenario(
        name="tor-restarted-gracefully",
        promise="The only ToR restarts its BGP, with graceful restart: no packet is lost, and no route changes in the "
        "kernels of its nodes (RFC 4724).",
        topology="one-tor",
        steps=_restarted_gracefully,
        prepare=_graceful,
        compared=True,
    ),
    Scenario(
        name="tor-rebooted",
        promise="One of two ToRs reboots: nodes use the other within a second, and both when it is back.",
        topology="dual-tor",
        steps=_rebooted,
        outage=1000,
    ),
)
