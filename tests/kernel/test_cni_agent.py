"""CNI through whole agents: what STATUS says, fresh blocks, names for people, and the capabilities that are enough."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.privileges import NEEDED, USEFUL
from tests.agents import PATIENCE, Agent, agents
from tests.netns import Netns, link

pytestmark = pytest.mark.root
MakeNetns = Callable[[], Netns]
POOLS = {"pods4": {"cidr": "10.64.0.0/16"}, "pods6": {"cidr": "fd00:64::/48"}}


class Pair:
    """Agents ``a`` and ``b``, peers on one link."""

    def __init__(self, directory: Path, running: list[Agent], make: MakeNetns) -> None:
        ends = [make(), make()]
        link(ends[0], "eth0", ends[1], "eth0")
        self.agents = []
        for own, ns in enumerate(ends, 1):
            ns.run("ip", "addr", "add", f"10.0.0.{own}/24", "dev", "eth0")
            ns.run("ip", "-6", "addr", "add", f"fd00::{own}/64", "dev", "eth0", "nodad")
            other = 3 - own
            common = {"as": 64512 + other, "import": "accept", "export": "accept", "holdTime": 9, "passive": own == 2}
            peers = {
                "v4": {"address": f"10.0.0.{other}", **common},
                "v6": {"address": f"fd00::{other}", **common},
            }
            bgp = {"connectRetry": 1}
            self.agents.append(Agent(ns, directory, "ab"[own - 1], 64512 + own, pools=POOLS, peers=peers, bgp=bgp))
        running += self.agents

    @property
    def a(self) -> Agent:
        return self.agents[0]

    @property
    def b(self) -> Agent:
        return self.agents[1]


@pytest.fixture
async def pair(netns: MakeNetns) -> AsyncIterator[Pair]:
    async with agents() as (directory, running):
        yield Pair(directory, running, netns)


async def call(
    agent: Agent, verb: str, container: str = "", pod: Netns | None = None, *, args: str = "", **config: Any
) -> Any:
    """Call the installed plugin; return its JSON, None where it printed nothing."""
    plugin = Path(agent.config["cni"]["binDir"]) / "podroute"
    if not await asyncio.to_thread(plugin.exists):
        done = await asyncio.to_thread(agent.command, "cni", "install", "--config", str(agent.file))
        assert done.returncode == 0, done.stderr
    variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": pod.path if pod else ""}
    variables |= {"CNI_IFNAME": "eth0" if container else "", "CNI_ARGS": args, "CNI_PATH": str(plugin.parent)}
    said = await asyncio.to_thread(
        subprocess.run,
        [str(plugin)],
        input=json.dumps({"cniVersion": "1.1.0", "name": "podroute", "type": "podroute", **config}).encode(),
        env={key: value for key, value in variables.items() if value},
        capture_output=True,
        timeout=30,
    )
    return json.loads(said.stdout) if said.stdout else None


async def status_becomes(agent: Agent, code: int | None) -> dict[str, Any]:
    """Ask for STATUS until it answers with this code, None for ready."""
    said: dict[str, Any] = {}
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                said = dict(await call(agent, "STATUS") or {})
                if said.get("code") == code:
                    return said
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{said}\n{agent.log}") from None


class TestStatus:
    async def test_without_an_agent(self, pair: Pair) -> None:
        pair.a.spawn()  # writes the file that the plugin is installed by
        pair.a.close()
        assert (await call(pair.a, "STATUS"))["code"] == 50

    async def test_until_the_blocks_were_once_advertised(self, pair: Pair) -> None:
        await pair.a.start()
        said = await call(pair.a, "STATUS")
        assert said["code"] == 51
        assert "no peer has been told of 10.64." in said["details"]
        await pair.b.start()
        await status_becomes(pair.a, None)
        await pair.b.stop()
        await pair.a.until("'established': 0", "/v1/status")
        assert await call(pair.a, "STATUS") is None, "a ToR outage must not make its whole rack NotReady"

    async def test_a_loss_counts_after_not_ready_after(self, pair: Pair) -> None:
        pair.a.config["cni"]["notReadyAfter"] = 0
        await pair.a.start()
        await pair.b.start()
        await status_becomes(pair.a, None)
        await pair.b.stop()
        said = await status_becomes(pair.a, 51)
        assert "no peer has been told of this node's blocks for" in said["details"]
        await pair.b.start()
        await status_becomes(pair.a, None)

    async def test_a_node_without_a_block(self, pair: Pair) -> None:
        pair.a.config["pools"] = {}
        await pair.a.start()
        said = await call(pair.a, "STATUS")
        assert said["code"] == 50
        assert "no block" in said["details"]

    @pytest.mark.parametrize("counts", [False, True])
    async def test_a_full_node(self, pair: Pair, netns: MakeNetns, counts: bool) -> None:
        pair.a.config["pools"] = {"pods4": {"cidr": "10.64.0.0/31", "blockSize": 31}}
        pair.a.config["peers"] = {}
        pair.a.config["cni"]["notReadyWhenFull"] = counts
        await pair.a.start()
        for container in ("c1", "c2"):
            assert await call(pair.a, "STATUS") is None
            assert "ips" in await call(pair.a, "ADD", container, netns())
        assert (await call(pair.a, "ADD", "c3", netns()))["code"] == 11
        if not counts:
            assert await call(pair.a, "STATUS") is None, "its containers would lose their services"
            return
        assert "is exhausted" in (await status_becomes(pair.a, 50))["details"]
        await call(pair.a, "DEL", "c1")
        await status_becomes(pair.a, None)

    async def test_a_pool_that_is_not_there(self, pair: Pair) -> None:
        pair.a.config["peers"] = {}
        pair.a.config["cni"]["notReadyWhenFull"] = True
        await pair.a.start()
        said = await call(pair.a, "STATUS", ipam={"pools": ["gone"]})
        assert (said["code"], "no ipv4 pool among gone" in said["details"]) == (50, True)


WARNING = "container added before its block is advertised"


class TestFreshBlock:
    async def test_add_waits_for_its_advertisement(self, pair: Pair, netns: MakeNetns) -> None:
        pair.a.config["cni"]["waitAdvertised"] = 30
        await pair.a.start()
        adding = asyncio.create_task(call(pair.a, "ADD", "c1", netns()))
        await pair.a.until("c1", "/v1/pods")
        assert not adding.done()
        await pair.b.start()
        assert len((await adding)["ips"]) == 2
        assert WARNING not in pair.a.log

    async def test_add_succeeds_with_a_warning_when_it_takes_too_long(self, pair: Pair, netns: MakeNetns) -> None:
        pair.a.config["cni"]["waitAdvertised"] = 0.05
        await pair.a.start()
        for container in ("c1", "c2"):
            assert "ips" in await call(pair.a, "ADD", container, netns())
        assert pair.a.log.count(WARNING) == 1, "the block has had its time"
        assert "10.64." in next(line for line in pair.a.log.splitlines() if WARNING in line)


async def test_pods_are_shown_by_their_names(pair: Pair, netns: MakeNetns) -> None:
    await pair.a.start()
    pod = netns()
    names = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-7f9;K8S_POD_INFRA_CONTAINER_ID=0abc"
    added = await call(pair.a, "ADD", "0abc", pod, args=names)
    shown = await asyncio.to_thread(pair.a.command, "pods")
    assert "shop/cart-7f9" in shown.stdout
    assert added["ips"][0]["address"].partition("/")[0] in shown.stdout
    assert await call(pair.a, "DEL", "0abc", pod) is None
    assert await pair.a.get("/v1/pods") == [], "not even while the deletion is under way"


async def test_an_ipv6_block_on_a_bridge_has_no_cover(pair: Pair, netns: MakeNetns) -> None:
    """The kernel would prefer it to the bridge's own route; under ptp it stays. A restart changes neither."""

    def covers() -> int:
        return pair.a.ns.run("ip", "-6", "route", "show", "proto", "201").count("unreachable fd00:64:")

    pair.a.config["cni"]["waitAdvertised"] = 0
    await pair.a.start()
    ipam = {"type": "podroute"}
    assert "ips" in await call(pair.a, "ADD", "c1", netns(), type="ptp", ipam=ipam)
    await until(lambda: covers() == 1)
    assert "ips" in await call(pair.a, "ADD", "c2", netns(), type="bridge", ipam=ipam)
    await until(lambda: covers() == 0)
    await pair.a.stop()
    await pair.a.start()
    await until(lambda: covers() == 0)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for the kernel to be as expected."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 -- the kernel tells nobody here
            await asyncio.sleep(0.02)


async def test_these_capabilities_are_enough(pair: Pair, netns: MakeNetns) -> None:
    """Routes are learned and installed, containers come, talk and go."""
    names = ",".join("+" + name.removeprefix("CAP_").lower() for name in (*NEEDED, *USEFUL))
    only = ("setpriv", f"--bounding-set=-all,{names}", "--inh-caps=-all", "--no-new-privs")
    await asyncio.gather(pair.a.start(wrap=only), pair.b.start())
    await asyncio.gather(pair.a.converged(), pair.b.converged())
    assert pair.a.process
    status = await asyncio.to_thread(Path(f"/proc/{pair.a.process.pid}/status").read_text)
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    assert effective.bit_count() == len(NEEDED) + len(USEFUL)
    one, two = netns(), netns()
    added = await call(pair.a, "ADD", "c1", one)
    far = await call(pair.b, "ADD", "c2", two)
    for ip in far["ips"]:
        one.run("ping", "-c1", "-W5", ip["address"].partition("/")[0])
    one.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
    assert await call(pair.a, "CHECK", "c1", one, prevResult=added) is None
    for ip in added["ips"]:
        two.run("ping", "-c1", "-W5", ip["address"].partition("/")[0])
    assert await call(pair.a, "DEL", "c1", one) is None
