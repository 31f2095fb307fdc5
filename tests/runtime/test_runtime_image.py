"""The agent out of its container image, run as docs/cni.md says. `make image`: building it takes minutes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.privileges import NEEDED, USEFUL
from labs.lab import Lab
from labs.node import Node, Result
from tests.runtime import container_image
from tests.runtime.container_image import LIMITS, NAME, ROOT
from tests.runtime.hosts import CONTAINED, PLUGIN_DIR, agent_answers, converges, nothing_left, pods

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.environ.get("PODROUTE_IMAGE"), reason="builds the image: make image"),
    pytest.mark.timeout(1200),
]
NETNS = "/run/netns/pod"


@pytest.fixture(scope="module")
def podman() -> Iterator[Mapping[str, str]]:
    """Return the environment in which podman has the image."""
    directory = Path(tempfile.mkdtemp(prefix="podroute-image-"))
    environment = container_image.settings(directory)
    try:
        container_image.build(directory, environment)
        yield environment
    finally:
        container_image.clear(directory)


def documented() -> list[str]:
    """Return the command line that docs/cni.md gives."""
    text = (ROOT / "docs/cni.md").read_text()
    (found,) = re.findall(r"^    podman run (.*?[^\\])$", text, re.MULTILINE | re.DOTALL)
    return shlex.split(found.replace("\\\n", " "))


async def test_the_agent_runs_in_a_container(net: Lab, podman: Mapping[str, str]) -> None:
    one, other = net.node("n1"), net.node("n2")

    async def engine(*arguments: str) -> Result:
        return await one.run(CONTAINED, "podman", *arguments, env=podman, timeout=120)

    await one.stop()
    options = documented()
    assert options.pop() == NAME
    await engine("run", *LIMITS, *options, NAME)
    try:
        await agent_answers(net, one)
        await converges(one)
        await _has_only_its_capabilities(one, (await engine("inspect", "podroute")).stdout)
        assert " (compiled), running, " in (await engine("exec", "podroute", "podroute", "status")).stdout
        said = (await engine("exec", "podroute", "podroute", "cni", "install", "--force")).stdout
        assert f"wrote {PLUGIN_DIR}/podroute (compiled beforehand)" in said
        await _a_pod_comes_and_goes(net, one, other)
    finally:
        await engine("rm", "--force", "podroute")
        one.start()
    await agent_answers(net, one)
    await nothing_left(net)


async def _has_only_its_capabilities(node: Node, inspected: str) -> None:
    pid = json.loads(inspected)[0]["State"]["Pid"]
    status = (await node.run("cat", f"/proc/{pid}/status")).stdout
    held = {int(octets, 16) for octets in re.findall(r"^Cap(?:Prm|Eff|Bnd):\t(\w+)$", status, re.MULTILINE)}
    assert held == {sum(1 << bit for bit in (NEEDED | USEFUL).values())}


async def _a_pod_comes_and_goes(net: Lab, one: Node, other: Node) -> None:
    async def call(verb: str, **more: Any) -> Any:
        config = {"cniVersion": "1.1.0", "name": "podroute", "type": "podroute", **more}
        environment = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": PLUGIN_DIR}
        done = await one.run(
            f"{PLUGIN_DIR}/podroute", env={**environment, "CNI_NETNS": NETNS}, input=json.dumps(config), check=False
        )
        assert not done.returncode, done.stdout
        return json.loads(done.stdout or "null")

    await one.run("ip", "netns", "add", "pod")
    await call("STATUS")
    added = await call("ADD")
    addresses = [ip["address"].partition("/")[0] for ip in added["ips"]]
    (pod,) = await pods(one)
    assert addresses == pod["addresses"]
    await call("CHECK", prevResult=added)
    await asyncio.gather(*(other.run("ping", "-c", "1", "-w", "5", address) for address in addresses))
    await call("DEL")
    await one.run("ip", "netns", "delete", "pod")
