"""A whole agent killed in the middle of a load, without permission, and deaf to the kernel's events.

KILL_ROUTES=500000 makes the load, FLAP_SECONDS=20 the flaps as large as the promise says.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.fib_lab import Feeder, Kernel, packed, peer_address
from benchmarks.fib_streams import Stream, made
from config.kernel import ROUTE_PROTOCOL
from routes.messages import NexthopEvent, RouteEvent
from tests.agents import PATIENCE, Agent, agents
from tests.kernel.routes_lab import nexthops, routes, uplinks, witness
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
ROUTES = int(os.environ.get("KILL_ROUTES", "20000"))
FLAP_SECONDS = int(os.environ.get("FLAP_SECONDS", "2"))
PEER_AS = 65010
HINDERED = (sys.executable, "-m", "tests.kernel.hindered")


def stream(count: int, *, offset: int = 0) -> Stream:
    """Return what a peer says: ``count`` /24s from 11.0.0.0 and ``offset`` on, 200 in an UPDATE, and End-of-RIB."""
    return made(4, count, 200, packed(peer_address(4, 0)), PEER_AS, offset=offset)


@asynccontextmanager
async def fed(netns: Maker) -> AsyncIterator[tuple[Agent, Feeder, Kernel]]:
    """Yield an agent that is not started, a peer to feed it, and the kernel of its namespace."""
    node, fabric = uplinks(netns)
    peer = {"address": "10.0.0.2", "as": PEER_AS, "passive": True, "import": "accept", "export": "reject"}
    feeder, kernel = Feeder(fabric, 4, 0, PEER_AS), Kernel(node)
    try:
        async with agents() as (directory, running):
            agent = Agent(node, directory, "a", 65001, peers={"left": {**peer, "families": ["ipv4"]}})
            running.append(agent)
            yield agent, feeder, kernel
    finally:
        feeder.close()
        kernel.close()


async def counted(kernel: Kernel, holds: Callable[[int], bool]) -> None:
    """Wait until the kernel has as many of podroute's routes as it should."""
    async with asyncio.timeout(PATIENCE + ROUTES / 5000):
        while not holds(await asyncio.to_thread(kernel.count, 4, ROUTE_PROTOCOL)):  # noqa: ASYNC110 -- no event tells
            await asyncio.sleep(0.02)


