"""A lab in one folder: its record, picture, logs and captures, and what each node says about routes and sessions."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from labs import graph
from labs.errors import LabError
from labs.lab import Lab
from labs.node import Node
from labs.observe import observe, role_of
from labs.waiting import together

EVERYWHERE = {
    "links.txt": ("ip", "-d", "link"),
    "addresses.txt": ("ip", "addr"),
    "routes-ipv4.txt": ("ip", "-d", "-4", "route", "show", "table", "all"),
    "routes-ipv6.txt": ("ip", "-d", "-6", "route", "show", "table", "all"),
    "nexthops.txt": ("ip", "nexthop"),
    "neighbours.txt": ("ip", "neigh"),
    "rules.txt": ("nft", "list", "ruleset"),
    "queues.txt": ("tc", "-s", "qdisc"),
    "sockets.txt": ("ss", "-tanpo"),
    "processes.txt": ("ps", "-eo", "pid,ppid,stat,etime,args"),
}
BY_ROLE: dict[str, dict[str, tuple[str, ...]]] = {
    "podroute": {
        f"podroute-{what}.json": ("podroute", what, "--json")
        for what in ("status", "peers", "blocks", "routes", "pods")
    },
    "FRR": {
        "frr-running-config.txt": ("vtysh", "-c", "show running-config"),
        "frr-summary.json": ("vtysh", "-c", "show bgp summary json"),
        "frr-neighbors.json": ("vtysh", "-c", "show bgp neighbors json"),
        "frr-ipv4.json": ("vtysh", "-c", "show bgp ipv4 unicast json"),
        "frr-ipv6.json": ("vtysh", "-c", "show bgp ipv6 unicast json"),
    },
    "BIRD": {
        "bird-protocols.txt": ("birdc", "show", "protocols", "all"),
        "bird-routes.txt": ("birdc", "show", "route", "all"),
    },
    "": {},
}


def fresh_folder(name: str, parent: Path | None = None) -> Path:
    """Make and return a folder for a saved lab, in ``parent`` or the directory for temporary files."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"podroute-lab-{name}-{stamp}-", dir=parent))


async def save(net: Lab, folder: Path) -> Path:
    """Write everything about a running lab into ``folder`` and return it. What cannot be asked is told in its file."""
    _copy([net.directory / "lab.json"], folder)
    _write(folder / "problems.txt", "".join(f"{problem}\n" for problem in net.problems))
    await together(_save_node(node, folder / node.name) for node in net.nodes.values())
    with suppress(LabError):
        _write(folder / "graph.svg", await draw(net))
    return folder


async def draw(net: Lab) -> str:
    """Return the picture of a running lab with the state of its sessions and routes."""
    links = []
    for link in net.describe()["links"]:
        ends = [end["node"] for end in link["endpoints"].values()]
        if len(ends) == 2 and set(ends) <= net.nodes.keys():
            links.append((ends[0], ends[1]))
    return graph.svg(net.name, list(net.nodes), links, await observe(net))


async def _save_node(node: Node, folder: Path) -> None:
    _copy([*node.directory.rglob("*.log"), *node.directory.rglob("*.pcap")], folder)
    if not node.namespaces.alive():
        return
    for file, command in {**EVERYWHERE, **BY_ROLE[role_of(node)]}.items():
        try:
            done = await node.run(*command, check=False, timeout=30)
            text = done.stdout + done.stderr
        except LabError as error:
            text = f"{error}\n"
        _write(folder / file, text)


def _copy(paths: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        with suppress(OSError):
            shutil.copy(path, folder / path.name)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
