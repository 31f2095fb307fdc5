"""podroute beside other makers' plugins: in front of a chain, and as IPAM plugin under ptp and bridge (Debian's)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cni.hooks import Handle
from cni.install import install
from cni.podnet import host_ifname
from tests.kernel.cni_node import Node, pings
from tests.netns import Netns

DEBIAN = Path("/usr/lib/cni")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (DEBIAN / "ptp").exists(), reason="needs Debian's containernetworking-plugins"),
]
MakeNetns = Callable[[], Netns]


class Runtime:
    """Runs a list of plugins in the host's namespace, as libcni does: results passed on, DEL in reverse."""

    def __init__(self, node: Node, *plugins: dict[str, Any], version: str = "1.0.0", name: str = "podroute") -> None:
        self.node = node
        self.plugins = plugins
        self.head = {"cniVersion": version, "name": name}
        self.result: dict[str, Any] | None = None

    async def add(self, pod: Netns, container: str = "c1", **runtime: Any) -> dict[str, Any]:
        result: dict[str, Any] | None = None
        for plugin in self.plugins:
            result = json.loads(await self.run("ADD", plugin, container, pod, result, runtime))
        assert result is not None
        self.result = result
        return result

    async def check(self, pod: Netns, container: str = "c1", **runtime: Any) -> None:
        for plugin in self.plugins:
            await self.run("CHECK", plugin, container, pod, self.result, runtime)

    async def delete(self, pod: Netns | None, container: str = "c1", **runtime: Any) -> None:
        for plugin in reversed(self.plugins):
            await self.run("DEL", plugin, container, pod, self.result, runtime)

    async def run(
        self, verb: str, plugin: dict[str, Any], container: str, pod: Netns | None, previous: Any, runtime: Any
    ) -> str:
        """Run one plugin; an error is an AssertionError with what it said."""
        config = {**self.head, **plugin}
        if previous:
            config["prevResult"] = previous
        if wanted := {key: value for key, value in runtime.items() if plugin.get("capabilities", {}).get(key)}:
            config["runtimeConfig"] = wanted
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": pod.path if pod else "",
            "CNI_PATH": f"{self.node.installed.bin_dir}:{DEBIAN}",
        }
        binary = next(p for p in (self.node.installed.bin_dir / plugin["type"], DEBIAN / plugin["type"]) if p.exists())
        command = self.node.host.command(str(binary))
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        stdout, stderr = await process.communicate(json.dumps(config).encode())
        if process.returncode:
            raise AssertionError(f"{verb} of {plugin['type']}: {stdout.decode()}{stderr.decode()}")
        return stdout.decode()


PODROUTE = {"type": "podroute", "capabilities": {"ips": True, "mac": True, "dns": True}}


@pytest_asyncio.fixture
async def node(tmp_path: Path, netns: MakeNetns) -> AsyncIterator[Node]:
    node = Node(tmp_path, netns())
    await node.start()
    yield node
    await node.stop()


