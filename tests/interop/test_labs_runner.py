"""Labs on this host: built, used, found again, and removed with everything in them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labs.errors import CommandError, LabError
from labs.lab import Lab, load
from labs.leftovers import Host
from labs.processes import marked
from labs.runner import lab
from labs.state import ROOT, Record
from labs.teardown import take_down
from labs.topology import Topology

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not Path("/usr/lib/frr/bgpd").exists(), reason="needs FRR: install the package frr"),
]

TOPOLOGY = """
topology:
  defaults:
    kind: linux
    sysctls: {net.ipv6.conf.default.accept_dad: 0}
  groups:
    router:
      image: quay.io/frrouting/frr:8.4.1
      binds: [daemons:/etc/frr/daemons, "__clabNodeName__.conf:/etc/frr/frr.conf"]
      sysctls: {net.ipv4.ip_forward: 1}
  nodes:
    r1: {group: router}
    r2: {group: router}
    n1:
      image: localhost/podroute:dev
      cmd: sh -c 'echo started; exec sleep 1000'
      env: {COLOR: red}
      binds: ["__clabDir__/store:/var/lib/shared", "daemons:/srv/deep/read-only:ro"]
      exec: [ip addr add 10.1.0.2/24 dev eth1, ip route add default via 10.1.0.1]
      labels: {rack: r1}
  links:
    - endpoints: ["r1:eth1", "r2:eth1"]
    - type: veth
      mtu: 1400
      endpoints: [{node: r1, interface: eth2}, {node: n1, interface: eth1, mac: "02:00:00:00:00:01"}]
"""


def frr_conf(own: int, other: int, extra: str = "") -> str:
    return f"""
bgp route-map delay-timer 0
interface eth1
 ip address 10.0.0.{own}/30
{extra}
router bgp {65000 + own}
 no bgp ebgp-requires-policy
 coalesce-time 50
 neighbor 10.0.0.{other} remote-as {65000 + other}
 neighbor 10.0.0.{other} timers connect 1
 neighbor 10.0.0.{other} advertisement-interval 0
 address-family ipv4 unicast
  redistribute connected
