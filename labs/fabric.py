"""Waiting until a whole lab has converged: every agent, and every block in the kernel of every other node."""

from __future__ import annotations

import asyncio

from labs.errors import LabError
from labs.lab import Lab
from labs.node import Node

PODROUTE_IMAGE = "podroute"


def podroute_nodes(net: Lab) -> list[Node]:
    """Return the nodes that run an agent, in the file's order."""
    return [node for node in net.nodes.values() if PODROUTE_IMAGE in node.image]


async def converge(net: Lab, *, timeout: float = 60.0) -> None:  # noqa: ASYNC109
    """Wait until every agent has converged and every node's kernel forwards to every other node's blocks.

    Raises LabError with what is missing after ``timeout`` seconds for each part.
    """
    nodes = podroute_nodes(net)
    await asyncio.gather(*(node.agent.converged(timeout=timeout) for node in nodes))
    blocks = dict(zip(nodes, await asyncio.gather(*(node.agent.blocks() for node in nodes)), strict=True))

    async def absent() -> list[str]:
        """Return which node lacks which block, one text each."""
        held = await asyncio.gather(*(_installed(node) for node in nodes))
        return [
            f"{node.name} has no route to {block} of {owner.name}"
            for node, prefixes in zip(nodes, held, strict=True)
            for owner in nodes
            if owner is not node
            for block in blocks[owner]
            if block not in prefixes
        ]

    # Convergence of one node says nothing of what others are still to hear.
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while missing := await absent():
        if loop.time() > deadline:
            raise LabError(f"lab `{net.name}`: after {timeout:g} s " + "; ".join(missing[:8]))
        await asyncio.sleep(0.05)


async def _installed(node: Node) -> set[str]:
    return {route["prefix"] for route in await node.agent.routes() if route["kernel"] == "installed"}
