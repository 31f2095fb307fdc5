"""Containers in a lab, wired as a runtime does it: the installed plugin is executed with environment and stdin."""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from labs.errors import CommandError, LabError
from labs.node import Node, Ping
from labs.waiting import off_loop

CONFLIST = "etc/cni/net.d/10-podroute.conflist"
BIN_DIR = "/opt/cni/bin"
PORT = 8080
_WHOAMI = Path(__file__).with_name("whoami.py")


@dataclass
class Pod:
    """A container: a named network namespace on a node. ``addresses`` are without prefix length, IPv4 first."""

    node: Node
    name: str
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def netns(self) -> str:
        return f"/run/netns/{self.name}"

    @property
    def addresses(self) -> list[str]:
        return [str(ip_interface(ip["address"]).ip) for ip in self.result.get("ips", [])]

    def address(self, family: int) -> str:
        """Return the address of a family, 4 or 6. Raises LabError where the pod has none."""
        for address in self.addresses:
            if (":" in address) == (family == 6):
                return address
        raise LabError(f"pod {self.name} on {self.node.name} has no IPv{family} address: {self.result}")

    async def start(self) -> None:
        """Make the namespace, and ADD it to the node's network."""
        await self.node.run("ip", "netns", "add", self.name)
        await self.node.run("ip", "-n", self.name, "link", "set", "lo", "up")
        self.result = await self.call("ADD")

    async def stop(self) -> None:
        """DEL, then remove the namespace."""
        await self.call("DEL")
        await self.node.run("ip", "netns", "del", self.name)

    async def call(self, verb: str, **environment: str) -> dict[str, Any]:
        """Execute the plugin for this pod, and return its result ({} where it prints none). Raises LabError."""
        conflist = json.loads((self.node.root / CONFLIST).read_text())
        config = {**conflist["plugins"][0], "name": conflist["name"], "cniVersion": conflist["cniVersion"]}
        if verb in ("DEL", "CHECK") and self.result:
            config["prevResult"] = self.result
        call = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": f"{self.node.name}-{self.name}",
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": BIN_DIR,
            **environment,
        }
        done = await self.node.run(
            f"{BIN_DIR}/{config['type']}", env=call, input=json.dumps(config), check=False, timeout=60
        )
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode:
            raise LabError(f"{verb} of pod {self.name} on {self.node.name}: {answer or done.stderr}")
        return answer

    async def run(self, *argv: str, check: bool = True) -> str:
        """Run a command in the pod and return its output."""
        return (await self.node.run("ip", "netns", "exec", self.name, *argv, check=check)).stdout

    async def ping(self, destination: str, *, count: int = 1, wait: float = 2.0) -> Ping:
        try:
            said = await self.run("ping", "-n", "-c", str(count), "-i", "0.05", "-W", str(wait), destination)
        except CommandError as error:
            return Ping(count, 0, error.stdout + error.stderr)
        return Ping(count, count if " 0% packet loss" in said else 0, said)

    async def serve(self) -> None:
        """Start the server that tells clients where they come from, and wait until it listens."""
        server = self.node.popen(
            "ip", "netns", "exec", self.name, "/usr/bin/python3", "-I", str(_WHOAMI), str(PORT), stdout=subprocess.PIPE
        )
        stream = server.stdout
        if stream is None or await off_loop(stream.readline) != b"ready\n":
            raise LabError(f"the server in pod {self.name} on {self.node.name} did not start")

    async def seen_by(self, server: Pod, family: int) -> str:
        """Connect to another pod's server, and return the address that it saw."""
        target = server.address(family)
        code = (
            f"import socket as s; c = s.create_connection(({target!r}, {PORT}), 5); print(c.recv(99).decode(), end='')"
        )
        return (await self.run("/usr/bin/python3", "-I", "-c", code)).strip()


async def start_pods(nodes: list[Node], per_node: int) -> list[Pod]:
    """Start ``per_node`` pods on every node, at once."""
    pods = [Pod(node, f"pod{number}") for node in nodes for number in range(1, per_node + 1)]
    await asyncio.gather(*(pod.start() for pod in pods))
    return pods
