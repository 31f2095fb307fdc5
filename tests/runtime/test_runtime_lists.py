"""Lists that `podroute cni install` does not write: podroute as the IPAM of other plugins, and of 1.1.0 alone."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from labs.lab import Lab
from labs.node import Node
from tests.guard import Guard
from tests.runtime import containerd, podman
from tests.runtime.hosts import PLUGIN_DIR, addresses, ask, enter, pods, prepare, reaches

pytestmark = pytest.mark.root
CONF = "/etc/cni/net.d"


@dataclass(frozen=True)
class Hosts:
    """A lab of its own: what a block sets aside for a subnet stays so."""

    net: Lab
    node: Node
    podman: podman.Podman
    containerd: containerd.Containerd

    async def write(self, file: str, **conflist: Any) -> None:
        await self.node.run("tee", f"{CONF}/{file}", input=json.dumps(conflist))


@pytest.fixture(scope="module")
def hosts(image: Path) -> Iterator[Hosts]:
    name = f"runtime-lists-{os.getpid()}"
    guard = Guard(name)

    async def build() -> Hosts:
        net = await Lab.up("one-tor", name=name)
        assert not net.problems
        await prepare(net)
        node = net.node("n1")
        for plugin in ("ptp", "bridge"):
            await node.run("ln", "-s", f"/usr/lib/cni/{plugin}", f"{PLUGIN_DIR}/{plugin}")
        return Hosts(net, node, await podman.prepare(node, image), await containerd.start(net, node, image))

    try:
        built = asyncio.run(build())
        yield built
        asyncio.run(built.net.down())
    finally:
        guard.close()


async def test_runtimes_of_debian_12_refuse_a_list_of_1_1_0_alone(hosts: Hosts) -> None:
    """Hence `cniVersion` 1.0.0 in what install writes, and 1.1.0 in `cniVersions`, which they do not read."""
    written = json.loads((await hosts.node.run("cat", f"{CONF}/10-podroute.conflist")).stdout)
    assert (written["cniVersion"], written["cniVersions"]) == ("1.0.0", ["1.0.0", "1.1.0"])
    await hosts.write("05-newer.conflist", cniVersion="1.1.0", name="newer", plugins=written["plugins"])
    try:
        refused = [
            await hosts.podman("run", "--rm", "--network", "newer", podman.IMAGE, "sh", "-c", "true", check=False),
            await hosts.containerd.run("newer", "sh", "-c", "true", check=False),
        ]
    finally:
        await hosts.node.run("rm", f"{CONF}/05-newer.conflist")
    for result in refused:
        assert result.returncode
        assert 'unsupported CNI result version "1.1.0"' in result.stderr
    assert not (await hosts.containerd.run("older", "sh", "-c", "true")).stderr


@pytest.mark.parametrize("main", ["ptp", "bridge"])
async def test_addresses_for_containers_of_another_plugin(hosts: Hosts, main: str) -> None:
    more = {"bridge": "cni0", "isGateway": True} if main == "bridge" else {}
    plugin = {"type": main, **more, "ipam": {"type": "podroute"}}
    network = f"by-{main}"
    await hosts.write(f"20-{network}.conflist", cniVersion="1.0.0", name=network, plugins=[plugin])
    for name in ("one", "two"):
        await hosts.podman("run", "--detach", "--network", network, "--name", name, podman.IMAGE)
    pids = [await hosts.podman.pid(name) for name in ("one", "two")]
    held = [await addresses(hosts.net, hosts.node, pid) for pid in pids]
    assert sorted(pod["addresses"] for pod in await pods(hosts.node)) == sorted(held)

    blocks = [ip_network(block["prefix"]) for block in await ask(hosts.node, "blocks")]
    for family, block in zip(("-4", "-6"), blocks, strict=True):
        first, gateway, last = (str(block[number]) for number in (0, 1, -1))
        given = {address for addresses in held for address in addresses}
        assert not {first, gateway} & given
        assert block.version == 6 or last not in given
        default = await enter(hosts.node, pids[0], "ip", family, "route", "show", "default")
        assert default.startswith(f"default via {gateway} dev eth0")
    await reaches(hosts.node, pids[0], held[1])
    await reaches(hosts.net.node("n2"), 1, [*held[0], *held[1]])

    for name in ("one", "two"):
        await hosts.podman.remove(name)
    assert await pods(hosts.node) == []

    async def freed() -> bool:
        return not any(block["used"] for block in await ask(hosts.node, "blocks"))

    await hosts.net.wait_for("addresses to be free", freed)
    kept = [block["reserved"] for block in await ask(hosts.node, "blocks")]
    assert kept == [3, 2], "what is set aside stays so"
