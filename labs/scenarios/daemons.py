"""What routes on the nodes of a scenario: podroute, or, for comparison, another daemon in its place."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Protocol

from labs.fabric import converge, podroute_nodes
from labs.lab import Lab
from labs.node import Node
from labs.pods import Pod, start_pods
from labs.topology import Topology
from labs.waiting import together

PATIENCE = 5.0
"""Seconds that a lab of many nodes may take for each to converge."""


class Daemon(Protocol):
    """The same scenario asks the same of every daemon. Methods raise LabError."""

    @property
    def name(self) -> str:
        """Name and version, for people."""

    @property
    def protocol(self) -> str:
        """The rtnetlink protocol of its routes, as ``ip route`` takes it."""

    def plan(self, plan: Topology, directory: Path) -> Topology:
        """Return the topology with this daemon on the nodes; files of its own go into a directory."""

    async def converge(self, net: Lab) -> None:
        """Wait until every session is up and every node forwards to every other node's blocks."""

    async def pods(self, nodes: list[Node]) -> list[Pod]:
        """Start one pod on every node."""

    async def blocks(self, node: Node) -> list[str]:
        """Return the prefixes that a node announces, IPv4 first."""

    async def stop(self, node: Node, number: signal.Signals) -> str:
        """End the daemon; SIGTERM stands for the way that has its peers wait for it. Return what was done, in words."""

    async def answering(self, node: Node) -> None:
        """Wait until the daemon answers."""


class Podroute:
    name = "podroute"
    protocol = "201"

    def plan(self, plan: Topology, directory: Path) -> Topology:
        return plan

    async def converge(self, net: Lab) -> None:
        # All agents of a lab start on this machine's CPUs, beside whatever else there is to do.
        await converge(net, timeout=max(60.0, PATIENCE * len(podroute_nodes(net))))

    async def pods(self, nodes: list[Node]) -> list[Pod]:
        await together(node.run("podroute", "cni", "install") for node in nodes)
        return await start_pods(nodes, 1)

    async def blocks(self, node: Node) -> list[str]:
        return await node.agent.blocks()

    async def stop(self, node: Node, number: signal.Signals) -> str:
        await node.stop(number)
        return f"{node.name}'s agent gets {number.name}"

    async def answering(self, node: Node) -> None:
        await node.agent.answering()


def nodes_of(net: Lab) -> list[Node]:
    """Return the nodes that have pods, whatever routes there: those that announce blocks."""
    return podroute_nodes(net) or [node for node in net.nodes.values() if node.image.startswith(STAND_IN)]


STAND_IN = "in-place-of-podroute/"
"""Begins the image names of what stands in podroute's place."""
