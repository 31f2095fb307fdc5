"""Labs of an ordinary user: FRR, agents, pods and tools in a user namespace, and what is said where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs.leftovers import Host
from labs.processes import marked
from labs.teardown import take_down

TREE = Path(__file__).parents[2]
NAME = f"rootless-{os.getpid()}"
USER = 2_000_000 + os.getpid()
"""A user that nobody is."""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("vtysh"), reason="needs FRR: install the package frr"),
]

SCRIPT = """
import asyncio, os, sys
from labs.fabric import converge, podroute_nodes
from labs.pods import start_pods
from labs.runner import lab

async def main():
    assert os.geteuid() != 0
    async with lab("two-racks", name=sys.argv[1]) as net:
        nodes = podroute_nodes(net)
        await converge(net)
        await asyncio.gather(*(node.run("podroute", "cni", "install") for node in nodes))
        pods = await start_pods([nodes[0], nodes[-1]], 1)
        for address in pods[1].addresses:
            await net.wait_for(f"answer of {address}", lambda: pods[0].ping(address))
        peers = await net.node("tor1").frr_json("show bgp summary json")
        print(sorted(peer["state"] for peer in peers["ipv4Unicast"]["peers"].values()))

asyncio.run(main())
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """Return a directory of the user's own; at the end nothing of it runs, and nothing is left on the host."""
    before = Host.look(NAME)
    home = Path(tempfile.mkdtemp(prefix="podroute-test-", dir="/tmp"))
    os.chown(home, USER, USER)
    readable = as_user(home, "-c", "import labs.runner")
    if readable.returncode:
        shutil.rmtree(home)
        pytest.skip(f"an ordinary user cannot read {TREE} or {sys.prefix}")
    yield home
    take_down(NAME, root=home / "podroute-labs")
    assert marked(NAME) == []
    assert not (home / "podroute-labs").exists()
    shutil.rmtree(home)
    assert Host.look(NAME).beyond(before) == []


