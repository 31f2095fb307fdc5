"""docs/install.md as it stands: every file of it is right, and its rack is built, upgraded and taken apart in a lab."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from labs.fabric import converge
from labs.lab import Lab
from labs.node import Node
from labs.pods import Pod, start_pods
from labs.runner import lab
from labs.scenarios.traffic import Traffic
from labs.waiting import off_loop
from tests.interop import install_page as page

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(
        not all(shutil.which(name) for name in ("vtysh", "bird", "etcd", "openssl", "make")),
        reason="needs FRR, BIRD, etcd and OpenSSL: run `sudo make setup-tests`",
    ),
]

NAME = f"install-{os.getpid()}"
_COPIED = ("LICENSE", "Makefile", "README.md", "pyproject.toml", "requirements.lock", "setup.cfg")
_ROOMS = ("agent", "bgp", "cni", "config", "ipam", "labs", "routes")
# In place of the interpreter that builds a release: the release is a way to the one that runs the tests.
_INTERPRETER = """#!/bin/sh
case "$*" in
    *"-m venv "*)
        for directory; do :; done
        mkdir -p "$directory/bin"
        printf '#!/bin/sh\\n' >"$directory/bin/pip"
        cp "$directory/bin/pip" "$directory/bin/python"
        printf '#!/bin/sh\\nexec {podroute} "$@"\\n' >"$directory/bin/podroute"
        chmod 755 "$directory/bin"/*
        ;;
esac
"""


def test_the_routers_take_their_files(tmp_path: Path) -> None:
    for path, check in (("/etc/frr/frr.conf", ("vtysh", "-C", "-f")), ("/etc/bird/bird.conf", ("bird", "-p", "-c"))):
        (tmp_path / "given").write_text(page.file(path))
        done = subprocess.run([*check, str(tmp_path / "given")], capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), path


def checkouts(directory: Path) -> None:
    """Make two checkouts that differ, in ``old`` and ``new``."""
    for name in ("old", "new"):
        for room in _ROOMS:
            shutil.copytree(page.ROOT / room, directory / name / room, ignore=shutil.ignore_patterns("__pycache__"))
        for file in _COPIED:
            shutil.copy(page.ROOT / file, directory / name / file)
    (directory / "new/LICENSE").write_text("changed\n")
    interpreter = directory / "python"
    interpreter.write_text(_INTERPRETER.format(podroute=Path(sys.executable).parent / "podroute"))
    interpreter.chmod(0o755)


class Machine:
    """A node on which the page's steps are taken. systemd's part, starting and stopping the unit, is taken here."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self._directory = directory
        self._agent: subprocess.Popen[bytes] | None = None

    async def prepare(self) -> None:
        """Have places of its own where an installation writes, and the files that the operator puts there."""
        for path in ("/etc/podroute", "/var/lib/podroute"):  # directories, which can be removed, and no mounts
            await self.sh(f"umount {path}")
        await self.sh(
            "mount -t tmpfs tmpfs /usr/local/bin; mkdir -p /etc/podroute; cp /etc/podroute.given/* /etc/podroute/"
        )
        await self.sh("chmod 600 /etc/podroute/*")

    async def sh(self, command: str, *, checkout: str = "new") -> str:
        """Take one step; what the page leaves to systemd is done as it would."""
        words = shlex.split(command)
        if words[0] == "systemctl":
            await self._systemctl(words[1:-1])
            return ""
        where = shlex.quote(str(self._directory / checkout))
        done = await self.node.run(
            "sh", "-ec", f"cd {where}\n{command}", env={"PYTHON": str(self._directory / "python")}, timeout=90
        )
        return done.stdout

    async def _systemctl(self, words: list[str]) -> None:
        if self._agent is not None and words[0] in ("restart", "disable"):
            if words[0] == "restart":
                self._agent.terminate()
            assert await off_loop(partial(self._agent.wait, 30)) == 0
        if words[0] in ("restart", "enable"):
            self._agent = self._start()
            await self.node.agent.answering()

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self._directory / f"{self.node.name}.log", "ab") as log:
            return self.node.popen(*page.unit_command(), stdout=log, stderr=log)

    async def release(self) -> str:
        return (await self.node.run("readlink", "/opt/podroute")).stdout.strip()


async def etcdctl(net: Lab, *words: str) -> str:
    given = {"ENDPOINTS": "https://127.0.0.1:2379", "CACERT": "/etc/etcd/ca.pem"}
    patience = {"DIAL_TIMEOUT": "30s", "COMMAND_TIMEOUT": "30s"}
    environment = {"ETCDCTL_API": "3", **{f"ETCDCTL_{name}": value for name, value in (given | patience).items()}}
    return (await net.node("etcd").run(*words, env=environment)).stdout


async def set_up_etcd(net: Lab) -> None:
    """Turn authentication on, as an operator of etcd does, and then what the page says."""
    await net.node("etcd").run(
        "sh", "-ec", f"mkdir -p /etc/podroute; echo {page.PASSWORD} >/etc/podroute/etcd.password"
    )
    await etcdctl(net, "etcdctl", "user", "add", "root:secret")
    for step in page.steps("The store"):
        await etcdctl(net, "sh", "-ec", step)
    for words in (("user", "grant-role", "root", "root"), ("auth", "enable")):
        await etcdctl(net, "etcdctl", *words)


async def reach_each_other(pods: list[Pod]) -> None:
    one, other = pods
    for source, target in ((one, other), (other, one)):
        for address in target.addresses:
            assert await source.ping(address, wait=10), f"{source.node.name} does not reach {address}"


async def forwards(router: Node, blocks: list[str]) -> bool:
    """Tell whether a router's kernel, which may lag behind what the router tells, has routes to all of these blocks."""
    shown = [(await router.run("ip", "-j", family, "route")).stdout for family in ("-4", "-6")]
    return {*blocks} <= {route["dst"] for one in shown for route in json.loads(one)}


async def two_ways(node: Node, target: Node) -> bool:
    """Tell whether all routes to the other node's blocks, and the default ones, lead over both routers."""
    wanted = {*await target.agent.blocks(), "0.0.0.0/0", "::/0"}
    routes = {route["prefix"]: route for route in await node.agent.routes()}
    return all(sum(path["used"] for path in routes[one]["paths"]) == 2 for one in wanted if one in routes) and (
        wanted <= routes.keys()
    )


async def left(node: Node) -> list[str]:
    """Return what is left of podroute on a node, in the kernel and in files."""
    found = []
    for command in (
        *("ip route show proto 201", "ip -6 route show proto 201", "ip nexthop show proto 201"),
        *("ip rule show priority 201", "ip -6 rule show priority 201", "nft list table inet podroute", "ip netns list"),
        "find /etc /opt /run /usr/local/bin /var/lib -name *podroute* -not -path */podroute.given* -not -path *-lab*",
    ):
        found += [f"{command}: {line}" for line in (await node.run(*command.split(), check=False)).stdout.splitlines()]
    links = json.loads((await node.run("ip", "-j", "link")).stdout)
    return found + [link["ifname"] for link in links if link["ifname"] not in ("lo", "eth0", "eth1", "eth2")]


