"""veth pairs made directly between nodes' network namespaces: they never appear in the host's own.

The two ends have unequal interface indexes. With equal ones the kernel takes the interface for its own lower device and
delays carrier events by up to 0.7 s.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from labs import kernel
from labs.errors import LabError
from labs.namespaces import NETWORK, Namespaces
from labs.topology import Link

FIRST_INDEX = 10
"""Interface indexes of link ends count up from here over the whole lab."""


def connect(links: Sequence[Link], nodes: Mapping[str, Namespaces]) -> None:
    """Make all links of a lab and set them up. Blocks; raises LabError that names the link."""
    if not links:
        return
    batch = "".join(
        f"link add {link.a.interface} index {FIRST_INDEX + 2 * number} address {link.a.mac} mtu {link.mtu} "
        f"netns {nodes[link.a.node].path('net')} type veth "
        f"peer name {link.z.interface} index {FIRST_INDEX + 2 * number + 1} address {link.z.mac} mtu {link.mtu} "
        f"netns {nodes[link.z.node].path('net')}\n"
        for number, link in enumerate(links)
    )
    done = subprocess.run(["ip", "-batch", "-"], input=batch, capture_output=True, text=True)
    if done.returncode:
        # ip says "Command failed -:3" of the third line.
        line = done.stderr.rpartition("-:")[2].strip()
        link = links[int(line) - 1] if line.isdigit() else links[0]
        raise LabError(f"{link.place}: cannot make {link.a} -- {link.z}: {done.stderr.strip()}")
    interfaces: dict[str, list[str]] = {}
    for link in links:
        for end in (link.a, link.z):
            interfaces.setdefault(end.node, []).append(end.interface)
    for node, names in interfaces.items():
        nodes[node].call(lambda names=names: kernel.interface_up(*names), kinds=NETWORK)  # type: ignore[misc]