class TestChain:
    async def test_tuning_changes_mtu_and_mac(self, node: Node, netns: MakeNetns) -> None:
        pod = netns()
        runtime = Runtime(node, PODROUTE, {"type": "tuning", "mtu": 1340, "mac": "02:00:00:00:00:42"})
        result = await runtime.add(pod)
        assert result["interfaces"][1]["mac"] == "02:00:00:00:00:42"
        await runtime.check(pod)
        link = pod.run("ip", "link", "show", "eth0")
        assert "mtu 1340" in link
        assert "02:00:00:00:00:42" in link
        assert pings(node.host, *(ip["address"].partition("/")[0] for ip in result["ips"]))
        assert pings(pod, "192.0.2.1", "2001:db8::1")
        await runtime.delete(pod)
        assert await node.remains() == []

    async def test_bandwidth(self, node: Node, netns: MakeNetns) -> None:
        pod = netns()
        plugin = {"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000}
        runtime = Runtime(node, PODROUTE, plugin)
        await runtime.add(pod)
        name = host_ifname(Handle("podroute", "c1", "eth0"))
        assert "tbf" in node.host.run("tc", "qdisc", "show", "dev", name)
        await runtime.check(pod)
        await runtime.delete(pod)
        assert await node.remains() == []

    @pytest.mark.skipif(not shutil.which("iptables"), reason="the plugins need iptables")
    async def test_portmap(self, node: Node, netns: MakeNetns) -> None:
        pod, client = netns(), netns()
        node.host.run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", client.path)
        node.host.run("ip", "address", "add", "198.51.100.1/24", "dev", "lan")
        node.host.run("ip", "link", "set", "lan", "up")
        client.run("ip", "address", "add", "198.51.100.2/24", "dev", "eth0")
        client.run("ip", "link", "set", "eth0", "up")
        plugin = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False}
        runtime = Runtime(node, PODROUTE, plugin)
        ports: dict[str, Any] = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
        await runtime.add(pod, **ports)
        # No CHECK: that of portmap 1.1.1 looks for IPv6 rules of IPv4 addresses.
        with pod.call(lambda: _listen(80)) as server:
            with client.call(lambda: _connect("198.51.100.1", 8080)):
                connection, source = server.accept()
                connection.close()
        assert source[0] == "198.51.100.2"
        await runtime.delete(pod, **ports)
        assert await node.remains() == []

    @pytest.mark.skipif(not shutil.which("iptables"), reason="the plugins need iptables")
    async def test_firewall(self, node: Node, netns: MakeNetns) -> None:
        pod = netns()
        runtime = Runtime(node, PODROUTE, {"type": "firewall", "backend": "iptables"})
        result = await runtime.add(pod)
        address = result["ips"][0]["address"].partition("/")[0]
        assert address in node.host.run("iptables", "-S", "CNI-FORWARD")
        await runtime.check(pod)
        await runtime.delete(None)
        assert address not in node.host.run("iptables", "-S", "CNI-FORWARD")
        assert await node.remains() == []

    @pytest.mark.skipif(not shutil.which("iptables"), reason="the plugins need iptables")
    async def test_all_four_in_the_list_that_install_writes(self, node: Node, netns: MakeNetns) -> None:
        chain = ["portmap", "bandwidth", "tuning", "firewall"]
        for name in chain:
            (node.installed.bin_dir / name).symlink_to(DEBIAN / name)
        install(replace(node.installed, chain=chain), plugin="python")
        conflist = json.loads(node.installed.conflist.read_text())
        assert [plugin["type"] for plugin in conflist["plugins"]] == ["podroute", *chain]
        pod, runtime = netns(), Runtime(node, *conflist["plugins"], version=conflist["cniVersion"])
        wanted: dict[str, Any] = {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 8_000_000},
        }
        result = await runtime.add(pod, **wanted)
        addresses = [ip["address"].partition("/")[0] for ip in result["ips"]]
        assert pings(node.host, *addresses)
        assert "tbf" in node.host.run("tc", "qdisc", "show", "dev", host_ifname(Handle("podroute", "c1", "eth0")))
        assert f"{addresses[0]}:80" in node.host.run("iptables", "-t", "nat", "-S")
        assert addresses[0] in node.host.run("iptables", "-S", "CNI-FORWARD")
        runtime.plugins = tuple(plugin for plugin in runtime.plugins if plugin["type"] != "portmap")
        await runtime.check(pod, **wanted)
        runtime.plugins = tuple(conflist["plugins"])
        for _ in range(2):
            await runtime.delete(pod, **wanted)
        assert addresses[0] not in node.host.run("iptables", "-S") + node.host.run("iptables", "-t", "nat", "-S")
        assert await node.remains() == []


def main_plugin(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "ipam": {"type": "podroute"}, **more}


BRIDGE = main_plugin("bridge", bridge="br-pods", isGateway=True)


