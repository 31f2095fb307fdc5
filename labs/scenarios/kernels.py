"""Somebody else changes a node's kernel: by hand, or another routing daemon."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from labs.node import Node
from labs.scenarios.looking import family_of, has_route
from labs.scenarios.story import Scenario, Story


async def _drift(story: Story) -> None:
    n1, protocol = story.node("n1"), story.daemon.protocol
    blocks = await story.daemon.blocks(story.node("n2"))
    for family in ("-4", "-6"):
        # A kernel that is told to flush may find that others were faster.
        await n1.run("ip", family, "route", "flush", "proto", protocol, check=False)
        story.event(f"somebody runs `ip {family} route flush proto {protocol}` on n1")
    for block in blocks:
        await story.until(f"n1 has a route to {block}", partial(has_route, n1, block))
    await story.settle()
    for block in blocks:
        await n1.run("ip", family_of(block), "route", "del", block)
        story.event(f"somebody deletes the route to {block}")
        await story.until(f"n1 has a route to {block}", partial(has_route, n1, block))
        await story.rest(0.2)
    await story.settle()
    for block in blocks:
        (route,) = await _routes(n1, block)
        words = ("proto", protocol, "metric", str(route["metric"]))
        await n1.run("ip", family_of(block), "route", "replace", "unreachable", block, *words)
        story.event(f"somebody runs `ip route replace unreachable {block} {' '.join(words)}`")
        await story.until(f"the route to {block} leads to the ToR again", partial(_leads, n1, block))
        await story.rest(0.2)
    await story.settle()


async def _routes(node: Node, prefix: str) -> list[dict[str, Any]]:
    said = (await node.run("ip", "-j", family_of(prefix), "route", "show", "exact", prefix)).stdout
    found: list[dict[str, Any]] = json.loads(said or "[]")
    return found


async def _leads(node: Node, prefix: str) -> bool:
    found = await _routes(node, prefix)
    return len(found) == 1 and found[0].get("type") != "unreachable"


FOREIGN = "186"
"""The number that rtnetlink.h gives bgp, which FRR's zebra uses."""


async def _foreign(story: Story) -> None:
    n1 = story.node("n1")
    for block, gateway in zip(await story.node("n2").agent.blocks(), GATEWAYS, strict=True):
        family = family_of(block)
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


GATEWAYS = ("10.1.1.1", "fd00:1:1::1")
"""The ToR of one-tor, as n1 reaches it."""
BIRD = """log stderr all;
router id 192.0.2.1;
protocol device {{}}
protocol static {{ ipv4; route {0} via {2}; }}
protocol static {{ ipv6; route {1} via {3}; }}
protocol kernel {{ metric 20; ipv4 {{ export all; }}; }}
protocol kernel {{ metric 512; ipv6 {{ export all; }}; }}
"""
"""Routes with the very metric that podroute's have."""


async def _daemon(story: Story) -> None:
    n1 = story.node("n1")
    blocks = await story.node("n2").agent.blocks()
    path = n1.root / "etc/bird/bird.conf"
    path.write_text(BIRD.format(*blocks, *GATEWAYS))
    bird = n1.popen("bird", "-f", "-c", "/etc/bird/bird.conf")
    story.event("BIRD is started on n1, with static routes to n2's blocks, of the metric that podroute's have")
    await story.until("BIRD has done what it does", partial(_birdc, n1))
    await story.rest(2.0)
    for block in blocks:
        # The kernel takes the second of them only from who asks for a place beside the first.
        await _told(story, block)
    for block in blocks:
        (route,) = [route for route in await _routes(n1, block) if route.get("protocol") == "201"]
        words = ("via", GATEWAYS[blocks.index(block)], "dev", "eth1", "proto", "bird", "metric", str(route["metric"]))
        await n1.run("ip", family_of(block), "route", "replace", block, *words)
        story.event(f"somebody puts BIRD's route to {block} in the place of podroute's")
    await story.rest(2.0)
    for block in blocks:
        story.check(await _owners(n1, block) == ["bird"], f"podroute leaves BIRD's route to {block} in its place")
        await _told(story, block)
    bird.terminate()
    story.event("BIRD is ended, and takes its routes along")
    for block in blocks:
        await story.until(f"podroute's own route to {block} is in place", partial(_own, n1, block))
    await story.settle()


async def _birdc(node: Node) -> bool:
    return (
        "Static" in (await node.run("birdc", "show", "route", "count", "protocol", "static1", check=False)).stdout
        or not (await node.run("birdc", "show", "status", check=False)).returncode
    )


async def _told(story: Story, block: str) -> None:
    """Check that podroute says what is so: installed where the route is its own, conflict where it is another's."""
    n1 = story.node("n1")
    owners = await _owners(n1, block)
    shown = (await n1.agent.routes(prefix=block))[0]
    text = f"{block} in the kernel: {', '.join(owners)}; podroute says: {shown['kernel']} {shown['problem']}".strip()
    story.check(shown["kernel"] == ("installed" if owners == ["201"] else "conflict"), text)


async def _owners(node: Node, prefix: str) -> list[str]:
    return [str(route.get("protocol")) for route in await _routes(node, prefix)]


async def _own(node: Node, prefix: str) -> bool:
    return await _owners(node, prefix) == ["201"]


SCENARIOS = (
    Scenario(
        name="kernel-drift",
        promise="Routes that somebody flushes, deletes or replaces are back within half a second.",
        topology="one-tor",
        steps=_drift,
        outage=500,
        compared=True,
    ),
    Scenario(
        name="foreign-routes",
        promise="Routes of another daemon to the same prefixes are left alone, and traffic never stops.",
        topology="one-tor",
        steps=_foreign,
        core=True,
    ),
    Scenario(
        name="foreign-daemon",
        promise="Another routing daemon with routes of the same prefix and metric is not fought; podroute says what is "
        "so, and has its routes back within half a second when that daemon goes.",
        topology="one-tor",
        steps=_daemon,
        outage=500,
    ),
)