async def test_sigkill_in_the_middle_of_a_load(netns: Maker) -> None:
    async with fed(netns) as (agent, feeder, kernel):
        await agent.start()
        await asyncio.to_thread(feeder.connect)
        data = stream(ROUTES).data  # of which the end never comes: the load cannot be over before the signal
        sending = asyncio.create_task(asyncio.to_thread(feeder.send, data[: len(data) * 3 // 4]))
        await counted(kernel, lambda count: count > ROUTES // 4)
        await agent.stop(signal.SIGKILL)
        await asyncio.wait([sending])
        sending.exception()  # a killed agent reads nothing more
        feeder.close()
        left, objects = routes(agent.ns, 4), nexthops(agent.ns)
        assert ROUTES // 4 < len(left) < ROUTES
        async with witness(agent.ns) as seen:
            await agent.start()
            await asyncio.to_thread(feeder.connect)
            same, fresh = stream(ROUTES // 5), stream(1000, offset=ROUTES)
            feeder.send(same.data + fresh.data)
            wanted = {*same.prefixes, *fresh.prefixes}
            await counted(kernel, lambda count: count == len(wanted))
            await agent.converged()
            assert {route.prefix for route in routes(agent.ns, 4).values()} == wanted
            agent.ns.run("ip", "route", "add", "100.64.0.0/24", "dev", "up0")
            await seen.route("100.64.0.0/24", protocol=3)
            assert seen.monitor.overruns == 0
            touched = {e.route.prefix for e in seen.past if isinstance(e, RouteEvent) and (e.gone or e.replaced)}
            assert touched == {route.prefix for route in left.values()} - wanted
            assert [e for e in seen.past if isinstance(e, NexthopEvent)] == []
            assert nexthops(agent.ns) == objects
        assert "Traceback" not in agent.log


async def test_permission_lost_and_given_back(netns: Maker) -> None:
    async with fed(netns) as (agent, feeder, kernel):
        await agent.start(wrap=HINDERED)
        process = agent.process
        assert process is not None
        await asyncio.to_thread(feeder.connect)
        first, second = stream(400), stream(300, offset=400)
        feeder.send(first.data)
        await counted(kernel, lambda count: count == 400)
        process.send_signal(signal.SIGUSR1)
        feeder.send(first.withdrawals + second.data)
        await agent.until("'failed': 300", "/v1/status")
        assert kernel.count(4, ROUTE_PROTOCOL) == 400
        shown = await asyncio.to_thread(agent.command, "routes", "11.1.144.0/24")
        assert "failed" in shown.stdout, shown
        assert agent.log.count("permission denied") == 1, agent.log
        assert len(agent.log.splitlines()) < 40
        process.send_signal(signal.SIGUSR1)
        agent.ns.run("ip", "link", "set", "up1", "down")  # something happens, and all is tried again
        await counted(kernel, lambda count: count == 300)
        assert {route.prefix for route in routes(agent.ns, 4).values()} == set(second.prefixes)
        await agent.until("'ipv4': {'installed': 300}", "/v1/status")  # the kernel has them before the answers are read
        assert "Traceback" not in agent.log


async def test_what_no_event_has_told_is_shown(netns: Maker) -> None:
    """`podroute routes` reads the kernel: one route leads elsewhere, one is gone."""
    async with fed(netns) as (agent, feeder, kernel):
        await agent.start(wrap=HINDERED)
        await asyncio.to_thread(feeder.connect)
        feeder.send(stream(3).data)
        await counted(kernel, lambda count: count == 3)
        await agent.until("'ipv4': {'installed': 3}", "/v1/status")
        assert agent.process is not None
        agent.process.send_signal(signal.SIGUSR2)
        agent.ns.run("ip", "route", "replace", "11.0.0.0/24", "via", "10.0.1.2", "metric", "20", "proto", "201")
        agent.ns.run("ip", "route", "del", "11.0.1.0/24")
        shown = (await asyncio.to_thread(agent.command, "routes")).stdout.splitlines()
        states = {line.split()[0]: line for line in shown if line.startswith("11.")}
        assert "altered" in states["11.0.0.0/24"], shown
        assert "missing" in states["11.0.1.0/24"], shown
        assert "installed" in states["11.0.2.0/24"], shown
        alone = (await asyncio.to_thread(agent.command, "routes", "11.0.0.0/24")).stdout
        assert "altered  leads 10.0.1.2 dev up1; it is repaired when that is seen" in alone
        found = (await agent.get("/v1/explain", prefix="11.0.0.0/24"))["fib"]
        assert [(row["state"], row["kernel"]) for row in found] == [("altered", ["10.0.1.2 dev up1"])]


async def test_ten_thousand_routes_flap_every_second(netns: Maker) -> None:
    """Over a session: memory stays flat, the API answers, and the end is as announced."""
    async with fed(netns) as (agent, feeder, kernel):
        await agent.start()
        await asyncio.to_thread(feeder.connect)
        loop = asyncio.get_running_loop()
        said = stream(10_000)
        answers, memory = [], []
        begin = loop.time()
        for second in range(2 * (FLAP_SECONDS // 2) + 1):
            await asyncio.to_thread(feeder.send, said.withdrawals if second % 2 else said.data)
            asked = loop.time()
            await agent.get("/v1/status")
            answers.append(loop.time() - asked)
            await asyncio.sleep(max(0.0, begin + second + 1 - loop.time()))
            memory.append(resident(agent))
        await counted(kernel, lambda count: count == len(said.prefixes))
        await agent.converged()
        assert {route.prefix for route in routes(agent.ns, 4).values()} == set(said.prefixes)
        print(f"an answer within {max(answers) * 1000:.0f} ms, {memory} MB")
        assert max(memory) - memory[0] < 16
        assert "Traceback" not in agent.log


def resident(agent: Agent) -> float:
    """Return the agent's resident memory in MB."""
    assert agent.process is not None
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))