class TestIpam:
    @pytest.mark.parametrize("plugin", [main_plugin("ptp"), BRIDGE], ids=["ptp", "bridge"])
    async def test_life(self, node: Node, netns: MakeNetns, plugin: dict[str, Any]) -> None:
        node.ledger.families = [4]
        one, two = netns(), netns()
        runtime = Runtime(node, plugin, name="other")
        first = await runtime.add(one)
        assert first["ips"][0]["address"] == "10.64.0.2/24"
        assert first["ips"][0]["gateway"] == "10.64.0.1"
        await runtime.check(one)
        second = Runtime(node, plugin, name="other")
        assert (await second.add(two, "c2"))["ips"][0]["address"] == "10.64.0.3/24"
        assert pings(one, "10.64.0.3", "192.0.2.1")
        assert pings(node.host, "10.64.0.2")
        await runtime.delete(one)
        await runtime.delete(one)
        await second.delete(None, "c2")
        assert [str(handle) for handle in node.ledger.held if handle.network != "-"] == []

    async def test_what_the_main_plugin_is_told(self, node: Node, netns: MakeNetns) -> None:
        config: dict[str, Any] = {"also": {"type": "ptp", "ipam": {"type": "podroute"}}}
        pod = netns()
        added = await node.add("c1", pod, version="1.1.0", **config)
        assert "interfaces" not in added.json
        assert added.json["ips"] == [
            {"address": "10.64.0.2/24", "gateway": "10.64.0.1"},
            {"address": "fd00:64::2/120", "gateway": "fd00:64::1"},
        ]
        assert added.json["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        assert "eth0" not in pod.run("ip", "link")
        again = await node.add("c1", pod, **config)
        assert again.json["code"] == 101
        check: dict[str, Any] = {**config, "prevResult": added.json}
        assert (await node.call("CHECK", "c1", pod.path, **check)).status == 0
        lacks: dict[str, Any] = {**config, "prevResult": {**added.json, "ips": []}}
        assert (await node.call("CHECK", "c1", pod.path, **lacks)).json["code"] == 102
        assert (await node.call("STATUS", "", **config)).status == 0
        kept: dict[str, Any] = {
            "also": {**config["also"], "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
        }
        assert (await node.call("GC", "", **kept)).status == 0
        assert Handle("podroute", "c1", "eth0") in node.ledger.held
        none: dict[str, Any] = {"also": {**config["also"], "cni.dev/valid-attachments": []}}
        assert (await node.call("GC", "", **none)).status == 0
        assert Handle("podroute", "c1", "eth0") not in node.ledger.held
        assert (await node.call("CHECK", "c1", pod.path, **check)).json["code"] == 102

    async def test_addresses_survive_the_agents_restart(self, node: Node, netns: MakeNetns) -> None:
        """They have no link of podroute's to be missed."""
        also = {"type": "ptp", "ipam": {"type": "podroute"}}
        assert (await node.add("c1", netns(), also=also)).status == 0
        await node.stop()
        await node.start()
        assert Handle("podroute", "c1", "eth0") in node.ledger.held

    async def test_a_gateway_that_a_pod_has(self, node: Node, netns: MakeNetns) -> None:
        assert (await node.add("c1", netns())).addresses[0] == "10.64.0.1"
        refused = await node.add("c2", netns(), network="other", also={"type": "ptp", "ipam": {"type": "podroute"}})
        assert refused.json["code"] == 103
        assert "pools" in refused.json["details"]
        assert [handle.container_id for handle in node.ledger.held if handle.network != "-"] == ["c1"]

    async def test_a_main_plugin_that_fails_gives_the_address_back(self, node: Node, netns: MakeNetns) -> None:
        pod = netns()
        pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
        runtime = Runtime(node, main_plugin("ptp"), name="other")
        with pytest.raises(AssertionError, match="ADD of ptp"):
            await runtime.add(pod)
        assert not [handle for handle in node.ledger.held if handle.network != "-"]


def _listen(port: int) -> socket.socket:
    server = socket.create_server(("0.0.0.0", port))
    server.settimeout(10)
    return server


def _connect(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port), 10)
