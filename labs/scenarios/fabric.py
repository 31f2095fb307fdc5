"""What happens to the routers and links around nodes, and to the kernels of nodes."""

from __future__ import annotations

from labs.fabric import converge
from labs.frr import DIRECTORY, commands, parse
from labs.impairments import Link
from labs.node import Node
from labs.scenarios.agents import has_route
from labs.scenarios.story import Scenario, Story


async def _tor_killed(story: Story) -> None:
    tor, n1 = story.node("tor1"), story.node("n1")
    block = (await story.node("n2").agent.blocks())[0]
    await story.until(f"n1 has two ways to {block}", lambda: _ways(n1, block, 2))
    await tor.run("pkill", "-KILL", "-x", "bgpd")
    story.event("tor1's bgpd is killed")
    await story.until("n1 has one way left", lambda: _ways(n1, block, 1))
    await story.rest(0.5)
    variables = parse((tor.root / "etc/frr/daemons").read_text())
    await tor.run(*commands(variables)["bgpd"])
    await tor.run("vtysh", "-b")
    story.event(f"{DIRECTORY.name}'s bgpd is started on tor1")
    await story.until("n1 has two ways again", lambda: _ways(n1, block, 2))
    await story.settle()


async def _link_cut(story: Story) -> None:
    n1 = story.node("n1")
    block = (await story.node("n2").agent.blocks())[0]
    await story.until(f"n1 has two ways to {block}", lambda: _ways(n1, block, 2))
    link = Link.find(story.net, "tor1:eth1")
    await link.down()
    story.event("the link between tor1 and n1 is cut")
    await story.until("n1 has one way left", lambda: _ways(n1, block, 1))
    await story.rest(0.5)
    await link.up()
    story.event("the link is mended")
    await story.until("n1 has two ways again", lambda: _ways(n1, block, 2))
    await story.settle()


async def _ways(node: Node, prefix: str, wanted: int) -> bool:
    """Tell whether the kernel has that many next hops for a prefix."""
    found = await node.agent.routes(prefix=prefix)
    return bool(found) and found[0]["kernel"] == "installed" and len(found[0]["installed"]) == wanted


async def _drift(story: Story) -> None:
    n1 = story.node("n1")
    blocks = await story.node("n2").agent.blocks()
    for family in ("-4", "-6"):
        done = await n1.run("ip", family, "route", "flush", "proto", "201", check=False)
        story.event(f"somebody runs `ip {family} route flush proto 201` on n1 {done.stderr.strip()}".strip())
    for block in blocks:
        await story.until(f"n1 has a route to {block}", lambda block=block: has_route(n1, block))  # type: ignore[misc]
    await story.settle()
    for block in blocks:
        family = "-6" if ":" in block else "-4"
        done = await n1.run("ip", family, "route", "del", block, check=False)
        story.event(f"somebody deletes the route to {block}" + (f": {done.stderr}" if done.stderr else ""))
        await story.until(f"n1 has a route to {block}", lambda block=block: has_route(n1, block))  # type: ignore[misc]
    await story.settle()
    link = Link.find(story.net, "tor1:eth1")
    await link.down()
    await link.up()
    story.event("the link of n1 flaps")
    await converge(story.net)
    story.event("converged")
    for address in story.pod("n2").addresses:
        await story.until(f"n1's pod reaches {address}", lambda address=address: _reaches(story, address))  # type: ignore[misc]


async def _reaches(story: Story, address: str) -> bool:
    return bool(await story.pod("n1").ping(address))


FOREIGN = "186"
"""The number that rtnetlink.h gives bgp, which FRR's zebra uses."""


async def _foreign(story: Story) -> None:
    n1 = story.node("n1")
    for block, gateway in zip(await story.node("n2").agent.blocks(), ("10.1.1.1", "fd00:1:1::1"), strict=True):
        family = "-6" if ":" in block else "-4"
        route = (block, "via", gateway, "dev", "eth1", "onlink", "proto", FOREIGN, "metric", "5")
        await n1.run("ip", family, "route", "add", *route)
        story.event(f"another daemon adds a better route of its own to {block}")
        await story.rest(0.3)
        listed = (await n1.run("ip", family, "route", "show", "exact", block)).stdout
        story.check("proto bgp" in listed and "proto 201" in listed, f"both routes to {block} stand side by side")
        await n1.run("ip", family, "route", "del", *route)
        story.event("and removes it")
    await story.settle()
    for block in await story.node("n2").agent.blocks():
        story.check(await has_route(n1, block), f"podroute's own route to {block} is in place")


SCENARIOS = (
    Scenario(
        name="tor-bgpd-killed",
        promise="One of two ToRs loses its BGP: nodes use the other within a second, and both when it is back.",
        topology="dual-tor",
        steps=_tor_killed,
        outage=1000,
    ),
    Scenario(
        name="link-cut",
        promise="One of a node's two links is cut: its traffic takes the other within a second.",
        topology="dual-tor",
        steps=_link_cut,
        outage=1000,
        core=True,
    ),
    Scenario(
        name="kernel-drift",
        promise="Routes that somebody deletes come back at once; a link that flaps takes its routes along only for "
        "the time until its session is up again.",
        topology="one-tor",
        steps=_drift,
        outage=15_000,
    ),
    Scenario(
        name="foreign-routes",
        promise="Routes of another daemon to the same prefixes are left alone, and traffic never stops.",
        topology="one-tor",
        steps=_foreign,
        core=True,
    ),
)
