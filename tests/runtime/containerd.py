"""containerd in a lab node, driven by its own `ctr`; the CRI service is `cri.py`'s."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from labs.lab import Lab
from labs.node import Node, Result
from labs.waiting import off_loop
from tests.runtime.hosts import CONTAINED, PLUGIN_DIR

PAUSE = "registry.k8s.io/pause:3.6"
"""What containerd 1.6 starts for every pod sandbox."""
IMAGE = "docker.io/library/busybox:latest"
SOCKET = "run/containerd/containerd.sock"

# State in the node's own /run. No limits for pods, because the node has a bare control group; and no better place in
# the queue for the kernel's OOM killer than containerd has, which takes a capability that a virtual machine may lack.
_CONFIG = """version = 2
root = "/run/containerd/root"
state = "/run/containerd/state"
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
disable_cgroup = true
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
"""


@dataclass
class Containerd:
    net: Lab
    node: Node
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def socket(self) -> Path:
        """The gRPC socket, from here."""
        return self.node.root / SOCKET

    def boot(self) -> None:
        """Start the daemon; its log is the node's ``containerd.log``. It ends with the lab."""
        command = (CONTAINED, "containerd", "--config", "/run/containerd.toml")
        with open(self.node.directory / "containerd.log", "ab") as log:
            self.node.popen(*command, stdout=log, stderr=subprocess.STDOUT)

    async def ctr(self, *arguments: str, check: bool = True) -> Result:
        return await self.node.run("ctr", *arguments, check=check)

    async def run(self, name: str, *command: str, check: bool = True) -> Result:
        """``ctr run --cni`` to its end, and what the container printed."""
        return await self.ctr("run", "--rm", *_flags(name), *command, check=check)

    async def start(self, name: str) -> int:
        """Start a container that does nothing, and return its process number in the node.

        In the foreground: with ``--detach``, this version of `ctr` never asks for the deletion.
        """
        self._running[name] = self.node.popen(
            "ctr", "run", "--rm", *_flags(name), stderr=subprocess.STDOUT, stdout=subprocess.PIPE
        )

        async def pid() -> int:
            if self._running[name].poll() is not None:
                said, _ = self._running[name].communicate()
                raise AssertionError(f"ctr run: {said.decode()}")
            for line in (await self.ctr("task", "ls")).stdout.splitlines()[1:]:
                task, number, state = line.split()
                if task == name and state == "RUNNING":
                    return int(number)
            return 0

        return await self.net.wait_for(f"container {name} on {self.node.name}", pid)

    async def detach(self, name: str) -> None:
        """Start a container with ``--detach``, kill it, and remove it: its network stays."""
        await self.ctr("run", "--detach", *_flags(name))
        await self.ctr("task", "rm", "--force", name)
        await self.ctr("container", "rm", name)

    async def remove(self, name: str) -> str:
        """Kill a container; `ctr run` then deletes its network. Returns what it and the plugin print."""
        await self.ctr("task", "kill", "--signal", "SIGKILL", name)
        said, _ = await off_loop(lambda: self._running.pop(name).communicate(timeout=30))
        return str(said.decode())


def _flags(name: str) -> list[str]:
    return ["--cni", "--cpu-shares", "0", "--snapshotter", "native", IMAGE, name]


async def start(net: Lab, node: Node, image: Path) -> Containerd:
    """Start containerd in a node and import the image for both of its users."""
    await node.run("tee", "/run/containerd.toml", input=_CONFIG)
    # The CRI plugin brings the loopback interface up with a plugin of this name, and looks in no other place.
    await node.run("ln", "-sf", "/usr/lib/cni/loopback", f"{PLUGIN_DIR}/loopback")
    daemon = Containerd(net, node)
    daemon.boot()

    async def answers() -> bool:
        return (await daemon.ctr("version", check=False)).returncode == 0

    await net.wait_for(f"containerd on {node.name}", answers)
    content = "/run/image.tar"
    await node.run("cp", str(image), content)
    for namespace in ("default", "k8s.io"):
        await daemon.ctr("-n", namespace, "images", "import", "--snapshotter", "native", content)
    return daemon
