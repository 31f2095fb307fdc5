"""Lab nodes as hosts of container runtimes: control groups of their own, and what is left when containers are gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from labs.lab import Lab
from labs.node import Node
from tests.guard import CGROUPS, cgroup_name

NODES = ("n1", "n2")
PLUGIN_DIR = "/opt/cni/bin"
PLUGINS = {"n1": "compiled", "n2": "python"}
CONTAINED = "/run/contained"
"""Runs a command in the node's control group, as one that sees nothing above it."""

# cgroup2 alone, whatever the host uses besides: it holds containers apart and needs no controller for that.
_PREPARE = f"""
set -e
mount -t cgroup2 cgroup2 {CGROUPS}
mkdir {CGROUPS}/$1
echo $$ >{CGROUPS}/$1/cgroup.procs
umount {CGROUPS}
touch /run/cgroup-namespace
exec unshare --cgroup sh -ec '
    mount -t cgroup2 cgroup2 {CGROUPS}
    mount --bind /proc/self/ns/cgroup /run/cgroup-namespace
    mkdir {CGROUPS}/daemons
'
"""
_CONTAINED = f"""#!/bin/sh
echo $$ >{CGROUPS}/daemons/cgroup.procs
exec nsenter --cgroup=/run/cgroup-namespace -- "$@"
"""


async def prepare(net: Lab) -> None:
    """Install podroute's plugin on the nodes, wait for the fabric, and let containers run there."""

    async def one(node: Node) -> None:
        await node.run("sh", "-c", _PREPARE, "sh", cgroup_name(net.name, node.name))
        await node.run("tee", CONTAINED, input=_CONTAINED)
        await node.run("chmod", "755", CONTAINED)
        await agent_answers(net, node)
        await node.run("podroute", "cni", "install", "--plugin", PLUGINS[node.name])

    await asyncio.gather(*(one(net.node(name)) for name in NODES))
    await asyncio.gather(*(converges(net.node(name)) for name in NODES))


async def agent_starts(net: Lab, node: Node) -> None:
    """Start a node's agent that was stopped, and wait until the fabric has converged again."""
    node.start()
    await agent_answers(net, node)
    await converges(node)


async def agent_answers(net: Lab, node: Node) -> None:
    await net.wait_for(f"agent on {node.name}", lambda: ask(node, "status"), timeout=60)


async def converges(node: Node) -> None:
    done = await node.run("podroute", "wait-converged", "--timeout", "60", check=False, timeout=70)
    assert done.returncode == 0, f"{done.stderr}\n{node.log.read_text()[-4000:]}"


async def ask(node: Node, *command: str) -> Any:
    """Return the agent's answer to a command."""
    return json.loads((await node.run("podroute", *command, "--json")).stdout)


async def pods(node: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await ask(node, "pods")
    return found


async def nothing_left(net: Lab) -> None:
    """Hold that the nodes have nothing of containers any more: in the ledger, in the kernel, in files.

    Awaited: a deletion is answered when the container is cut off, and its address is free some time later.
    """
    for node in (net.node(name) for name in NODES):
        deadline = asyncio.get_running_loop().time() + 60
        while found := await _traces(node):
            assert asyncio.get_running_loop().time() < deadline, "\n".join([node.name, *found])
            await asyncio.sleep(0.1)


async def _traces(node: Node) -> list[str]:
    found = [f"pod {pod}" for pod in await pods(node)]
    found += [f"used {block}" for block in await ask(node, "blocks") if block["used"]]
    links = json.loads((await node.run("ip", "-j", "link")).stdout)
    found += [f"link {link['ifname']}" for link in links if link["ifname"] not in ("lo", "eth1")]
    for family in ("-4", "-6"):
        said = (await node.run("ip", family, "route", "show", "table", "all")).stdout
        found += [f"route {line}" for line in said.splitlines() if " dev pr" in line]
    for directory in ("/run/netns", "/var/lib/cni/results"):
        listing = await node.run("find", directory, "-type", "f", check=False)
        found += [f"file {name}" for name in listing.stdout.split()]
    return found


async def enter(node: Node, pid: int, *argv: str, check: bool = True) -> str:
    """Run a command of the host's in a container's network, and return its output."""
    return (await node.run("nsenter", f"--net=/proc/{pid}/ns/net", *argv, check=check)).stdout


async def reaches(node: Node, pid: int, destinations: Sequence[str]) -> None:
    """Hold that a container (process 1: the node itself) reaches addresses; up to 30 s until the first answer each."""
    for address in destinations:
        said = await enter(node, pid, "ping", "-n", "-c", "1", "-i", "0.2", "-w", "30", address, check=False)
        assert "bytes from" in said, f"{node.name}, process {pid}: {address} does not answer\n{said}"


async def addresses(net: Lab, node: Node, pid: int) -> list[str]:
    """Await and return the addresses of a container's eth0 as its kernel has them, IPv4 first, not link-local ones."""

    async def held() -> list[str]:
        (link,) = json.loads(await enter(node, pid, "ip", "-j", "address", "show", "dev", "eth0"))
        return [entry["local"] for entry in link["addr_info"] if entry["scope"] == "global"]

    found: list[str] = await net.wait_for(f"addresses of process {pid} on {node.name}", held)
    return found