def as_user(home: Path, *argv: str, wrap: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run this Python as an ordinary user without any rights; ``wrap`` goes before it, as root."""
    command = [*wrap, *as_user_argv(*argv)]
    return subprocess.run(command, capture_output=True, text=True, cwd=TREE, env=environment(home), timeout=120)


def as_user_argv(*argv: str) -> list[str]:
    user = (f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs")
    return ["setpriv", *user, sys.executable, *argv]


def environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}


def podroute(home: Path, *words: str, wrap: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return as_user(home, "-c", "from labs.commands import lab; lab()", *words, wrap=wrap)


def captured(home: Path, *options: str) -> str:
    """Return what `pcap` prints of two pings from n1."""
    command = as_user_argv("-c", "from labs.commands import lab; lab()", "pcap", *options, NAME, "n1:eth1", "icmp")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=TREE, env=environment(home), stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stderr
        while "listening on eth1" not in (line := child.stderr.readline()):
            assert line, "pcap has ended"
        podroute(home, "exec", NAME, "n1", "ping", "-c", "2", "-i", "0.01", "10.1.1.1")
        child.terminate()
        return child.communicate(timeout=60)[0]


def may_have_namespaces() -> bool:
    probe = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "unshare", "-Urnm", "true"]
    return subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.skipif(not may_have_namespaces(), reason="this kernel lets no ordinary user have namespaces")
def test_a_fabric_with_routers_agents_and_pods(home: Path) -> None:
    done = as_user(home, "-c", SCRIPT, NAME)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['Established', 'Established', 'Established']\n"


@pytest.mark.skipif(not may_have_namespaces(), reason="this kernel lets no ordinary user have namespaces")
def test_the_commands(home: Path) -> None:
    up = podroute(home, "up", "one-tor", "--name", NAME)
    assert up.returncode == 0, up.stderr
    assert "== tor1: bgpd.log" in podroute(home, "logs", NAME).stdout
    done = podroute(home, "exec", NAME, "n1", "--", "sh", "-c", "hostname; id -u; ls /sys/class/net")
    assert done.stdout.split() == ["n1", "0", "eth1", "lo"], done.stderr
    assert "bgpd[" in podroute(home, "ps").stdout
    assert "10Mbit" in podroute(home, "impair", NAME, "n1:eth1", "--rate", "10mbit", "--loss", "50").stdout
    assert podroute(home, "graph", NAME, "-o", "-").stdout.startswith("<svg ")
    assert podroute(home, "impair", NAME, "n1:eth1", "--clear").returncode == 0
    file = home / "bgp.pcap"
    captured(home, "-w", str(file))
    read = subprocess.run(["tcpdump", "-n", "-r", file], capture_output=True, text=True, check=True).stdout
    assert (read.count("echo request"), len(read.splitlines())) == (2, 4), "two pings, and nothing else"
    assert captured(home).count("echo request") == 2, "without a file they are printed"
    assert "a filter needs an interface" in podroute(home, "pcap", NAME, "n1", "icmp").stderr
    assert "no filter: no such" in podroute(home, "pcap", NAME, "n1:eth1", "no", "such").stderr
    folder = home / "saved"
    assert podroute(home, "save", NAME, str(folder)).returncode == 0
    assert "eth1" in (folder / "n1/addresses.txt").read_text()
    assert podroute(home, "down", NAME).stdout == f"lab {NAME} is down\n"


@pytest.mark.skipif(not may_have_namespaces(), reason="this kernel lets no ordinary user have namespaces")
def test_what_is_mounted_where_the_user_may_not_look_is_left_out(home: Path) -> None:
    """As under /var/lib/containers while root's podman runs a container."""
    file = home / "x.clab.yml"
    file.write_text(f"name: {NAME}\ntopology:\n  nodes:\n    n: {{kind: linux, image: x, network-mode: none}}\n")
    mount = "mount -t tmpfs -o mode=700 x /var/tmp && mkdir /var/tmp/in && mount -t tmpfs x /var/tmp/in"
    mount += " && mount -t tmpfs x /var/local && touch /var/local/seen"
    hidden = ("unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh")
    up = podroute(home, "up", str(file), wrap=hidden)
    assert up.returncode == 0, up.stderr
    script = "ls /var/local; touch /var/lib/own /var/own && ls /var/own"
    found = podroute(home, "exec", NAME, "n", "--", "sh", "-c", script)
    assert found.stdout.split() == ["seen", "/var/own"], found.stderr
    assert not Path("/var/lib/own").exists()
    assert podroute(home, "down", NAME).returncode == 0


@pytest.mark.skipif(not may_have_namespaces(), reason="this kernel lets no ordinary user have namespaces")
def test_a_private_place_that_the_host_has_stays_private_beside_one_that_it_lacks(home: Path) -> None:
    """podman's package makes /var/lib/cni; /var/lib, where root alone may write, gets an overlay for the other one."""
    file = home / "x.clab.yml"
    file.write_text(f"name: {NAME}\ntopology:\n  nodes:\n    n: {{kind: linux, image: x, network-mode: none}}\n")
    script = 'mount -t tmpfs x /var && mkdir -p /var/lib/cni/networks /var/log /var/tmp && exec "$@"'
    up = podroute(home, "up", str(file), wrap=("unshare", "--mount", "sh", "-c", script, "sh"))
    assert up.returncode == 0, up.stderr
    script = "touch /var/lib/podroute/own /var/lib/cni/own && ls /var/lib/cni"
    found = podroute(home, "exec", NAME, "n", "--", "sh", "-c", script)
    assert (found.stdout, found.stderr) == ("own\n", "")
    assert podroute(home, "down", NAME).returncode == 0


@pytest.mark.skipif(not may_have_namespaces(), reason="this kernel lets no ordinary user have namespaces")
def test_what_only_root_can_do_is_refused(home: Path) -> None:
    file = home / "x.clab.yml"
    file.write_text(
        f"name: {NAME}\ntopology:\n  nodes:\n    n: {{kind: linux, image: x}}\n"
        "    m: {kind: linux, image: x, network-mode: host}\n  links:\n    - endpoints: ['n:eth1', 'host:x']\n"
    )
    refused = podroute(home, "up", str(file)).stderr
    assert f"{file}:topology.links[0]: links to the host can be made by root only" in refused
    assert f"{file}:topology.nodes.m.network-mode: the host's network can be used by root only" in refused


def test_where_there_are_no_namespaces_the_reason_is_told() -> None:
    """A user namespace whose limit is none, and in it a user without rights."""
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --inh-caps=-all --ambient-caps=-all "$@"'
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-user=1000", "--map-group=1000", "--keep-caps", "sh", "-c", script, "sh"),
            *(sys.executable, "-c", "from labs.commands import lab; lab()", "up", "one-tor", "--name", NAME),
        ],
        capture_output=True,
        text=True,
        cwd=TREE,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "Error: labs need namespaces, and without root these: a user namespace, which the setting "
        "user.max_user_namespaces = 0 forbids; or run this as root"
    )