"""


def footprint() -> set[str]:
    """Return what a lab could show of itself on the host."""
    seen = {thing for thing in Host.look("").things if thing.startswith(("link", "mount", "directory"))}
    return seen | {directory for directory in ("/srv/deep", "/run/.podroute-lab") if on_host(directory)}


def on_host(path: str) -> bool:
    return Path(path).exists()


@pytest.fixture
def name() -> Iterator[str]:
    """A name that no other lab has; whatever is left under it at the end is removed, and is a failure."""
    before = footprint()
    name = f"test-{os.getpid()}"
    yield name
    left = [known for known in (name, f"{name}-other") if take_down(known)]
    assert left == []
    assert footprint() - before == set()


@pytest.fixture
def path(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "small.clab.yml"
    path.write_text(f"name: {name}\n{TOPOLOGY}")
    (tmp_path / "daemons").write_text("bgpd=yes\nbgpd_options='-A 127.0.0.1'\n")
    (tmp_path / "r1.conf").write_text(frr_conf(1, 2, "interface eth2\n ip address 10.1.0.1/24"))
    (tmp_path / "r2.conf").write_text(frr_conf(2, 1))
    return path


async def established(net: Lab, router: str, families: int = 1) -> bool:
    summary = await net.node(router).frr_json("show bgp summary json")
    peers = [peer for family in summary.values() for peer in family.get("peers", {}).values()]
    return len(peers) >= families and all(peer["state"] == "Established" for peer in peers)


async def test_a_lab_comes_up_routes_and_leaves_nothing(path: Path, name: str) -> None:
    told: list[str] = []
    before = footprint()
    async with lab(path, progress=told.append) as net:
        assert footprint() == before, "nothing of a lab is seen on the host"
        r1, n1 = net.node("r1"), net.node("n1")
        await net.wait_for("session r1-r2", lambda: established(net, "r1"))
        await net.wait_for("answer across r1", lambda: n1.ping("10.0.0.2"), timeout=20)
        routes = await net.node("r2").frr_json("show ip route json")
        assert routes["10.1.0.0/24"][0]["protocol"] == "bgp"

        assert (await n1.run("hostname")).stdout == "n1\n"
        assert (await n1.run("sysctl", "-n", "net.ipv6.conf.default.accept_dad")).stdout == "0\n"
        assert (await r1.run("sysctl", "-n", "net.ipv4.ip_forward")).stdout == "1\n"
        links = {link["ifname"]: link for link in json.loads((await r1.run("ip", "-j", "link")).stdout)}
        ends = {link["ifname"]: link for link in json.loads((await n1.run("ip", "-j", "link")).stdout)}
        assert links["lo"]["flags"][0:2] == ["LOOPBACK", "UP"]
        assert (links["eth1"]["mtu"], links["eth2"]["mtu"], ends["eth1"]["mtu"]) == (9500, 1400, 1400)
        assert links["eth1"]["address"].startswith("aa:c1:ab:")
        assert ends["eth1"]["address"] == "02:00:00:00:00:01"
        assert ends["eth1"]["ifindex"] != ends["eth1"]["link_index"] == links["eth2"]["ifindex"]

        assert n1.process is not None
        assert n1.log.read_text() == "started\n"
        assert "started" in n1.logs()
        environment = (await n1.run("env")).stdout.splitlines()
        assert {"COLOR=red", "CLAB_INTFS=1", "CLAB_LABEL_RACK=r1", f"PODROUTE_LAB={name}"} <= set(environment)
        assert environment[[line.startswith("PATH=") for line in environment].index(True)].startswith(
            f"PATH={Path(sys.executable).parent}:"
        )
    assert told[0] == "3 nodes, 2 links"
    assert told[-1] == f"lab {name} is up"
    assert marked(name) == []
    assert not net.directory.exists()
    assert footprint() == before


async def test_what_a_node_writes_stays_in_the_node(path: Path, name: str) -> None:
    async with lab(path) as net:
        n1 = net.node("n1")
        private = ["/etc/frr", "/etc/podroute", "/run/podroute", "/run/frr", "/run/netns", "/var/lib/podroute"]
        private += ["/opt/cni/bin", "/etc/cni/net.d", "/var/lib/cni", "/var/log/frr"]
        for directory in private:
            assert (await n1.run("ls", "-A", directory)).stdout == "", directory
            await n1.run("touch", f"{directory}/{name}")
            assert not on_host(f"{directory}/{name}")
            assert (n1.root / directory[1:] / name).exists()
        for file in (f"/etc/{name}", f"/var/lib/{name}", f"/opt/{name}", f"/run/{name}", f"/srv/deep/{name}"):
            await n1.run("touch", file)
            assert not on_host(file)
        assert "bgpd" in (await n1.run("cat", "/srv/deep/read-only")).stdout
        refused = await n1.run("touch", "/srv/deep/read-only", check=False)
        assert "Read-only file system" in refused.stderr
        # The lab's own directory is shared by the nodes that bind it, and seen on the host.
        await n1.run("touch", "/var/lib/shared/store.db")
        assert (net.directory / "clab/store/store.db").exists()
        # Named network namespaces, as container runtimes make them, live in the node.
        await n1.run("ip", "netns", "add", "pod")
        assert not on_host("/run/netns/pod")
        # Process numbers are the node's own.
        assert (await n1.run("cat", "/proc/1/comm")).stdout == "sleep\n"
        assert "bgpd" not in (await n1.run("ps", "-A", "-o", "comm")).stdout


async def test_commands(path: Path) -> None:
    async with lab(path) as net:
        n1 = net.node("n1")
        assert (await n1.run("cat", input="in")).stdout == "in"
        assert (await n1.run("sh", "-c", "echo $EXTRA", env={"EXTRA": "more"})).stdout == "more\n"
        with pytest.raises(CommandError, match=r"node n1: ls /absent: exit status 2: .*No such file") as failed:
            await n1.run("ls", "/absent")
        assert failed.value.returncode == 2
        assert (await n1.run("ls", "/absent", check=False)).returncode == 2
        with pytest.raises(LabError, match="node n1: absent: No such file or directory, PATH is "):
            await n1.run("absent")
        with pytest.raises(CommandError, match=r"node n1: sleep 100: no end within 0\.1 s"):
            await n1.run("sleep", "100", timeout=0.1)
        cancelled = asyncio.ensure_future(n1.run("sleep", "200"))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await net.wait_for("end of both", lambda: _count(net, "sleep [12]00$", 0))
        lost = await n1.ping("10.1.0.77", count=2, wait=0.1)
        assert (lost.sent, lost.lost, bool(lost)) == (2, 2, False)
        with pytest.raises(LabError, match="did not answer in JSON"):
            await net.node("r1").frr_json("show version")
        with pytest.raises(LabError, match="has no node `r9`, its nodes: r1, r2, n1"):
            net.node("r9")
        with pytest.raises(LabError, match="no miracle within 0 s, last seen: False"):
            await net.wait_for("miracle", lambda: False, timeout=0)
        # What still runs in a node does not hold up its end.
        n1.popen("sleep", "300")
        n1.popen("sh", "-c", "trap '' TERM; sleep 400", stdout=subprocess.PIPE)


async def _count(net: Lab, pattern: str, wanted: int) -> bool:
    listing = await net.node("n1").run("pgrep", "-c", "-f", pattern, check=False)
    return int(listing.stdout) == wanted


async def test_a_nodes_own_command_can_be_killed_and_started_again(path: Path) -> None:
    async with lab(path) as net:
        n1 = net.node("n1")
        first = n1.process
        assert first
        with pytest.raises(LabError, match="its command runs already"):
            n1.start()
        await n1.stop(signal.SIGKILL)
        assert not first.running()
        await n1.stop()
        n1.start()
        second = n1.process
        assert second
        assert second != first
        assert (n1.root / f"proc/{(await n1.run('pgrep', '-x', 'sleep', '-n')).stdout.strip()}").exists()
        await net.wait_for("second start", lambda: n1.log.read_text() == "started\nstarted\n")
        with pytest.raises(LabError, match="its definition has no cmd"):
            net.node("r1").start()
        # A daemon that dies leaves no zombie: the first process of the node sees to that.
        await net.node("r1").run("pkill", "-9", "-x", "bgpd")
        await net.wait_for("end of bgpd", lambda: _gone(net, "r1", "bgpd"))


async def _gone(net: Lab, node: str, program: str) -> bool:
    return (await net.node(node).run("pgrep", "-x", program, check=False)).stdout == ""


async def test_a_second_lab_of_the_same_name_is_refused(path: Path, name: str) -> None:
    async with lab(path) as net:
        with pytest.raises(LabError, match=f"a lab `{name}` exists already: `podroute lab down {name}` removes it"):
            await Lab.up(path)
        assert all(node.namespaces.alive() for node in net.nodes.values()), "and the first one is left alone"
        async with lab(path, name=f"{name}-other") as other:
            assert {name, other.name} <= set(Lab.names())
            await net.wait_for("session of the first", lambda: established(net, "r1"))
            await other.wait_for("session of the other", lambda: established(other, "r1"))
            assert other.node("n1").netns != net.node("n1").netns


async def test_a_lab_is_found_by_name(path: Path, name: str) -> None:
    with pytest.raises(LabError, match=f"no lab `{name}` is up"):
        Lab.find(name)
    async with lab(path) as built:
        found = Lab.find(name)
        assert list(found.nodes) == ["r1", "r2", "n1"]
        assert found.node("n1").process == built.node("n1").process
        assert (await found.node("n1").run("sh", "-c", "echo $COLOR")).stdout == "red\n"
        record = found.describe()
        assert record["links"][1]["endpoints"]["z"] == {"node": "n1", "interface": "eth1", "mac": "02:00:00:00:00:01"}
        await found.down()
        with pytest.raises(LabError, match="the node is gone"):
            await built.node("n1").run("true")


BUILDER = (
    "import asyncio, sys\nfrom labs.lab import Lab\n"
    "asyncio.run(Lab.up(sys.argv[1], progress=lambda line: print(line, flush=True)))\nprint('up', flush=True)\n"
    "sys.stdin.read()"
)


@pytest.mark.parametrize("moment", ["nodes", "n1: ", "FRR", "up"])
def test_after_a_killed_runner_everything_can_be_removed(path: Path, name: str, moment: str) -> None:
    """The kill comes at, and up to 80 ms after, each thing that a build tells."""
    for later in (0.0, 0.02, 0.08):
        runner = subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        with runner:
            assert runner.stdout
            for line in runner.stdout:
                if moment in line:
                    break
            if moment != "up":
                time.sleep(later)
            runner.kill()
        assert take_down(name)
        assert marked(name) == []
        assert not take_down(name)
        if moment == "up":
            break


def test_a_half_made_lab_is_not_found(path: Path, name: str) -> None:
    record = Record(name, ROOT)
    record.create()
    record.release()
    try:
        with pytest.raises(LabError, match="is not complete"):
            Lab.find(name)
    finally:
        assert take_down(name)


@pytest.mark.parametrize("odd", ["..", "a/b", "", "-a"])
def test_a_name_is_never_a_path(odd: str) -> None:
    with pytest.raises(LabError, match=r"is not the name of a lab, labs here: "):
        take_down(odd)


def test_file_systems_below_the_private_places_stay_visible(path: Path, name: str, tmp_path: Path) -> None:
    """As a checkout or a virtual environment may be one; /etc/hosts is in containers."""
    script = (
        "set -e; mount -t tmpfs inner /opt; mkdir '/opt/a b'; mount -t tmpfs inner '/opt/a b'; mkdir '/opt/a b/c'; "
        "mount -t tmpfs inner '/opt/a b/c'; touch '/opt/a b/c/seen' '/opt/seen'; exec \"$@\""
    )
    program = (
        "import asyncio, sys\nfrom labs.runner import lab\nasync def main():\n"
        " async with lab(sys.argv[1]) as net:\n"
        "  n1 = net.node('n1')\n"
        "  await n1.run('ls', '/opt/a b/c/seen', '/opt/seen', '/opt/cni/bin')\n"
        "asyncio.run(main())"
    )
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", program, str(path)],
        check=True,
        cwd=Path(__file__).parents[2],
    )


def test_a_lab_without_its_records_can_be_removed(path: Path, name: str) -> None:
    net = asyncio.run(Lab.up(path))
    try:
        shutil.rmtree(net.directory)
        assert marked(name)
    finally:
        assert take_down(name)
    for node in net.nodes.values():
        node.namespaces.reap()
    assert marked(name) == []


async def test_who_entered_by_other_means_goes_too(path: Path, name: str) -> None:
    async with lab(path) as net:
        holder = net.node("n1").namespaces.holder.pid
        stranger = await asyncio.create_subprocess_exec("nsenter", f"--net=/proc/{holder}/ns/net", "sleep", "1000")
        inside = os.readlink(net.node("n1").netns)
        await net.wait_for("stranger", lambda: os.readlink(f"/proc/{stranger.pid}/ns/net") == inside)
        await net.down()
        await net.down()
        assert await stranger.wait() == -signal.SIGKILL


def changed(path: Path, **values: object) -> Topology:
    plan = load(path)
    return replace(plan, nodes={**plan.nodes, "n1": replace(plan.nodes["n1"], **values)})  # type: ignore[arg-type]


async def test_faults_of_routers_end_the_lab(path: Path, name: str) -> None:
    conf = path.parent / "r2.conf"
    good = conf.read_text()
    conf.write_text(good + "\nnot a command\n")
    with pytest.raises(LabError, match=r"(?s)node r2: /etc/frr/frr\.conf: .*not a command"):
        await Lab.up(path)
    conf.write_text(good)
    daemons = path.parent / "daemons"
    daemons.write_text("bgpd: yes\n")
    with pytest.raises(LabError, match=r"node r.: /etc/frr/daemons: line 1: `bgpd:` is not `name=value`, write lines"):
        await Lab.up(path)
    daemons.write_text("bgpd=yes\nbgpd_options='--absent'")
    with pytest.raises(LabError, match=r"(?s)node r.: bgpd did not start: .*absent"):
        await Lab.up(path)
    assert marked(name) == []


async def test_faults_that_the_host_shows(path: Path, name: str) -> None:
    plan = changed(path, command=("podroute-of-the-future", "agent"))
    with pytest.raises(
        LabError, match=r"small.clab.yml:topology.nodes.n1.cmd: no program `podroute-of-the-future` in /"
    ):
        await Lab.up(plan)
    with pytest.raises(
        LabError, match=r"topology.nodes.n1.sysctls.net.ipv4.absent: 1: No such file or directory, `sysctl"
    ):
        await Lab.up(changed(path, sysctls={"net.ipv4.absent": "1"}))
    bind = replace(load(path).nodes["n1"].binds[0], target="/no-such-directory/x")
    with pytest.raises(LabError, match=r"binds\[\d\]: this host has no directory /no-such-directory"):
        await Lab.up(changed(path, binds=(bind,)))
    assert marked(name) == []


async def test_a_failing_exec_or_command_is_a_problem(path: Path) -> None:
    plan = changed(path, exec=(("ls", "/absent"), ("true",)), command=("sh", "-c", "echo no good; exit 1"))
    net = await Lab.up(plan)
    try:
        failed, ended = net.problems
        assert failed.startswith("node n1: ls /absent: exit status 2: ")
        assert ended == "node n1: `sh -c echo no good; exit 1` has ended: no good"
    finally:
        await net.down()
    with pytest.raises(LabError, match="no good"):
        async with lab(plan, save_to=path.parent / "saved"):
            pass
    (folder,) = (path.parent / "saved").iterdir()
    assert "no good" in (folder / "problems.txt").read_text()


async def test_a_cancelled_start_leaves_nothing(path: Path, name: str) -> None:
    for line in ("nodes", "n1: ", "FRR"):
        reached = asyncio.Event()
        building = asyncio.ensure_future(
            Lab.up(path, progress=lambda text, line=line, reached=reached: reached.set() if line in text else None)  # type: ignore[misc]
        )
        async with asyncio.timeout(20):
            await reached.wait()
        building.cancel()
        with pytest.raises(asyncio.CancelledError):
            await building
        assert marked(name) == []
        assert name not in Lab.names()


def programs(listed: dict[str, Any]) -> dict[str, list[str]]:
    """Return what runs in each node by what `podroute lab ps --json` says of a lab."""
    return {node["name"]: sorted(process["name"] for process in node["processes"]) for node in listed["nodes"]}


def test_the_command_line(path: Path, name: str) -> None:
    def podroute(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from labs.commands import lab; lab()", *words],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    checked = podroute("up", "--check", str(path))
    assert checked.stdout == f"{path}: 3 nodes, 2 links, no faults\n"
    up = podroute("up", str(path))
    assert up.returncode == 0, up.stderr
    assert f"lab {name} is up" in up.stderr
    try:
        again = podroute("up", str(path))
        assert (again.returncode, again.stderr.splitlines()[-1][:6]) == (1, "Error:")
        (listed,) = json.loads(podroute("ps", name, "--json").stdout)
        assert [node["name"] for node in listed["nodes"]] == ["r1", "r2", "n1"]
        wanted = {"r1": ["bgpd", "staticd", "zebra"], "r2": ["bgpd", "staticd", "zebra"], "n1": ["sleep"]}
        deadline = time.monotonic() + 60
        while (running := programs(listed)) != wanted:  # n1's shell has yet to become its program
            assert time.monotonic() < deadline, running
            (listed,) = json.loads(podroute("ps", name, "--json").stdout)
        assert name in podroute("ps").stdout
        done = podroute("exec", name, "n1", "sh", "-c", "hostname; echo -n $0; exit 3", "-x")
        assert (done.returncode, done.stdout) == (3, "n1\n-x")
        killed = podroute("exec", name, "n1", "sh", "-c", "kill -9 $$")
        assert killed.returncode == 137
    finally:
        down = podroute("down", name)
    assert down.stdout == f"lab {name} is down\n"
    absent = podroute("down", name)
    assert absent.returncode == 1
    assert f"Error: no lab {name} is up" in absent.stderr


@pytest.mark.parametrize(("topology", "router", "sessions"), [("two-racks", "spine", 4), ("one-tor", "tor1", 0)])
async def test_the_fabric_of_shipped_topologies(topology: str, router: str, sessions: int, name: str) -> None:
    plan = load(topology, name=name)
    nodes = {
        key: replace(node, command=("sleep", "1000")) if node.command else node for key, node in plan.nodes.items()
    }
    async with lab(replace(plan, nodes=nodes)) as net:
        n1 = net.node("n1")
        # zebra tells nobody when it has given an address to an interface
        await net.wait_for("answer by IPv4", lambda: n1.ping("10.1.1.1"))
        await net.wait_for("answer by IPv6", lambda: n1.ping("fd00:1:1::1"))
        default = (await n1.run("ip", "route", "show", "default")).stdout
        assert default == "", "only BGP leads out of a node's own subnet"
        assert (n1.root / "etc/podroute/podroute.yaml").read_text().startswith("apiVersion: podroute/v1")
        peers = (await net.node(router).frr_json("show bgp summary json"))["ipv4Unicast"]["peers"]
        assert peers
        if not sessions:
            return
        await net.wait_for("sessions of the spine", lambda: established(net, router, sessions))
        await net.wait_for("loopback by IPv4", lambda: net.node("tor1").ping("10.255.0.12"))
        await net.wait_for("loopback by IPv6", lambda: net.node("tor1").ping("fd00:255::12"))
        everything = dict.fromkeys(("10.2.1.0/30", "10.2.2.0/30", "10.255.0.1", "10.255.0.12"), "10.255.0.11")

        async def learned() -> bool:
            routes = json.loads((await net.node("tor1").run("ip", "-j", "route")).stdout)
            return {r["dst"]: r.get("prefsrc") for r in routes if r.get("protocol") == "bgp"} == everything

        await net.wait_for("routes of the other rack and the spine", learned)
