"""Containers in a lab, wired as a runtime does it: the installed plugin is executed with environment and stdin."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from labs import libcni
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

    @property
    def network(self) -> libcni.Network:
        """The node's network, as a runtime there reads it."""
        conflist = json.loads((self.node.root / CONFLIST).read_text())
        return libcni.Network(conflist, self._execute, path=BIN_DIR, cache=self.node.root / libcni.CACHE)

    @property
    def attachment(self) -> libcni.Attachment:
        return libcni.Attachment(f"{self.node.name}-{self.name}", self.netns)

    async def start(self) -> None:
        """Make the namespace, and ADD it to the node's network. Raises LabError."""
        await self.node.run("ip", "netns", "add", self.name)
        await self.node.run("ip", "-n", self.name, "link", "set", "lo", "up")
        try:
            self.result = await self.network.add(self.attachment)
        except libcni.PluginError as error:
            raise LabError(f"pod {self.name} on {self.node.name}: {error}") from None

    async def stop(self) -> None:
        """DEL, then remove the namespace. Raises LabError."""
        try:
            await self.network.delete(self.attachment)
        except libcni.PluginError as error:
            raise LabError(f"pod {self.name} on {self.node.name}: {error}") from None
        await self.node.run("ip", "netns", "del", self.name)

    async def _execute(self, plugin: str, environment: Mapping[str, str], stdin: bytes) -> libcni.Outcome:
        done = await self.node.run(
            f"{BIN_DIR}/{plugin}", env=environment, input=stdin.decode(), check=False, timeout=60
        )
        return libcni.Outcome(done.returncode, done.stdout.encode(), done.stderr)

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
            f"import socket as s; c = s.create_connection(({target!r}, {PORT}), 30); print(c.recv(99).decode(), end='')"
        )
        return (await self.run("/usr/bin/python3", "-I", "-c", code)).strip()


async def start_pods(nodes: list[Node], per_node: int) -> list[Pod]:
    """Start ``per_node`` pods on every node, at once."""
    pods = [Pod(node, f"pod{number}") for node in nodes for number in range(1, per_node + 1)]
    await asyncio.gather(*(pod.start() for pod in pods))
    return pods
