"""podman 4 with its CNI back end: results read as 0.4.0, IP and MAC as CNI_ARGS, the cached configuration in DEL."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address

import pytest

from labs.lab import Lab
from tests.runtime.hosts import addresses, agent_starts, nothing_left, pods, reaches
from tests.runtime.podman import IMAGE, Podman

pytestmark = pytest.mark.root


async def test_containers_of_two_nodes_reach_each_other(net: Lab, podmans: list[Podman]) -> None:
    await asyncio.gather(*(podman.run("web") for podman in podmans))
    pids = [await podman.pid("web") for podman in podmans]
    held = [await addresses(net, podman.node, pid) for podman, pid in zip(podmans, pids, strict=True)]
    for podman, mine in zip(podmans, held, strict=True):
        network = (await podman.inspect("web"))["NetworkSettings"]["Networks"]["podroute"]
        (pod,) = await pods(podman.node)
        assert [network["IPAddress"], network["GlobalIPv6Address"]] == mine == pod["addresses"]
        assert network["MacAddress"] == pod["mac"]
    await reaches(podmans[0].node, pids[0], held[1])
    await reaches(podmans[1].node, pids[1], held[0])
    await asyncio.gather(*(podman.remove("web") for podman in podmans))
    await nothing_left(net)


async def test_a_container_pings_by_itself(net: Lab, podmans: list[Podman]) -> None:
    one, other = podmans
    await other.run("far")
    for address in await addresses(net, other.node, await other.pid("far")):
        said = (await one("run", "--rm", "--network", "podroute", IMAGE, "ping", "-c", "2", "-W", "2", address)).stdout
        assert f"bytes from {address}" in said
    await other.remove("far")
    await nothing_left(net)


async def test_an_address_and_a_mac_asked_for(net: Lab, podmans: list[Podman]) -> None:
    one, other = podmans
    await one.run("any")
    (pod,) = await pods(one.node)
    wanted = str(ip_address(pod["addresses"][0]) + 7)
    await one.run("fixed", "--ip", wanted, "--mac-address", "02:00:00:00:12:34")
    network = (await one.inspect("fixed"))["NetworkSettings"]["Networks"]["podroute"]
    assert (network["IPAddress"], network["MacAddress"]) == (wanted, "02:00:00:00:12:34")
    await reaches(other.node, 1, [wanted])
    taken = await one.run("taken", "--ip", wanted, check=False)
    assert taken.returncode
    assert wanted in taken.stderr
    for name in ("any", "fixed", "taken"):
        await one.remove(name)
    await nothing_left(net)


async def test_a_restart_gives_it_a_network_again(net: Lab, podmans: list[Podman]) -> None:
    one, other = podmans
    await one.run("again")
    await one("restart", "--time", "0", "again")
    await reaches(other.node, 1, await addresses(net, one.node, await one.pid("again")))
    await one.remove("again")
    await nothing_left(net)


async def test_its_list_of_networks_has_podroute(podmans: list[Podman]) -> None:
    (network,) = json.loads((await podmans[0]("network", "inspect", "podroute")).stdout)
    assert network["name"] == "podroute"


async def test_no_container_without_an_agent_but_its_removal(net: Lab, podmans: list[Podman]) -> None:
    one, _ = podmans
    await one.run("late")
    await one.node.stop()
    refused = await one.run("none", check=False)
    assert "podroute's agent does not answer" in refused.stderr
    await one.remove("late")
    await one.remove("none")
    await agent_starts(net, one.node)
    await nothing_left(net)
