"""Nodes of kind bridge: a Linux bridge of the node's name in the node's own namespace, with its links as ports.

containerlab wants such a bridge to exist on the host; here it is made, and goes with the lab.
"""

from __future__ import annotations

from collections.abc import Iterable

from labs.node import Node


async def build(node: Node, interfaces: Iterable[str]) -> None:
    """Make the bridge, forwarding at once: no spanning tree, no filter. Raises LabError."""
    # The bridge's address is a port's by default, and would change as ports come.
    await node.run("ip", "link", "add", node.name, "type", "bridge", "stp_state", "0", "forward_delay", "0")
    for interface in interfaces:
        await node.run("ip", "link", "set", interface, "master", node.name)
    await node.run("ip", "link", "set", node.name, "up")
