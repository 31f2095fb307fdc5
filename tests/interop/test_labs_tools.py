"""Looking into a running lab and disturbing it: logs, graph, pcap, impair, save."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from labs.capture import Capture
from labs.errors import LabError
from labs.impairments import Link
from labs.lab import Lab
from labs.runner import lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(not Path("/usr/lib/frr/bgpd").exists(), reason="needs FRR: install the package frr"),
]

NAME = f"tools-{os.getpid()}"


@pytest_asyncio.fixture
async def net() -> AsyncIterator[Lab]:
    async with lab("one-tor", name=NAME) as net:
        for name in ("n1", "n2"):
            await net.node(name).agent.converged()
        yield net


def podroute(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from labs.commands import lab; lab()", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])


def packets_in(path: Path) -> str:
    return subprocess.run(["tcpdump", "-n", "-r", path], capture_output=True, text=True, check=True).stdout


def started(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from labs.commands import lab; lab()", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


async def test_faults_of_links(net: Lab) -> None:
    n1 = net.node("n1")
    link = Link.find(net, "n1:eth1")
    assert (str(link.here), str(link.there)) == ("n1:eth1", "tor1:eth1")
    # One way: the router sees none of what n1 sends, n1 hears the router.
    async with Capture(n1, "eth1", "icmp", path=net.directory / "one-way.pcap") as packets:
        await link.lose(100)
        assert (await n1.ping("10.1.1.1", count=3, wait=0.2)).received == 0
        await net.node("tor1").ping("10.1.1.2", count=2, wait=0.1)
    seen = packets_in(packets.path)
    assert seen.count("10.1.1.2 > 10.1.1.1: ICMP echo request") == 3
    assert seen.count("10.1.1.1 > 10.1.1.2: ICMP echo request") == 2
    assert "drop" in await link.show()
    await link.lose(50, direction="in")
    await link.clear()
    assert "drop" not in await link.show()
    assert await n1.ping("10.1.1.1", count=3)

    # So little that it is exceeded also where the machine is so busy that ping takes its time
    await link.limit(1, direction="both")
    assert (await n1.ping("10.1.1.1", count=40, wait=0.1)).lost > 10
    await link.clear()
    await link.rate("8kbit")
    assert "rate 8Kbit" in await link.show()
    assert not await n1.ping("10.1.1.1", count=150, interval=0.001, size=1400, wait=0.1)
    await link.clear()

    await link.down()
    carrier = json.loads((await net.node("tor1").run("ip", "-j", "link", "show", "eth1")).stdout)[0]["operstate"]
    assert carrier in ("DOWN", "LOWERLAYERDOWN")
    await link.up()

    for wrong in ("n1:eth9", "n1", "tor1:eth4"):
        with pytest.raises(LabError, match=r"no such link end, node .* has eth1"):
            Link.find(net, wrong)
    with pytest.raises(LabError, match="`fast` is not a rate"):
        await link.rate("fast")
    with pytest.raises(LabError, match="is not possible"):
        await link.lose(0)


async def test_a_capture_holds_all_that_came_before_its_end(net: Lab) -> None:
    """Also where tcpdump had no time to read it: it is stopped here while the packets come."""
    n1 = net.node("n1")
    packets = Capture(n1, "eth1", "icmp", path=net.directory / "late.pcap")
    await packets.start()
    pid = int((await n1.run("pidof", "tcpdump")).stdout)
    await n1.run("kill", "-STOP", str(pid))
    await n1.ping("10.1.1.1", count=3, interval=0.01)
    ending = asyncio.create_task(packets.stop())
    await asyncio.sleep(0)
    await n1.run("kill", "-CONT", str(pid))
    await ending
    assert packets_in(packets.path).count("ICMP echo") == 6


async def test_the_commands(net: Lab, tmp_path: Path) -> None:
    assert "== tor1: bgpd.log" in podroute("logs", NAME).stdout
    assert "== n2" not in podroute("logs", NAME, "n1").stdout
    picture = podroute("graph", NAME, "-o", "-").stdout
    assert picture.startswith("<svg ")
    assert "4/4 up, routes 2 v4 2 v6" in picture

    shown = podroute("impair", NAME, "n1:eth1", "--rate", "10mbit", "--loss", "2.5")
    assert ("10Mbit" in shown.stdout, "10000 < 250 drop" in shown.stdout) == (True, True), shown.stderr
    assert "drop" not in podroute("impair", NAME, "n1:eth1", "--clear").stdout
    refused = podroute("impair", NAME, "n7:eth1", "--down")
    assert (refused.returncode, "has no node `n7`" in refused.stderr) == (1, True)
    stranger = podroute("pcap", f"{NAME}-not", "n1:eth1")
    assert (stranger.returncode, stranger.stderr.count("\n")) == (1, 1), stranger.stderr
    for command in (("graph", NAME, "-o", "/gone/lab.svg"), ("pcap", "-w", "/gone/lab.svg", NAME, "n1:eth1")):
        nowhere = podroute(*command)
        assert (nowhere.returncode, nowhere.stderr) == (1, "Error: /gone/lab.svg: No such file or directory\n")

    file = tmp_path / "bgp.pcap"
    node = net.node("n1")
    with started("pcap", "-w", str(file), NAME, "n1:eth1", "icmp") as child:
        assert child.stderr
        assert "listening on eth1" in child.stderr.readline()
        await node.ping("10.1.1.1")
        child.terminate()
        child.communicate(timeout=10)
    assert packets_in(file).count("ICMP echo") == 2, "the request and the reply"

    folder = tmp_path / "saved"
    assert podroute("save", NAME, str(folder)).stdout.strip() == str(folder)
    routes = [json.loads(line) for line in (folder / "n1/podroute-routes.json").read_text().splitlines()]
    assert {"10.255.0.11/32", "10.1.2.0/30"} <= {route["prefix"] for route in routes}
    assert json.loads((folder / "tor1/frr-summary.json").read_text())["ipv4Unicast"]["peers"]
    assert "10.255.0.11" in (folder / "n2/routes-ipv4.txt").read_text()
    assert {"client", "graph.svg", "lab.json", "n1", "n2", "problems.txt", "tor1"} == {
        path.name for path in folder.iterdir()
    }
    assert "is not empty" in podroute("save", NAME, str(folder)).stderr
    done = podroute("exec", NAME, "n1", "--", "hostname")
    assert done.stdout == "n1\n"


async def failing(folder: Path) -> None:
    async with lab("one-tor", name=NAME, save_to=folder) as net:
        async with Capture(net.node("n1"), "eth1"):
            await net.node("n1").agent.converged()
        raise ZeroDivisionError


def test_a_failure_saves_everything(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as failed:
        asyncio.run(failing(tmp_path))
    (folder,) = tmp_path.iterdir()
    assert failed.value.__notes__ == [f"lab {NAME} is saved in {folder}"]
    assert (folder / "n1/eth1.pcap").stat().st_size > 24
    assert "10.255.0.11" in (folder / "n1/routes-ipv4.txt").read_text()
    assert "podroute" in (folder / "n1/command.log").read_text()
