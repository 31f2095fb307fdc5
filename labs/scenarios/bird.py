"""BIRD in podroute's place: the same sessions, and blocks announced from a static route, as Calico has BIRD do it.

It is given every means it has to interrupt nothing: graceful restart, routes that persist, equal paths merged, and a
look at the kernel every two seconds.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import yaml

from labs.errors import LabError
from labs.lab import Lab
from labs.node import Node
from labs.observe import parse_bird
from labs.pods import Pod
from labs.processes import await_end
from labs.scenarios.daemons import STAND_IN, nodes_of
from labs.scenarios.looking import has_route
from labs.topology import Bind, Topology
from labs.topology import Node as Plan
from labs.waiting import off_loop, together

CONFIG = "/etc/podroute/podroute.yaml"
HOST_MAC = "02:00:00:00:00:01"
HEAD = """log stderr all;
router id {router_id};
graceful restart wait 60;
protocol device {{ scan time 2; }}
protocol direct {{ ipv4; ipv6; }}
template bgp fabric {{
  local as {asn};
  hold time {hold};
  connect retry time 1;
  connect delay time 1;
  error wait time 1, 2;
  graceful restart on;
  graceful restart time 120;
}}
"""
FAMILY = """protocol static block{family} {{ ipv{family}; route {block} unreachable; }}
protocol kernel kernel{family} {{
  ipv{family} {{ import none; export where source != RTS_DEVICE; }};
  persist;
  merge paths;
  graceful restart;
  scan time 2;
}}
"""
PEER = """protocol bgp {name} from fabric {{
  local {own};
  neighbor {address} as {asn};
  ipv{family} {{ import all; export where source = RTS_STATIC; }};
}}
"""


def configuration(given: Mapping[str, Any], blocks: Mapping[int, str]) -> str:
    """Return a bird.conf that does what a node's podroute.yaml says of sessions; ``blocks`` are by family."""
    node, hold = given["node"], given["bgp"]["holdTime"]
    parts = [HEAD.format(router_id=node["routerId"], asn=node["as"], hold=hold)]
    parts += [FAMILY.format(family=family, block=block) for family, block in blocks.items()]
    for name, peer in given["peers"].items():
        family = 6 if ":" in peer["address"] else 4
        name = re.sub(r"\W", "_", name)
        parts.append(
            PEER.format(name=name, own=peer["localAddress"], address=peer["address"], asn=peer["as"], family=family)
        )
    return "".join(parts)


def blocks(number: int) -> dict[int, str]:
    """Return the blocks of the node of that number, 1 to 250, in the pools of the shipped topologies."""
    return {4: f"10.64.{number}.0/26", 6: f"fd00:64::{number * 64:x}/122"}


class Bird:
    protocol = "bird"

    def __init__(self) -> None:
        self._blocks: dict[str, dict[int, str]] = {}

    @property
    def name(self) -> str:
        found = shutil.which("bird")
        if not found:
            raise LabError("this host has no `bird`: install the package `bird2`")
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        return (said.stderr or said.stdout).strip().replace("version ", "")

    def plan(self, plan: Topology, directory: Path) -> Topology:
        nodes = dict(plan.nodes)
        for node in plan.nodes.values():
            given = [bind for bind in node.binds if bind.target == CONFIG]
            if given:
                self._blocks[node.name] = blocks(len(self._blocks) + 1)
                nodes[node.name] = self._node(node, given[0], directory)
        return replace(plan, nodes=nodes)

    def _node(self, node: Plan, config: Bind, directory: Path) -> Plan:
        file = directory / f"{node.name}.conf"
        file.write_text(configuration(yaml.safe_load(config.source.read_text()), self._blocks[node.name]))
        target = "/etc/bird/bird.conf"
        sysctls = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
        policies = ("net.ipv4.fib_multipath_hash_policy", "net.ipv6.fib_multipath_hash_policy")
        return replace(
            node,
            image=f"{STAND_IN}bird",
            command=("bird", "-f", "-R", "-c", target),
            binds=(Bind(file, target, True, config.place, False),),
            sysctls={**node.sysctls, **dict.fromkeys((*sysctls, *policies), "1")},
        )

    async def converge(self, net: Lab) -> None:
        nodes = nodes_of(net)
        for node in nodes:
            await net.wait_for(f"established sessions of {node.name}", lambda node=node: _established(node))  # type: ignore[misc]
            for other in nodes:
                for block in self._blocks[other.name].values() if other is not node else ():
                    text = f"route to {block} on {node.name}"
                    await net.wait_for(text, lambda node=node, block=block: has_route(node, block))  # type: ignore[misc]

    async def pods(self, nodes: list[Node]) -> list[Pod]:
        return await together(_wire(node, self._blocks[node.name]) for node in nodes)

    async def blocks(self, node: Node) -> list[str]:
        return list(self._blocks[node.name].values())

    async def stop(self, node: Node, number: signal.Signals) -> str:
        if number != signal.SIGTERM:
            await node.stop(number)
            return f"{node.name}'s BIRD gets {number.name}"
        # On SIGTERM it takes leave of its peers for good.
        process = node.process
        await node.run("birdc", "graceful", "restart")
        running = [process] if process else []
        if await off_loop(lambda: await_end(running, 10)):
            raise LabError(f"node {node.name}: BIRD runs 10 s after `birdc graceful restart`")
        return f"{node.name}'s BIRD is told `graceful restart`, and ends"

    async def answering(self, node: Node) -> None:
        while (await node.run("birdc", "show", "status", check=False)).returncode:
            pass


async def _established(node: Node) -> bool:
    _, sessions = parse_bird((await node.run("birdc", "show", "protocols", "all")).stdout)
    return bool(sessions) and all(session.established for session in sessions)


async def _wire(node: Node, own: Mapping[int, str]) -> Pod:
    """Wire a pod by hand as podroute does it: a veth pair, host routes, a gateway that nobody holds."""
    pod = Pod(node, "pod1", {"ips": [{"address": f"{ip_interface(block).network[1]}"} for block in own.values()]})
    inside = ("ip", "-n", pod.name)
    for line in (
        f"ip netns add {pod.name}",
        f"ip -n {pod.name} link set lo up",
        f"ip link add pod1host address {HOST_MAC} type veth peer name eth0 netns {pod.name}",
        "ip link set pod1host up",
    ):
        await node.run(*line.split())
    await node.run(*inside, "link", "set", "eth0", "up")
    mac = (await pod.run("cat", "/sys/class/net/eth0/address")).strip()
    for address, family, gateway, length in zip(
        pod.addresses, (4, 6), ("169.254.1.1", "fe80::1"), (32, 128), strict=True
    ):
        nodad = ("nodad",) if family == 6 else ()
        await node.run(*inside, "addr", "add", f"{address}/{length}", "dev", "eth0", *nodad)
        await node.run(*inside, "neigh", "replace", gateway, "lladdr", HOST_MAC, "dev", "eth0", "nud", "permanent")
        await node.run(*inside, f"-{family}", "route", "add", "default", "via", gateway, "dev", "eth0", "onlink")
        await node.run("ip", f"-{family}", "route", "add", f"{address}/{length}", "dev", "pod1host")
        await node.run("ip", "neigh", "replace", address, "lladdr", mac, "dev", "pod1host", "nud", "permanent")
    return pod
