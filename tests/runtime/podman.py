"""podman with its CNI back end in a lab node."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labs.node import Node, Result
from tests.runtime.hosts import CONTAINED

IMAGE = "localhost/busybox:latest"
_FILES = {
    "/run/podman/containers.conf": """[network]
network_backend = "cni"
network_config_dir = "/etc/cni/net.d"
cni_plugin_dirs = ["/opt/cni/bin"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
pids_limit = 0
""",
    "/run/podman/storage.conf": """[storage]
driver = "vfs"
graphroot = "/run/podman/storage"
runroot = "/run/podman/run"
""",
}
_ENVIRONMENT = {
    "CONTAINERS_CONF": "/run/podman/containers.conf",
    "CONTAINERS_STORAGE_CONF": "/run/podman/storage.conf",
}


@dataclass
class Podman:
    node: Node

    async def __call__(self, *arguments: str, check: bool = True) -> Result:
        return await self.node.run(CONTAINED, "podman", *arguments, env=_ENVIRONMENT, check=check)

    async def run(self, name: str, *flags: str, check: bool = True) -> Result:
        """Start a container in podroute's network that does nothing."""
        return await self("run", "--detach", "--network", "podroute", "--name", name, *flags, IMAGE, check=check)

    async def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await self("inspect", name)).stdout)[0]
        return found

    async def pid(self, name: str) -> int:
        return int((await self.inspect(name))["State"]["Pid"])

    async def remove(self, name: str) -> None:
        await self("rm", "--force", "--time", "0", name)


async def prepare(node: Node, image: Path) -> Podman:
    """Configure podman in a node, and load the image."""
    await node.run("mkdir", "-p", "/run/podman")
    for path, content in _FILES.items():
        await node.run("tee", path, input=content)
    await node.run("cp", str(image), "/run/podman/image.tar")
    podman = Podman(node)
    await podman("load", "--input", "/run/podman/image.tar")
    return podman
