"""containerd's own client with `--cni`: go-cni, container id `default-NAME`, an empty CNI_NETNS in DEL."""

from __future__ import annotations

import asyncio

import pytest

from labs.lab import Lab
from labs.libcni import Attachment
from labs.pods import Pod
from tests.runtime.containerd import Containerd
from tests.runtime.hosts import addresses, agent_starts, nothing_left, pods, reaches

pytestmark = pytest.mark.root


async def test_containers_of_two_nodes_reach_each_other(net: Lab, containerds: list[Containerd]) -> None:
    one, other = containerds
    pids = await asyncio.gather(*(daemon.start("web") for daemon in containerds))
    held = [await addresses(net, daemon.node, pid) for daemon, pid in zip(containerds, pids, strict=True)]
    for daemon, mine in zip(containerds, held, strict=True):
        (pod,) = await pods(daemon.node)
        assert pod["containerId"] == "default-web"
        assert pod["addresses"] == mine
    await reaches(one.node, pids[0], held[1])
    await reaches(other.node, pids[1], held[0])
    await reaches(net.node("tor1"), 1, [*held[0], *held[1]])
    assert not any(await asyncio.gather(*(daemon.remove("web") for daemon in containerds)))
    await nothing_left(net)


async def test_a_container_sees_its_addresses_and_pings_by_itself(net: Lab, containerds: list[Containerd]) -> None:
    one, other = containerds
    far = await addresses(net, other.node, await other.start("far"))
    said = (await one.run("near", "sh", "-c", f"ip -o address; {'; '.join(f'ping -c 2 -W 2 {a}' for a in far)}")).stdout
    assert "eth0    inet 10.64." in said
    assert "eth0    inet6 fd00:64:" in said
    for address in far:
        assert f"bytes from {address}" in said
    assert not await other.remove("far")
    await nothing_left(net)


async def test_no_container_without_an_agent(net: Lab, containerds: list[Containerd]) -> None:
    one, _ = containerds
    await one.node.stop()
    refused = await one.run("none", check=False)
    assert refused.returncode
    assert "podroute's agent does not answer" in refused.stderr
    await agent_starts(net, one.node)
    await nothing_left(net)


async def test_deletion_without_an_agent_is_worked_off_later(net: Lab, containerds: list[Containerd]) -> None:
    one, _ = containerds
    await one.start("late")
    await one.node.stop()
    assert "works this deletion off at its next start" in await one.remove("late")
    await agent_starts(net, one.node)
    await nothing_left(net)


async def test_a_container_outlives_an_agent(net: Lab, containerds: list[Containerd]) -> None:
    one, other = containerds
    pid = await one.start("old")
    held = await addresses(net, one.node, pid)
    await one.node.stop()
    await agent_starts(net, one.node)
    await reaches(other.node, 1, held)
    assert not await one.remove("old")
    await nothing_left(net)


async def test_what_a_runtime_forgets_is_collected(net: Lab, containerds: list[Containerd]) -> None:
    """This `ctr` never asks for the deletion of a detached container's network; GC finds it, and only it."""
    one, _ = containerds
    await one.start("kept")
    await one.detach("forgotten")
    assert {pod["containerId"] for pod in await pods(one.node)} == {"default-kept", "default-forgotten"}
    network = Pod(one.node, "any").network
    await network.status()
    await network.collect([Attachment("default-kept", "")])
    assert [pod["containerId"] for pod in await pods(one.node)] == ["default-kept"]
    await one.remove("kept")
    await nothing_left(net)
