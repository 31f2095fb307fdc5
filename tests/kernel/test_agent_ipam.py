"""`podroute ipam` against whole agents: what it shows, what check finds and repairs, dead nodes, a lost ledger."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network
from typing import Any

import pytest

from ipam import records
from ipam.sqlite_store import SqliteStore
from ipam.store import Delete, Put
from tests.agents import PATIENCE, Agent, agents
from tests.kernel.test_agent_life import add_pod, call
from tests.netns import Netns

pytestmark = pytest.mark.root

POOLS = {"pods": {"cidr": "10.64.0.0/24", "blockSize": 28}}


@pytest.fixture
async def two(netns: Callable[[], Netns]) -> AsyncIterator[tuple[Agent, Agent]]:
    """Two agents on one store, that know no peers."""
    async with agents() as (directory, running):
        for number, name in ((1, "a"), (2, "b")):
            running.append(Agent(netns(), directory, name, 65000 + number, pools=POOLS, ipam={"graceTime": 1}))
            await running[-1].start()
        yield running[0], running[1]


async def get(agent: Agent, path: str, **query: str) -> Any:
    return await asyncio.to_thread(lambda: agent.client.get(path, **query))


async def until(agent: Agent, path: str, wanted: Callable[[Any], bool], **query: str) -> Any:
    async with asyncio.timeout(PATIENCE):
        while not wanted(found := await get(agent, path, **query)):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
    return found


def ipam(agent: Agent, *words: str, status: int = 0) -> str:
    done = agent.command("ipam", *words, "--socket", str(agent.socket))
    assert done.returncode == status, done.stdout + done.stderr + agent.log
    return done.stdout + done.stderr


async def test_show_and_the_picture_of_a_block(two: tuple[Agent, Agent], netns: Callable[[], Netns]) -> None:
    a, b = two
    _, (address,) = add_pod(a, netns, "one")
    shown = json.loads(ipam(a, "show", "--json"))
    (pool,) = shown["pools"]
    assert (pool["claimed"], pool["used"], pool["addresses"]) == (2, 1, 256)
    assert {(node["name"], node["blocks"], node["size"], node["alive"]) for node in shown["nodes"]} == {
        ("a", 1, 16, True),
        ("b", 1, 16, True),
    }
    (block,) = json.loads(ipam(b, "blocks", "--node", "a", "--json"))
    assert block["owner"] == "a"
    assert "1 used" in ipam(a, "show", block["prefix"])
    assert "no block of node b" in ipam(b, "show", block["prefix"], status=1)
    assert "10.64.0.0/24" in ipam(a, "pools")
    assert "in use by" not in ipam(a, "show")
    refused = ipam(a, "release", address, status=1)
    assert "delete the container, or give --force" in refused
    assert ipam(a, "release", address, "--force").startswith(f"released {address} of ")
    assert "ledger, store and kernel agree" in ipam(a, "check")
    # A record that cannot be read: what was not compared does not count as agreeing
    store = SqliteStore(a.config["store"].removeprefix("sqlite://"))
    await store.open()
    key = records.block_key(4, bytes((28, 10, 64, 0, 240)))
    await store.transact([], [Put(key, b"by hand")])
    said = ipam(a, "check", status=1)
    assert f"block records were not compared: record {key} is none that podroute wrote" in said
    assert "ledger and kernel agree" in said
    await store.transact([], [Delete(key)])
    await store.close()
    assert "ledger, store and kernel agree" in ipam(a, "check")


async def test_addresses_that_a_subnet_uses_for_itself_are_shown_as_reserved(
    two: tuple[Agent, Agent], netns: Callable[[], Netns]
) -> None:
    """As IPAM of another plugin podroute keeps them from containers; none has them."""
    a, _ = two
    config = {"name": "lan", "type": "ptp", "ipam": {"type": "podroute"}}
    pod = netns()
    done = call(a, "ADD", pod, "one", config=config)
    assert done.returncode == 0, done.stdout
    (block,) = await get(a, "/v1/blocks")
    cells = (await get(a, "/v1/ipam/show", block=block["prefix"]))["cells"]
    assert (cells[0], cells[1], cells[15]) == ("reserved",) * 3
    assert sorted(set(cells[2:15])) == ["free", "used"]
    assert cells.count("used") == 1
    assert (block["used"], block["reserved"], block["free"]) == (1, 3, 12)
    assert [pool["used"] for pool in (await get(a, "/v1/ipam/show"))["pools"]] == [1]
    assert "rr" in ipam(a, "show", block["prefix"])
    # Neither such an address nor that of another plugin's container is released by mistake
    address = json.loads(done.stdout)["ips"][0]["address"].partition("/")[0]
    gateway = str(ip_network(block["prefix"])[1])
    assert f"whose network namespace {pod.path} is there" in ipam(a, "release", address, status=1)
    assert "as the gateway address of a subnet" in ipam(a, "release", gateway, status=1)
    assert ipam(a, "release", address, "--force").startswith(f"released {address} of lan/one/eth0")


async def borrow(agent: Agent, pod: Netns) -> str:
    """ADD a container to a full node, again and again as a runtime does: a lender has its time to answer."""
    async with asyncio.timeout(PATIENCE):
        while (done := await asyncio.to_thread(call, agent, "ADD", pod, "more")).returncode:
            assert json.loads(done.stdout)["code"] == 11, done.stdout
            await asyncio.to_thread(call, agent, "DEL", pod, "more")
    return str(json.loads(done.stdout)["ips"][0]["address"].partition("/")[0])


async def test_an_address_on_loan_is_not_released(netns: Callable[[], Netns]) -> None:
    async with agents() as (directory, running):
        pools = {"pods": {"cidr": "10.64.0.0/29", "blockSize": 30}}
        for number, name in ((1, "a"), (2, "b")):
            running.append(Agent(netns(), directory, name, 65000 + number, pools=pools, ipam={"borrowing": True}))
            await running[-1].start()
        a, b = running
        await until(b, "/v1/ipam/show", lambda shown: len(shown["nodes"]) == 2)
        for number in range(4):
            add_pod(b, netns, f"own{number}")
        borrowed = await borrow(b, netns())
        for words in (("release", borrowed), ("release", borrowed, "--force")):
            assert f"address {borrowed} is on loan to node b" in ipam(a, *words, status=1)
        assert borrowed not in {add_pod(a, netns, f"a{number}")[1][0] for number in range(3)}
        assert "agree" in ipam(a, "check")


async def test_a_pool_is_changed_for_all_nodes(two: tuple[Agent, Agent], netns: Callable[[], Netns]) -> None:
    a, b = two
    refused = ipam(a, "pools", "set", "pods", "blockSize=27", status=1)
    assert "pool pods has 2 live blocks" in refused
    ipam(a, "pools", "set", "pods", "disabled=true")
    async with asyncio.timeout(PATIENCE):
        while "pool pods is disabled" not in call(b, "ADD", netns(), "one").stdout:
            call(b, "DEL", netns(), "one")
            await asyncio.sleep(0.1)


async def test_check_names_what_disagrees_and_fix_repairs_it(
    two: tuple[Agent, Agent], netns: Callable[[], Netns]
) -> None:
    a, _ = two
    a.config["ipam"] = {"graceTime": 3600}
    await a.stop()
    await a.start()
    add_pod(a, netns, "one")
    _, (second,) = add_pod(a, netns, "two")
    pods = {pod["containerId"]: pod for pod in await get(a, "/v1/pods")}
    assert "agree" in ipam(a, "check")
    a.ns.run("ip", "link", "del", pods["one"]["hostIfname"])
    found = ipam(a, "check", status=1)
    assert f"vanished: {pods['one']['network']}/one/eth0 has addresses but no interface" in found
    fixed = ipam(a, "check", "--fix")
    assert "fixed: " in fixed
    assert "agree" in ipam(a, "check")
    assert [pod["addresses"] for pod in await get(a, "/v1/pods")] == [[second]]


async def test_the_address_of_a_vanished_container_is_collected(
    two: tuple[Agent, Agent], netns: Callable[[], Netns]
) -> None:
    a, _ = two
    add_pod(a, netns, "stays")
    pod = Netns()
    assert call(a, "ADD", pod, "goes").returncode == 0
    pods = {pod["containerId"]: pod for pod in await get(a, "/v1/pods")}
    a.ns.run("ip", "link", "del", pods["goes"]["hostIfname"])
    await asyncio.sleep(1.5)
    assert len(await get(a, "/v1/pods")) == 2  # its namespace is there yet
    pod.close()
    found = await until(a, "/v1/pods", lambda pods: len(pods) == 1)
    assert found[0]["containerId"] == "stays"
    async with asyncio.timeout(PATIENCE):
        while "addresses of a vanished pod released" not in a.log:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)


async def test_an_emptied_ledger_gives_no_address_of_a_running_container(
    two: tuple[Agent, Agent], netns: Callable[[], Netns]
) -> None:
    a, _ = two
    running = {add_pod(a, netns, f"old{number}")[1][0] for number in range(5)}
    routes = a.ns.run("ip", "route")
    await a.stop()
    for file in (a.directory / "state").glob("ledger.db*"):
        file.unlink()
    await a.start()
    assert "THE LEDGER IS EMPTY THOUGH CONTAINERS RUN" in a.log
    assert a.ns.run("ip", "route") == routes
    new = {add_pod(a, netns, f"new{number}")[1][0] for number in range(5)}
    assert not new & running
    assert "agree" in ipam(a, "check")


async def test_a_dead_nodes_blocks_are_reclaimed_and_it_finds_out(
    two: tuple[Agent, Agent], netns: Callable[[], Netns]
) -> None:
    a, b = two
    _, (address,) = add_pod(b, netns, "one")
    refused = ipam(a, "reclaim", "b", status=1)
    assert "node b is alive" in refused
    assert "no node x in the store" in ipam(a, "reclaim", "x", status=1)
    await b.stop()
    b.config["ipam"] = {"lease": 3}  # it may lapse from now on
    await b.start()
    await b.stop(signal.SIGKILL)
    (block,) = json.loads(ipam(a, "blocks", "--node", "b", "--json"))
    await until(a, "/v1/ipam/show", lambda shown: not next(n for n in shown["nodes"] if n["name"] == "b")["alive"])
    assert block["prefix"] in ipam(a, "reclaim", "b", "--quarantine", "600")
    (rests,) = [one for one in json.loads(ipam(a, "blocks", "--json")) if one["prefix"] == block["prefix"]]
    assert rests["owner"] == "b (reclaimed)"

    await b.start()
    status = await until(b, "/v1/status", lambda status: status["store"]["lostBlocks"] and status["blocks"])
    assert status["store"]["lostBlocks"] == [block["prefix"]]
    assert block["prefix"] not in status["blocks"]
    async with asyncio.timeout(PATIENCE):
        while address in b.ns.run("ip", "route"):  # noqa: ASYNC110 (the kernel)
            await asyncio.sleep(0.05)
    assert "lost-block" in ipam(b, "check", status=1)
