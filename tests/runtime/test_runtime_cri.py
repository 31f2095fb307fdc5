"""containerd's CRI service, called as a kubelet calls it: pod sandboxes with K8S_POD_* arguments and loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from labs.lab import Lab
from tests.runtime.containerd import Containerd
from tests.runtime.cri import Cri, CriError, Sandbox, Status
from tests.runtime.hosts import agent_starts, nothing_left, pods, reaches

pytestmark = pytest.mark.root


@pytest_asyncio.fixture
async def cris(net: Lab, containerds: list[Containerd]) -> AsyncIterator[list[Cri]]:
    """Return a client of each node's runtime; nothing may be left of any test's pods."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Cri(daemon.socket)) for daemon in containerds]
    await nothing_left(net)


def _pid(status: Status) -> int:
    return int(json.loads(status.info)["pid"])


def _netns(status: Status) -> str:
    namespaces = json.loads(status.info)["runtimeSpec"]["linux"]["namespaces"]
    return str(next(namespace["path"] for namespace in namespaces if namespace["type"] == "network"))


async def _delete(cri: Cri, sandbox: str) -> None:
    """Twice each, as a kubelet does when in doubt."""
    for _ in range(2):
        await cri.stop_pod_sandbox(sandbox)
    for _ in range(2):
        await cri.remove_pod_sandbox(sandbox)


async def test_the_network_is_ready(cris: list[Cri]) -> None:
    assert [await cri.conditions() for cri in cris] == [{"RuntimeReady": True, "NetworkReady": True}] * 2


async def test_pods_of_two_nodes_reach_each_other(net: Lab, cris: list[Cri], containerds: list[Containerd]) -> None:
    names = ("web", "client")
    ids = await asyncio.gather(
        *(cri.run_pod_sandbox(Sandbox(name, "shop")) for cri, name in zip(cris, names, strict=True))
    )
    statuses = [await cri.pod_sandbox_status(sandbox) for cri, sandbox in zip(cris, ids, strict=True)]
    for daemon, sandbox, status, name in zip(containerds, ids, statuses, names, strict=True):
        (pod,) = await pods(daemon.node)
        assert pod["containerId"] == sandbox
        assert pod["addresses"] == status.addresses
        assert pod["name"] == f"shop/{name}"
        assert pod["netns"] == _netns(status)
    one, other = statuses
    await reaches(containerds[0].node, _pid(one), other.addresses)
    await reaches(containerds[1].node, _pid(other), one.addresses)
    await asyncio.gather(*(_delete(cri, sandbox) for cri, sandbox in zip(cris, ids, strict=True)))


async def test_many_pods_at_once(net: Lab, cris: list[Cri]) -> None:
    cri, _ = cris
    ids = await asyncio.gather(*(cri.run_pod_sandbox(Sandbox(f"pod-{number}")) for number in range(8)))
    statuses = await asyncio.gather(*(cri.pod_sandbox_status(sandbox) for sandbox in ids))
    assert len({address for status in statuses for address in status.addresses}) == 16
    await asyncio.gather(*(_delete(cri, sandbox) for sandbox in ids))


async def test_a_pod_that_starts_anew_keeps_its_network_when_the_old_one_goes(net: Lab, cris: list[Cri]) -> None:
    """The kubelet's way with a pod whose sandbox died: the new one first, the old one's removal whenever."""
    cri, _ = cris
    old = await cri.run_pod_sandbox(Sandbox("db", uid="one"))
    node = net.node("n1")
    await node.run("kill", "-9", str(_pid(await cri.pod_sandbox_status(old))))
    new = await cri.run_pod_sandbox(Sandbox("db", uid="two"))
    status = await cri.pod_sandbox_status(new)
    await _delete(cri, old)
    await reaches(net.node("n2"), 1, status.addresses)
    await _delete(cri, new)


async def test_stopping_after_the_namespace_has_gone(net: Lab, cris: list[Cri]) -> None:
    cri, _ = cris
    sandbox = await cri.run_pod_sandbox(Sandbox("gone"))
    status = await cri.pod_sandbox_status(sandbox)
    node = net.node("n1")
    await node.run("kill", "-9", str(_pid(status)))
    await node.run("umount", _netns(status))
    await node.run("rm", _netns(status))
    try:
        await cri.stop_pod_sandbox(sandbox)
    except CriError as error:  # containerd 1.6 trips over a container that dies meanwhile; the kubelet asks again
        if "ttrpc: closed" not in str(error):
            raise
    await _delete(cri, sandbox)


async def test_no_pod_without_an_agent(net: Lab, cris: list[Cri]) -> None:
    cri, _ = cris
    node = net.node("n1")
    await node.stop()
    with pytest.raises(CriError, match="podroute's agent does not answer"):
        await cri.run_pod_sandbox(Sandbox("early"))
    await agent_starts(net, node)
    sandbox = await cri.run_pod_sandbox(Sandbox("early"))
    await reaches(net.node("n2"), 1, (await cri.pod_sandbox_status(sandbox)).addresses)
    for leftover in await cri.list_pod_sandboxes():
        await _delete(cri, leftover)


async def test_a_pod_is_stopped_without_an_agent(net: Lab, cris: list[Cri]) -> None:
    cri, _ = cris
    sandbox = await cri.run_pod_sandbox(Sandbox("late"))
    await net.node("n1").stop()
    await _delete(cri, sandbox)
    await agent_starts(net, net.node("n1"))
