"""What scenarios ask nodes again and again: all answers come from the kernel or the router itself."""

from __future__ import annotations

import json

from labs.node import Node


def family_of(prefix: str) -> str:
    """Return the option of ``ip`` for an address or prefix."""
    return "-6" if ":" in prefix else "-4"


async def has_route(node: Node, prefix: str) -> bool:
    """Tell whether the node's kernel has a route to exactly this prefix, whoever made it."""
    return bool((await node.run("ip", family_of(prefix), "route", "show", "exact", prefix)).stdout)


async def gone(node: Node, prefix: str) -> bool:
    return not await has_route(node, prefix)


async def ways(node: Node, prefix: str, wanted: int) -> bool:
    """Tell whether the node's kernel has that many usable next hops for a prefix."""
    said = (await node.run("ip", "-j", family_of(prefix), "route", "show", "exact", prefix)).stdout
    found = 0
    for route in json.loads(said or "[]"):
        hops = route.get("nexthops") or ([route] if "gateway" in route else [])
        found += sum("dead" not in hop.get("flags", ()) for hop in hops)
    return found == wanted


async def ended(node: Node) -> bool:
    """Tell whether the node's own command has ended."""
    return node.process is None


async def sessions(node: Node) -> list[str]:
    """Return the states of the sessions that a node's agent has, by its own account."""
    return [peer["state"] for peer in await node.agent.get("/v1/peers")]


async def established_counts(node: Node) -> list[int]:
    """Return how often each session of a node has been established since its agent started."""
    return [peer["establishedCount"] for peer in await node.agent.get("/v1/peers")]


async def none_established(node: Node) -> bool:
    return "Established" not in await sessions(node)


async def all_established(node: Node) -> bool:
    return set(await sessions(node)) == {"Established"}


async def configure(router: Node, *lines: str) -> None:
    """Type lines into an FRR's configuration. Raises LabError with what it does not like."""
    await router.run("vtysh", input="\n".join(["configure terminal", *lines, "end", ""]))
