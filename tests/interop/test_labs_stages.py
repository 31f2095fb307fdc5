"""Stages, health, shared networks and links of all kinds, in labs of plain nodes: no router is needed."""

from __future__ import annotations

import asyncio
import json
import os
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from labs.errors import LabError
from labs.host import has_dummy
from labs.lab import Lab
from labs.runner import lab

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

NAME = f"stages-{os.getpid()}"
INTERFACE = f"lab{os.getpid()}"
NODE4, HOST4 = (str(IPv4Address("198.18.0.0") + os.getpid() % 2**15 * 4 + last) for last in (1, 2))
"""In the host's own network, where other tests' may be at the same time: of a subnet of their own."""


def write(directory: Path, nodes: str, links: str = "") -> Path:
    path = directory / "x.clab.yml"
    path.write_text(
        f"name: {NAME}\ntopology:\n  defaults: {{kind: linux, image: plain, network-mode: none}}\n"
        f"  nodes:\n{nodes}  links:\n{links}"
    )
    return path


async def test_nodes_wait_for_each_other(tmp_path: Path) -> None:
    """The link between ``first`` and ``last`` is there for ``first`` before ``last`` exists."""
    path = write(
        tmp_path,
        f"""
    last:
      stages:
        create:
          wait-for: [{{node: first, stage: healthy}}, {{node: job, stage: exit}}]
          exec:
            - {{command: cat {tmp_path}/job {tmp_path}/first, target: host}}
        create-links:
          exec: {{on-enter: [ls /sys/class/net], on-exit: [ls /sys/class/net]}}
        configure:
          exec: [{{command: ls /absent}}]
    first:
      cmd: sh -c 'ls /sys/class/net > {tmp_path}/first; sleep 0.3; touch /run/well; exec sleep 1000'
      healthcheck: {{test: [CMD-SHELL, 'test -e /run/well'], interval: 1, retries: 60}}
    job:
      cmd: sh -c 'sleep 0.2; echo done > {tmp_path}/job'
""",
        "    - {endpoints: ['first:eth1', 'last:eth1'], ipv4: [192.0.2.1/24, 192.0.2.2/24]}\n",
    )
    net = await Lab.up(path)
    try:
        (problem,) = net.problems
        assert problem.startswith("node last: ls /absent: exit status 2"), "a failing command stops nothing"
        log = (net.node("last").directory / "exec.log").read_text().split("$ ")
        assert log == [
            "host",
            f"cat {tmp_path}/job {tmp_path}/first\ndone\neth1\nlo\nlast",
            "ls /sys/class/net\nlo\nlast",
            "ls /sys/class/net\neth1\nlo\n",
        ]
        assert await net.node("first").ping("192.0.2.2")
    finally:
        await net.down()


async def test_a_node_that_does_not_get_well_ends_the_lab(tmp_path: Path) -> None:
    nodes = """
    ill: {healthcheck: {test: [CMD, ls, /absent], interval: 1, retries: 1}}
    n: {stages: {create: {wait-for: [{node: ill, stage: healthy}]}}}
"""
    with pytest.raises(
        LabError, match="node ill is not healthy, 1 checks failed, the last: node ill: ls /absent: exit"
    ):
        await Lab.up(write(tmp_path, nodes, "    []\n"))
    assert NAME not in Lab.names()


async def test_networks_that_are_shared(tmp_path: Path) -> None:
    nodes = """
    side: {network-mode: 'container:n', hostname: other, exec: [ip addr add 192.0.2.9/32 dev eth2]}
    n: ~
    inside: {network-mode: host, cmd: sleep 1000}
    peer: ~
"""
    links = "    - endpoints: ['n:eth1', 'peer:eth1']\n    - endpoints: ['side:eth2', 'peer:eth2']\n"
    here = os.readlink("/proc/self/ns/net")
    stranger = await asyncio.create_subprocess_exec("sleep", "1000")
    async with lab(write(tmp_path, nodes, links)) as net:
        n, side, inside = net.node("n"), net.node("side"), net.node("inside")
        assert os.readlink(n.netns) == os.readlink(side.netns) != here == os.readlink(inside.netns)
        assert (await n.run("ls", "/sys/class/net")).stdout.split() == ["eth1", "eth2", "lo"]
        assert "192.0.2.9" in (await n.run("ip", "addr")).stdout
        assert (await side.run("hostname")).stdout == "other\n"
        await side.run("touch", "/run/own")
        assert not (n.root / "run/own").exists(), "files are not shared"
        process = inside.process
        assert process
    assert not process.running()
    assert stranger.returncode is None, "who else is in the host's network is left alone"
    stranger.kill()
    await stranger.wait()


async def test_links_of_all_kinds(tmp_path: Path) -> None:
    links = f"""
    - endpoints: ["n:eth1", "lan:p1"]
    - type: veth
      mtu: 1400
      endpoints:
        - {{node: n, interface: eth2, mac: "02:00:00:00:00:01", ipv6: "2001:db8::1/64"}}
        - {{node: m, interface: eth2, ipv6: "2001:db8::2/64"}}
    - {{endpoints: ["n:eth3", "host:{INTERFACE}"], mtu: 1300, ipv4: [{NODE4}/30, {HOST4}/30]}}
"""
    quick = "{sysctls: {net.ipv6.conf.default.accept_dad: 0}}"
    path = write(tmp_path, f"    n: {quick}\n    m: {quick}\n    lan: {{kind: bridge}}\n", links)
    async with lab(path) as net:
        n = net.node("n")
        assert await n.ping("2001:db8::2")
        assert await n.ping(HOST4), "the host's end has its address too"
        found = {link["ifname"]: link for link in json.loads((await n.run("ip", "-j", "link")).stdout)}
        assert [found[name]["mtu"] for name in ("eth1", "eth2", "eth3")] == [9500, 1400, 1300]
        assert found["eth2"]["address"] == "02:00:00:00:00:01"
        ports = json.loads((await net.node("lan").run("ip", "-j", "-d", "link", "show", "master", "lan")).stdout)
        assert [port["ifname"] for port in ports] == ["p1"]
        assert (Path("/sys/class/net") / INTERFACE / "ifalias").read_text() == f"podroute lab {NAME}\n"
        with pytest.raises(LabError, match=f"this host has an interface `{INTERFACE}` already, choose another name"):
            await Lab.up(path, name=f"{NAME}-b")
    assert not (Path("/sys/class/net") / INTERFACE).exists()


async def test_a_directory_that_nodes_share_may_be_the_own_one_of_a_node(tmp_path: Path) -> None:
    """``n`` comes first, and wants it before ``store`` is made."""
    first = '    n: {binds: ["__clabDir__/store:/srv/shared"]}\n'
    path = write(tmp_path, first + '    store: {binds: ["__clabNodeDir__:/srv/own"]}\n')
    async with lab(path) as net:
        await net.node("n").run("touch", "/srv/shared/seen")
        assert (await net.node("store").run("ls", "/srv/own")).stdout == "seen\n"


async def test_what_the_kernel_has_not_is_refused_with_it_as_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path, "    n: ~\n", "    - {type: dummy, endpoint: {node: n, interface: dummy7}}\n")
    if has_dummy():
        async with lab(path) as net:
            assert "dummy7" in (await net.node("n").run("ip", "link", "show", "type", "dummy")).stdout
        return
    with pytest.raises(LabError) as refused:
        await Lab.up(path)
    place = f"{path}:topology.links[0].type"
    assert str(refused.value) == f"{place}: this kernel has no `dummy` interfaces (CONFIG_DUMMY)"
    assert NAME not in Lab.names()
