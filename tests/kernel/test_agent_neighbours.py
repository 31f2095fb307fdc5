"""`routes.checkNeighbours` on whole agents: traffic leaves a silent gateway long before its session ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.agents import PATIENCE, Agent, agents
from tests.kernel.segment import Segment
from tests.kernel.test_agent_reload import reload
from tests.netns import Netns

pytestmark = pytest.mark.root

LEFT, RIGHT = "10.0.0.2 dev eth0", "10.0.0.3 dev eth0"
PREFERRED, SHARED, ALONE = "198.51.100.0/24", "192.0.2.0/24", "203.0.113.0/24"


async def explained(agent: Agent, prefix: str, *ways: str) -> Any:
    """Wait until the kernel holds these ways, and return the explanation."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await agent.get("/v1/explain", prefix=prefix)
            if [(row["state"], row["kernel"]) for row in found["fib"]] == [("installed", list(ways))]:
                return found
            await asyncio.sleep(0.02)


async def test_a_silent_gateway(netns: Callable[[], Netns]) -> None:
    lab = Segment(netns)
    prefer = {"name": "left", "match": {"prefixes": [PREFERRED]}, "action": "accept", "set": {"localPref": 200}}
    left = {"address": "10.0.0.2", "as": 65002, "export": "reject", "import": {"default": "accept", "rules": [prefer]}}
    right = {"address": "10.0.0.3", "as": 65003, "export": "reject", "import": "accept"}
    back = {"n": {"address": "10.0.0.1", "as": 65001, "import": "accept", "export": "accept", "passive": True}}
    async with agents() as (directory, running):
        peers = {"left": left, "right": right}
        node = Agent(lab.node, directory, "n", 65001, peers=peers, routes={"checkNeighbours": True})
        prefixes = {2: [PREFERRED, SHARED, ALONE], 3: [PREFERRED, SHARED]}
        running.append(node)
        for number, ns in lab.gateways.items():
            running.append(Agent(ns, directory, f"g{number}", 65000 + number, advertise=prefixes[number], peers=back))
            await running[-1].start()
        await node.start()
        await node.converged()
        await explained(node, PREFERRED, LEFT)
        await explained(node, SHARED, LEFT, RIGHT)
        lab.reach_all()

        lab.silence(2)
        found = await explained(node, PREFERRED, RIGHT)
        assert found["summary"] == ["decided by next hop answers among 2 paths"]
        silent, other = sorted(found["paths"], key=lambda path: str(path["peer"]))
        assert (silent["used"], silent["reason"]) == (False, "not best: next hop answers")
        assert silent["reached"].endswith(f"; {LEFT} does not answer")
        assert (other["used"], other["gateways"]) == (True, [RIGHT])
        found = await explained(node, SHARED, RIGHT)
        assert found["summary"][0].startswith("2 of 2 paths are equal and share the traffic; ")
        assert found["summary"][1:] == [f"{LEFT} does not answer"]
        lab.reach_all()
        await explained(node, ALONE, LEFT)
        assert (await node.peer("left"))["state"] == "Established"
        listed = await node.routes()
        assert {prefix: listed[prefix]["problem"] for prefix in (PREFERRED, SHARED, ALONE)} == {
            PREFERRED: "",
            SHARED: f"{LEFT} does not answer",
            ALONE: f"{LEFT} does not answer",
        }
        assert (await node.get("/v1/status"))["silentGateways"] == [LEFT]
        assert LEFT in (await asyncio.to_thread(node.command, "status")).stdout

        lab.speak(2)
        await explained(node, PREFERRED, LEFT)
        await explained(node, SHARED, LEFT, RIGHT)
        assert (await node.get("/v1/status"))["silentGateways"] == []
        for words in ("gateway does not answer", "gateway answers again"):
            (line,) = [line for line in node.log.splitlines() if words in line]
            assert LEFT in line

        lab.silence(2)
        await explained(node, SHARED, RIGHT)
        for checked, ways in ((False, (LEFT, RIGHT)), (True, (RIGHT,))):
            node.config["routes"]["checkNeighbours"] = checked
            named = [f"routes.checkNeighbours={str(checked).lower()}"]
            assert reload(node, "--dry-run")["checkNeighbours"] == named
            assert reload(node)["checkNeighbours"] == named
            await explained(node, SHARED, *ways)
            assert (await node.get("/v1/status"))["silentGateways"] == ([LEFT] if checked else [])