async def test_the_rack_of_the_page(tmp_path: Path) -> None:
    page.certificates(tmp_path)
    page.write_files(tmp_path)
    checkouts(tmp_path)
    async with lab(page.topology(tmp_path), name=NAME) as net:
        one, two = machines = [Machine(net.node(name), tmp_path) for name in page.NODES]
        await set_up_etcd(net)
        for machine in machines:
            await machine.prepare()
            await machine.sh("make install", checkout="old")
        for machine in machines:
            for step in page.starting():
                await machine.sh(step)
        await converge(net)
        blocks = [block for machine in machines for block in await machine.node.agent.blocks()]
        for name in ("tor1", "tor2"):
            await net.wait_for(f"routes to all blocks on {name}", partial(forwards, net.node(name), blocks))
        pods = await start_pods([machine.node for machine in machines], 1)
        await reach_each_other(pods)
        await net.wait_for("two ways from n1 to n2", lambda: two_ways(one.node, two.node))
        await net.wait_for("two ways from n2 to n1", lambda: two_ways(two.node, one.node))
        log = (tmp_path / "n1.log").read_text()
        assert "with a fault" not in log, "what the routers send is right"

        before = await one.release()
        traffic = Traffic(*pods)
        await traffic.start()
        upgrade, back = page.upgrade()
        for step in upgrade:
            await one.sh(step)
        after = await one.release()
        assert before != after
        for step in back:
            await one.sh(step.replace("podroute-RELEASE", before))
        assert await one.release() == before
        await converge(net)
        lost = [flow for flow in await traffic.stop() if flow.lost]
        assert not lost

        blocks = await one.node.agent.blocks()
        await pods[0].stop()
        for step in page.steps("Uninstall"):
            await one.sh(step)
        assert await left(one.node) == []
        keys = await etcdctl(net, "etcdctl", "--user", "root:secret", "get", "--prefix", "--keys-only", "/podroute/v1/")
        assert not [key for key in keys.split() if key.endswith("/n1")]
        assert sum("/blocks/" in key for key in keys.split()) == 2, "n2's"
        await gone(net, two.node, blocks)
        assert await pods[1].ping("10.1.1.1", wait=10), "the other node goes on"


async def gone(net: Lab, other: Node, blocks: list[str]) -> None:
    """Wait until nobody has a route to these blocks."""

    async def nobody() -> bool:
        said = [
            await net.node("tor1").frr("show bgp ipv4 unicast", "show bgp ipv6 unicast"),
            (await net.node("tor2").run("birdc", "show", "route")).stdout,
            *(route["prefix"] for route in await other.agent.routes()),
        ]
        return not any(block in text for block in blocks for text in said)

    await asyncio.wait_for(net.wait_for("end of the routes to n1", nobody), 60)
