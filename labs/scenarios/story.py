"""One scenario as it runs: its lab, what happens to it and when, what must hold, and what became of the packets."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from labs.errors import LabError
from labs.lab import Lab, load
from labs.node import Node
from labs.pods import Pod
from labs.runner import lab
from labs.saving import draw, fresh_folder, save
from labs.scenarios.daemons import Daemon, Podroute
from labs.scenarios.traffic import Flow, Traffic
from labs.topology import Topology


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
    compared: bool = False
    """`make scenarios` plays it with BIRD in podroute's place as well; its steps ask nothing of podroute itself."""
    prepare: Callable[[Topology, Path], Topology] | None = None
    """Changes the topology before the lab is up; files that this needs go into the directory."""


@dataclass(frozen=True, slots=True)
class Check:
    held: bool
    text: str


@dataclass(slots=True)
class Result:
    """What a scenario showed. Times are seconds after its packets started."""

    scenario: Scenario
    daemon: str = "podroute"
    """What routed on the nodes."""
    events: list[tuple[float, str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)
    """Measurements, as name and value with its unit."""
    drawings: list[str] = field(default_factory=list)
    """Measurements as pictures, SVG."""
    lab: str = ""
    """The topology's name."""
    picture: str = ""
    """The lab as it was before."""
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

    def __init__(self, net: Lab, pods: list[Pod], result: Result, daemon: Daemon) -> None:
        self.net = net
        self.pods = pods
        self.daemon = daemon
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

    def draw(self, svg: str) -> None:
        """Put a picture of measurements on the page."""
        self._result.drawings.append(svg)

    async def until(self, what: str, probe: Callable[[], Awaitable[object]], *, timeout: float = 30.0) -> float:  # noqa: ASYNC109
        """Wait until something is so, put it on the timeline with its milliseconds, and return them.

        What does not become so within ``timeout`` seconds is a failed check; the scenario goes on.
        """
        start = time.monotonic()
        try:
            await self.net.wait_for(what, probe, timeout=timeout, interval=0.02)
        except LabError:
            self.event(f"not within {timeout:g} s: {what}")
            self.check(False, f"{what}, within {timeout:g} s")
            return timeout * 1000
        taken = (time.monotonic() - start) * 1000
        self.event(f"{what} (after {taken:.0f} ms)")
        return taken

    async def settle(self) -> None:
        """Wait until the whole lab has converged, put that on the timeline, and let packets prove it for a while."""
        await self.daemon.converge(self.net)
        self.event("converged")
        await self.rest(0.5)

    async def rest(self, seconds: float) -> None:
        """Let packets flow."""
        await asyncio.sleep(seconds)

    async def stop(self, node: Node, number: signal.Signals) -> None:
        """End the daemon of a node, by a signal or as its peers are to wait for it, and say so on the timeline."""
        self.event(await self.daemon.stop(node, number))

    async def start(self, node: Node) -> None:
        """Start the daemon of a node, and wait until it answers."""
        node.start()
        self.event(f"{node.name}'s daemon is started")
        began = time.monotonic()
        await self.daemon.answering(node)
        self.event(f"{node.name}'s daemon answers (after {(time.monotonic() - began) * 1000:.0f} ms)")

    async def reach(self, why: str) -> None:
        """Check that both pods answer each other in every family, within some seconds."""
        one, other = self.pods
        for address in other.addresses:
            answered = await one.ping(address, count=5)
            self.check(bool(answered), f"{why}: {one.node.name}'s pod reaches {address}")


async def play(
    scenario: Scenario, daemon: Daemon | None = None, *, progress: Callable[[str], None] | None = None
) -> Result:
    """Run one scenario in a lab of its own, and return what it showed. Errors of the lab are failed checks."""
    daemon = daemon or Podroute()
    result = Result(scenario, daemon.name)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="podroute-scenario-") as directory:
            await _play(scenario, daemon, Path(directory), result, progress)
    except LabError as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        result.checks.append(Check(False, f"{error}{notes}"))
    result.seconds = time.monotonic() - began
    return result


async def _play(
    scenario: Scenario,
    daemon: Daemon,
    directory: Path,
    result: Result,
    progress: Callable[[str], None] | None,
) -> None:
    plan = load(scenario.topology, name=f"scenario-{os.getpid()}")
    if scenario.prepare:
        plan = scenario.prepare(plan, directory)
    result.lab = plan.path.name.removesuffix(".clab.yml")
    async with lab(daemon.plan(plan, directory), progress=progress) as net:
        await daemon.converge(net)
        pods = await daemon.pods([net.node(name) for name in scenario.ends])
        result.picture = await draw(net)
        await _with_traffic(scenario, Story(net, pods, result, daemon), result)
        if isinstance(daemon, Podroute) and not result.held:
            result.checks.append(Check(False, f"lab {net.name} is saved in {await save(net, fresh_folder(net.name))}"))


async def _with_traffic(scenario: Scenario, story: Story, result: Result) -> None:
    one, other = story.pods
    traffic = Traffic(one, other)
    # The first packets wait for neighbours to be found, and for routers whose kernels lag behind what they tell; that
    # is not what is measured.
    with suppress(LabError):
        for address in other.addresses:
            await story.net.wait_for(f"answer of {address}", partial(one.ping, address))
    result.start = time.monotonic()
    await traffic.start()
    await scenario.steps(story)
    result.flows = await traffic.stop()
    if scenario.outage is not None:
        text = f"packets lost: {result.lost}; longest outage {result.outage:.0f} ms"
        allowed = f", promised: {scenario.outage:.0f} ms at most" if scenario.outage else ", promised: none"
        held = result.outage <= scenario.outage if scenario.outage else not result.lost
        result.checks.append(Check(held and all(flow.sent for flow in result.flows), text + allowed))
