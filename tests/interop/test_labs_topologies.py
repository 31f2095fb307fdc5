"""Every shipped topology comes up, converges, and carries packets from pod to pod."""

from __future__ import annotations

import asyncio
import os
import shutil
from functools import partial
from itertools import permutations

import pytest

from labs.fabric import converge, podroute_nodes
from labs.lab import TOPOLOGIES, Lab, load
from labs.node import Node
from labs.pods import Pod, start_pods
from labs.runner import lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(not shutil.which("vtysh"), reason="needs FRR: install the package frr"),
]

NAME = f"topology-{os.getpid()}"
NEEDS = {"mixed": "bird", "gobgp-reflector": "gobgpd"}
SHIPPED = sorted(path.name.removesuffix(".clab.yml") for path in TOPOLOGIES.glob("*.clab.yml"))
BIG = pytest.mark.skipif("PODROUTE_BIG" not in os.environ, reason="forty nodes: `make big-lab`")


@pytest.mark.parametrize("topology", [pytest.param(name, marks=[BIG] if name == "forty" else []) for name in SHIPPED])
async def test_it_converges_and_pods_reach_each_other(topology: str) -> None:
    if (program := NEEDS.get(topology)) and not shutil.which(program):
        pytest.skip(f"needs {program}")
    async with lab(topology, name=NAME) as net:
        nodes = podroute_nodes(net)
        await converge(net, timeout=120)
        await asyncio.gather(*(node.run("podroute", "cni", "install") for node in nodes))
        pods = await start_pods(nodes, 1)
        pairs = list(permutations(pods, 2))
        await asyncio.gather(*(reach(net, source, target) for source, target in pairs))
        if client := net.nodes.get("client"):
            await asyncio.gather(*(reach(net, client, pod) for pod in pods))


async def reach(net: Lab, source: Pod | Node, target: Pod) -> None:
    """Wait until all addresses of a pod answer: the kernels of routers have routes after they have passed them on."""
    for address in target.addresses:
        await net.wait_for(f"answer of {address} to {source.name}", partial(source.ping, address))


@pytest.mark.parametrize("topology", ["dual-tor", "mixed"])
async def test_two_tors_are_two_ways(topology: str) -> None:
    if (program := NEEDS.get(topology)) and not shutil.which(program):
        pytest.skip(f"needs {program}")
    async with lab(topology, name=NAME) as net:
        await converge(net)
        block = (await net.node("n2").agent.blocks())[0]

        async def both() -> bool:
            routes = await net.node("n1").agent.routes(prefix=block)
            used = [sorted(path["nextHop"] for path in route["paths"] if path["used"]) for route in routes]
            return used == [["10.1.1.1", "10.2.1.1"]] and len(routes[0]["installed"]) == 2

        await net.wait_for("two next hops to the block of n2", both)


async def test_podroute_reflects() -> None:
    """Its reflectors pass clients' routes on with the mark of their cluster (RFC 4456 section 8)."""
    async with lab("podroute-reflectors", name=NAME) as net:
        await converge(net)
        block = (await net.node("n2").agent.blocks())[0]

        async def by_both() -> bool:
            paths = [path for route in await net.node("n1").agent.routes(prefix=block) for path in route["paths"]]
            assert {path["nextHop"] for path in paths} <= {"10.9.0.2"}
            return sorted(path["peer"] for path in paths) == ["rr1-v4", "rr2-v4"]

        await net.wait_for("paths by both reflectors", by_both)


def test_images_and_commands_of_routers_are_this_hosts() -> None:
    plan = load("mixed")
    assert plan.nodes["tor2"].command[0] == "bird"
