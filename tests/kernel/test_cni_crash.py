"""A failure or SIGKILL at any step of ADD or DEL leaves nothing behind once the agent runs again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni import inside, namespaces, podnet
from cni.hooks import Handle
from cni.netlink import Netlink
from tests.kernel.cni_agent import Agent, Agents
from tests.kernel.cni_node import Ledger, Node, pings
from tests.netns import Netns

pytestmark = pytest.mark.root
MakeNetns = Callable[[], Netns]
MOST_STEPS = 40


async def test_a_failure_at_any_step_leaves_nothing(
    tmp_path: Path, netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, netns())
    await node.start()
    left = 0

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(12, "Cannot allocate memory")
            return function(*arguments, **named)

        return call

    monkeypatch.setattr(Netlink, "transact", failing(Netlink.transact))
    for module in (podnet, inside):
        monkeypatch.setattr(module, "set_sysctl", failing(namespaces.set_sysctl))
    monkeypatch.setattr(namespaces, "setns", failing(namespaces.setns))
    pod = netns()
    failures = 0
    for step in range(1, MOST_STEPS):
        left = step
        outcome = await node.add("c1", pod)
        if outcome.status == 0:
            break
        failures += 1
        assert "Cannot allocate memory" in outcome.stdout.decode()
        assert node.traces() == []
        assert "eth0" not in pod.run("ip", "link")
    else:
        pytest.fail("no ADD came through")
    assert failures > 10
    assert pings(node.host, *outcome.addresses)
    await node.stop()


Running = Callable[..., AbstractContextManager[Agent]]


@pytest.fixture(scope="module")
def agents() -> Iterator[Agents]:
    agents = Agents()
    yield agents
    agents.close()


@pytest.fixture
def agent(agents: Agents) -> Running:
    @contextmanager
    def agent(node: Node, step: int = 0) -> Iterator[Agent]:
        """Run an agent that kills itself before a step, or is killed in the end."""
        running = agents.start(node.directory, node.host.path, step)
        try:
            yield running
        finally:
            running.kill()

    return agent


def traces(node: Node) -> list[str]:
    node.ledger = Ledger(file=node.directory / "ledger.json")
    return node.traces()


@pytest.mark.parametrize("deleted", [True, False], ids=["with DEL", "without DEL"])
async def test_sigkill_at_any_step_of_add(tmp_path: Path, netns: MakeNetns, agent: Running, deleted: bool) -> None:
    """With DEL as the runtime sends it after the error, which finds no agent; or with no DEL ever."""
    node = Node(tmp_path, netns())
    pod = netns()
    for step in range(1, MOST_STEPS):
        with agent(node, step):
            outcome = await node.add("c1", pod)
        if outcome.status == 0:
            break
        assert outcome.json["code"] == 11
        if deleted:
            assert (await node.delete("c1", pod)).status == 0
        with agent(node):
            assert traces(node) == []
            assert "eth0" not in pod.run("ip", "link")
    else:
        pytest.fail("no ADD came through")
    assert step > 8
    with agent(node):
        assert pings(node.host, *outcome.addresses)
        assert (await node.delete("c1", pod)).status == 0
    with agent(node):  # the one before was killed, with the deletion answered for and maybe not done
        assert traces(node) == []


async def test_sigkill_at_any_step_of_delete(tmp_path: Path, netns: MakeNetns, agent: Running) -> None:
    node = Node(tmp_path, netns())
    pod = netns()
    answered = 0
    for step in range(1, MOST_STEPS):
        survived = ["killed before it was looked at"]
        with agent(node):
            assert (await node.add("c1", pod)).status == 0
        with agent(node, step) as process:
            outcome = await node.delete("c1", pod)
            while process.lives and (survived := traces(node)):  # noqa: ASYNC110 -- another process's
                await asyncio.sleep(0.01)
        assert outcome.status == 0
        answered += not list(node.installed.notes.iterdir())
        with agent(node):
            assert traces(node) == []
        if not survived:
            break
    assert 1 < step < MOST_STEPS - 1
    assert answered > 1, "killed after the answer, too"


async def test_containers_keep_working_while_the_agent_is_killed(
    tmp_path: Path, netns: MakeNetns, agent: Running
) -> None:
    node = Node(tmp_path, netns())
    one, two, three = netns(), netns(), netns()
    with agent(node):
        first = await node.add("c1", one)
        second = await node.add("c2", two)
    assert pings(one, *second.addresses)
    with agent(node):
        assert pings(two, *first.addresses)
        third = await node.add("c3", three)
        assert not set(third.addresses) & {*first.addresses, *second.addresses}
        assert pings(three, *first.addresses)


async def test_a_pod_whose_namespace_went_with_the_node_is_forgotten(tmp_path: Path, netns: MakeNetns) -> None:
    """After a reboot the ledger is all there is, and many a runtime never calls DEL."""
    node = Node(tmp_path, netns())
    await node.start()
    pod = Netns()
    await node.add("c1", pod)
    kept = await node.add("c2", netns())
    await node.stop()
    node.hooks.pods.clear()
    name = podnet.host_ifname(Handle("podroute", "c1", "eth0"))
    node.host.run("ip", "link", "del", name)
    pod.close()
    await node.start()
    assert [handle.container_id for handle in node.ledger.held] == ["c2"]
    assert [handle.container_id for handle in node.hooks.restored] == ["c2"]
    assert pings(node.host, *kept.addresses)
    await node.stop()
