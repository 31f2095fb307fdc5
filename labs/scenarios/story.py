"""One scenario as it runs: its lab, what happens to it and when, what must hold, and what became of the packets."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from labs.errors import LabError
from labs.fabric import converge, podroute_nodes
from labs.node import Node
from labs.pods import Pod, start_pods
from labs.runner import Lab, lab
from labs.saving import draw
from labs.scenarios.traffic import Flow, Traffic


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    promise: str
    """What the user may count on, in one sentence."""
    topology: str
    steps: Callable[[Story], Awaitable[None]]
    ends: tuple[str, str] = ("n1", "n2")
    """The nodes whose pods exchange packets from the beginning to the end."""
    outage: float | None = 0.0
    """Milliseconds without a packet that the promise allows in any direction; None: it is measured only."""
    core: bool = False
    """It runs with every test run; the others run with `make scenarios`."""


@dataclass(frozen=True, slots=True)
class Check:
    held: bool
    text: str


@dataclass(slots=True)
class Result:
    """What a scenario showed. Times are seconds after its packets started."""

    scenario: Scenario
    events: list[tuple[float, str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)
    """Measurements, as name and value with its unit."""
    picture: str = ""
    start: float = 0.0
    """CLOCK_MONOTONIC at 0."""
    seconds: float = 0.0

    @property
    def held(self) -> bool:
        return bool(self.checks) and all(check.held for check in self.checks)

    @property
    def lost(self) -> int:
        return sum(flow.lost for flow in self.flows)

    @property
    def outage(self) -> float:
        return max((flow.outage for flow in self.flows), default=0.0)


class Story:
    """What a scenario's steps work with."""

    def __init__(self, net: Lab, pods: list[Pod], result: Result) -> None:
        self.net = net
        self.pods = pods
        self._result = result

    def node(self, name: str) -> Node:
        return self.net.node(name)

    def pod(self, node: str) -> Pod:
        """Return the pod of a node."""
        return next(pod for pod in self.pods if pod.node.name == node)

    def event(self, text: str) -> None:
        """Put a line on the timeline."""
        self._result.events.append((time.monotonic() - self._result.start, text))

    def check(self, held: bool, text: str) -> None:
        """Note whether something held; the scenario goes on either way."""
        self._result.checks.append(Check(held, text))

    def figure(self, name: str, value: str) -> None:
        """Note a measurement."""
        self._result.figures.append((name, value))

    async def until(self, what: str, probe: Callable[[], Awaitable[object]], *, timeout: float = 30.0) -> float:  # noqa: ASYNC109
        """Wait until something is so, and put it on the timeline with its milliseconds. Raises LabError."""
        start = time.monotonic()
        await self.net.wait_for(what, probe, timeout=timeout, interval=0.02)
        taken = (time.monotonic() - start) * 1000
        self.event(f"{what} (after {taken:.0f} ms)")
        return taken

    async def settle(self) -> None:
        """Wait until the whole lab has converged, put that on the timeline, and let packets prove it for a while."""
        await converge(self.net)
        self.event("converged")
        await self.rest(0.5)

    async def rest(self, seconds: float) -> None:
        """Let packets flow."""
        await asyncio.sleep(seconds)


async def play(scenario: Scenario, *, progress: Callable[[str], None] | None = None) -> Result:
    """Run one scenario in a lab of its own, and return what it showed. Errors of the lab are failed checks."""
    result = Result(scenario)
    began = time.monotonic()
    try:
        async with lab(scenario.topology, name=f"scenario-{os.getpid()}", progress=progress) as net:
            nodes = podroute_nodes(net)
            await converge(net)
            await asyncio.gather(*(node.run("podroute", "cni", "install") for node in nodes))
            pods = await start_pods([net.node(name) for name in scenario.ends], 1)
            result.picture = await draw(net)
            await _with_traffic(scenario, net, pods, result)
    except LabError as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        result.checks.append(Check(False, f"{error}{notes}"))
    result.seconds = time.monotonic() - began
    return result


async def _with_traffic(scenario: Scenario, net: Lab, pods: list[Pod], result: Result) -> None:
    traffic = Traffic(*pods)
    # The first packets wait for neighbours to be found, which is not what is measured.
    await asyncio.gather(*(pods[0].ping(address) for address in pods[1].addresses))
    result.start = time.monotonic()
    await traffic.start()
    await scenario.steps(Story(net, pods, result))
    result.flows = await traffic.stop()
    if scenario.outage is not None:
        text = f"packets lost: {result.lost}; longest outage {result.outage:.0f} ms"
        allowed = f", promised: {scenario.outage:.0f} ms at most" if scenario.outage else ", promised: none"
        held = result.outage <= scenario.outage if scenario.outage else not result.lost
        result.checks.append(Check(held and all(flow.sent for flow in result.flows), text + allowed))
