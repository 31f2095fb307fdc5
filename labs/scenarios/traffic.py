"""Packets through all of a scenario, each direction and family on its own, and what became of them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labs.errors import LabError
from labs.pods import Pod
from labs.waiting import off_loop

PROBE = Path(__file__).with_name("probe.py")
PORT, PORTS = 5000, 4
"""Several ports, so that equal paths (ECMP) are all used."""
RATE = 200
"""Packets per second, direction and family; each port has its share, which is the resolution of outages."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Packets lost one after the other: their time by CLOCK_MONOTONIC, and how many."""

    start: float
    end: float
    lost: int

    @property
    def milliseconds(self) -> float:
        """How long nothing arrived; a time in which the sender was held up, and sent nothing, does not count."""
        return min(self.end - self.start, (self.lost + 1) * PORTS / RATE) * 1000


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction of one family."""

    name: str
    """``n1 to n2, IPv4``."""
    sent: int
    lost: int
    gaps: tuple[Gap, ...]

    @property
    def outage(self) -> float:
        """The longest time without a packet, in milliseconds; 0 where none was lost."""
        return max((gap.milliseconds for gap in self.gaps), default=0.0)


class Traffic:
    """Streams between two pods, in both directions of every family that both have."""

    def __init__(self, one: Pod, other: Pod) -> None:
        self._ends = [
            (pod, peer, mine, its)
            for pod, peer in ((one, other), (other, one))
            for mine in pod.addresses
            for its in peer.addresses
            if (":" in mine) == (":" in its)
        ]
        self._running: list[subprocess.Popen[bytes]] = []

    async def start(self) -> None:
        """Start all ends, wait until they listen, then let packets go. Raises LabError."""
        for pod, _, mine, its in self._ends:
            command = ["/usr/bin/python3", "-I", str(PROBE), mine, its, str(PORT), str(PORTS), str(RATE)]
            self._running.append(
                pod.node.popen("ip", "netns", "exec", pod.name, *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
        for process in self._running:
            stream = process.stdout
            if stream is None or await off_loop(stream.readline) != b"ready\n":
                raise LabError("a probe did not start")
        for process in self._running:
            if process.stdin:
                process.stdin.write(b"go\n")
                process.stdin.flush()

    async def stop(self) -> list[Flow]:
        """Stop, and return what became of every packet. Raises LabError where an end is gone."""
        # None stops listening before all have stopped sending: a busy machine may have come to some of them only.
        for process in self._running:
            if process.stdin:
                process.stdin.write(b"stop\n")
                process.stdin.flush()
        for process in self._running:
            if process.stdout is None or await off_loop(process.stdout.readline) != b"stopped\n":
                raise LabError("a probe ended without a word")
        for process in self._running:
            if process.stdin:
                process.stdin.close()
                process.stdin = None
        said = await asyncio.gather(*(off_loop(process.communicate) for process in self._running))
        try:
            reports = [json.loads(stdout) for stdout, _ in said]
        except ValueError:
            raise LabError("a probe ended without its report") from None
        by_direction = {(pod.node.name, mine): n for n, (pod, _, mine, _) in enumerate(self._ends)}
        flows = []
        for number, (pod, peer, mine, its) in enumerate(self._ends):
            arrived = reports[by_direction[peer.node.name, its]]
            name = f"{pod.node.name} to {peer.node.name}, IPv{6 if ':' in mine else 4}"
            flows.append(judge(name, reports[number], arrived))
        return sorted(flows, key=lambda flow: flow.name[::-1])


def judge(name: str, sent: Sequence[Mapping[str, Any]], arrived: Sequence[Mapping[str, Any]]) -> Flow:
    """Hold the sender's reports of its ports against the receiver's."""
    gaps = []
    for out, into in zip(sent, arrived, strict=True):
        gaps += [Gap(out["first"] if start is None else start, end, lost) for start, end, lost in into["gaps"]]
        if out["sent"] > into["next"]:
            start = out["first"] if into["seen"] is None else into["seen"]
            gaps.append(Gap(start, out["last"], out["sent"] - into["next"]))
    lost = sum(out["sent"] for out in sent) - sum(into["received"] for into in arrived)
    # What came late, after its successors, is not lost.
    return Flow(name, sum(out["sent"] for out in sent), max(lost, 0), tuple(gaps) if lost > 0 else ())
