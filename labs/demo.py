"""`make demo`: the main job in front of your eyes. Two racks, real routers, pods that reach each other by BGP alone.

Every check is counted; the exit status is 0 only if all held and nothing was left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from labs.errors import LabError
from labs.fabric import converge
from labs.lab import Lab
from labs.leftovers import Host
from labs.node import Node
from labs.pods import Pod, start_pods
from labs.teardown import take_down

TOPOLOGY = "two-racks"
NODES = ("n1", "n2", "n3", "n4")
TORS = ("tor1", "tor2")
ROUTERS = ("spine", *TORS)
PODS_PER_NODE = 2
CONVERGENCE = 60
"""Seconds that the agents are given; two or three are usual."""


class Show:
    """Prints the story, and counts what was checked."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.failures = 0
        self.checks = 0
        self._start = time.monotonic()
        self._step = 0

    def step(self, text: str) -> None:
        self._step += 1
        elapsed = time.monotonic() - self._start
        self.console.print(Text.assemble((f"\n{self._step:>2}  ", "bold cyan"), (text, "bold"), f"  [{elapsed:.1f} s]"))

    def say(self, text: str) -> None:
        self.console.print(Text("    " + text, "dim"))

    def check(self, held: bool, text: str) -> None:
        self.checks += 1
        self.failures += not held
        self.console.print(Text.assemble("    ", ("ok    ", "green") if held else ("FAILED ", "bold red"), text))

    def table(self, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        table = Table(title=title, title_justify="left", title_style="", box=None, header_style="dim", padding=(0, 1))
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


async def demo(show: Show, *, name: str, keep: bool) -> None:
    """Run the whole story. Raises LabError where it cannot go on."""
    show.step("The lab: a spine, two ToRs (FRR) and four nodes (podroute), each its own AS")
    net = await Lab.up(TOPOLOGY, name=name, progress=show.say)
    kept = False
    try:
        nodes = [net.node(name) for name in NODES]
        await _converge(show, net, nodes)
        show.step(f"{PODS_PER_NODE} containers on every node, through the installed CNI plugin")
        pods = await _pods(show, nodes)
        await _tables(show, net, nodes)
        await _reachability(show, net, pods)
        if keep:
            kept = True
            _look_around(show, name, pods)
            return
        show.step("The containers are deleted: routes and addresses go with them")
        await _delete(show, nodes, pods)
        show.step("Everything comes down")
    except BaseException:
        kept = False
        raise
    finally:
        if not kept:
            await asyncio.shield(net.down())


async def _ask(node: Node, *arguments: str) -> Any:
    """Return the JSON answer of the node's own command line."""
    said = (await node.run("podroute", *arguments, "--json", timeout=CONVERGENCE + 15)).stdout
    if arguments[0] == "routes":
        return [json.loads(line) for line in said.splitlines()]
    return json.loads(said)


async def _converge(show: Show, net: Lab, nodes: list[Node]) -> None:
    show.step("The agents are asked until the fabric has converged")
    await net_ready(nodes)
    command = ("podroute", "wait-converged", "--json", "--timeout", str(CONVERGENCE))
    answers = await asyncio.gather(*(node.run(*command, check=False, timeout=CONVERGENCE + 30) for node in nodes))
    for node, done in zip(nodes, answers, strict=True):
        answer = json.loads(done.stdout or "{}")
        why = "; ".join(answer.get("waitingFor", [])) or done.stderr.strip()
        show.check(bool(answer.get("converged")), f"{node.name} has converged" + (f": no, {why}" if why else ""))
        if not answer:
            show.say(f"log of {node.name}: {node.log.read_text()[-2000:]}")
    # Convergence of a node says nothing of what others, and kernels of routers, are still to hear.
    await converge(net, timeout=CONVERGENCE)
    blocks = {block for node in nodes for block in await node.agent.blocks()}
    for name in ROUTERS:
        router = net.node(name)
        await net.wait_for(f"routes to all blocks on {name}", partial(_forwards, router, blocks), timeout=CONVERGENCE)


async def _forwards(router: Node, blocks: set[str]) -> bool:
    """Tell whether a router's kernel has BGP's routes to all blocks."""
    return blocks <= {route["dst"] for route in await _fib(router)}


async def _fib(router: Node) -> list[Any]:
    """Return the routes of BGP in a router's kernel, as ip(8) shows them."""
    said = [await router.run("ip", "-j", family, "route", "show", "proto", "bgp") for family in ("-4", "-6")]
    return [route for one in said for route in json.loads(one.stdout)]


async def net_ready(nodes: list[Node]) -> None:
    """Wait until every node's agent has its API socket, or has ended. Raises LabError with its log."""

    async def one(node: Node) -> None:
        socket = node.root / "run/podroute/api.sock"
        deadline = time.monotonic() + CONVERGENCE
        while not socket.exists():
            if node.process is None or time.monotonic() > deadline:
                raise LabError(f"the agent on {node.name} does not run:\n{node.logs()}")
            await asyncio.sleep(0.02)

    await asyncio.gather(*(one(node) for node in nodes))


async def _pods(show: Show, nodes: list[Node]) -> list[Pod]:
    await asyncio.gather(*(node.run("podroute", "cni", "install") for node in nodes))
    pods = await start_pods(nodes, PODS_PER_NODE)
    await asyncio.gather(*(pod.serve() for pod in pods))
    for pod in pods:
        show.check(len(pod.addresses) == 2, f"{_title(pod)} has {' and '.join(pod.addresses)}")
    return pods


async def _tables(show: Show, net: Lab, nodes: list[Node]) -> None:
    show.step("Sessions")
    rows = []
    for node, peers in zip(nodes, await asyncio.gather(*(_ask(node, "peers") for node in nodes)), strict=True):
        for peer in peers:
            for family, counts in peer["families"].items():
                numbers = [str(counts[key]) for key in ("received", "accepted", "advertised")]
                rows.append(
                    [node.name, peer["name"], peer["address"], str(peer["as"]), peer["state"], family, *numbers]
                )
    columns = ("NODE", "PEER", "ADDRESS", "AS", "STATE", "FAMILY", "RCVD", "ACCPT", "ADV")
    show.table("", columns, rows)
    show.check(all(row[4] == "Established" for row in rows) and len(rows) == 8, "eight sessions are established")

    show.step("Blocks: each node owns one per family, no two share any")
    rows = []
    for node, blocks in zip(nodes, await asyncio.gather(*(_ask(node, "blocks") for node in nodes)), strict=True):
        rows += [
            [node.name, block["prefix"], block["pool"], str(block["used"]), ", ".join(block["advertisedTo"])]
            for block in blocks
        ]
    show.table("", ("NODE", "BLOCK", "POOL", "USED", "ADVERTISED TO"), rows)
    blocks_by_prefix = {row[1]: row[0] for row in rows}
    show.check(len(blocks_by_prefix) == len(rows) == 2 * len(nodes), f"{len(rows)} blocks, all different")

    show.step("What each node learned, and what its kernel does with it")
    everywhere = await asyncio.gather(*(_ask(node, "routes") for node in nodes))
    rows = []
    for node, routes in zip(nodes, everywhere, strict=True):
        learned = [route for route in routes if any(path["used"] and path["peer"] for path in route["paths"])]
        for route in learned:
            used = [path for path in route["paths"] if path["used"]]
            via = ", ".join(path["nextHop"] for path in used)
            if route["prefix"] in blocks_by_prefix:
                rows.append([node.name, route["prefix"], via, used[0]["asPath"], route["kernel"]])
        others = {prefix for prefix, owner in blocks_by_prefix.items() if owner != node.name}
        # Its own subnet, which the ToR announces too, the kernel has from elsewhere as well: ours stands behind that.
        installed = {route["prefix"] for route in learned if route["kernel"] in ("installed", "shadowed")}
        fabric = len(learned) - len(others)
        text = f"{node.name}: {len(others)} blocks of other nodes and {fabric} routes of the fabric are in the kernel"
        show.check(others <= installed and len(installed) == len(learned), text)
    show.table("", ("NODE", "PREFIX", "NEXT HOP", "AS PATH", "KERNEL"), rows)

    show.step("What the ToRs have in their own FIB (ip route, protocol bgp)")
    rows = []
    for name in TORS:
        fib = await _fib(net.node(name))
        rows += [[name, route["dst"], route.get("gateway", ""), route.get("dev", "")] for route in fib]
        held = {row[1] for row in rows if row[0] == name}
        show.check(blocks_by_prefix.keys() <= held, f"{name} forwards to all {len(blocks_by_prefix)} blocks")
    show.table("", ("ROUTER", "PREFIX", "VIA", "DEVICE"), [row for row in rows if row[1] in blocks_by_prefix])


async def _reachability(show: Show, net: Lab, pods: list[Pod]) -> None:
    for family in (4, 6):
        show.step(f"Every pod pings every pod, IPv{family}")
        limit = asyncio.Semaphore(8)

        async def ping(source: Pod, target: Pod, family: int = family, limit: asyncio.Semaphore = limit) -> bool:
            async with limit:
                return bool(await source.ping(target.address(family)))

        pairs = [(a, b) for a in pods for b in pods]
        answered = await asyncio.gather(*(ping(a, b) for a, b in pairs))
        got = {(id(a), id(b)): held for (a, b), held in zip(pairs, answered, strict=True)}
        rows = [
            [
                f"{a.node.name}/{a.name}",
                a.address(family),
                *("·" if a is b else "ok" if got[id(a), id(b)] else "LOST" for b in pods),
            ]
            for a in pods
        ]
        show.table("", ("FROM", "ADDRESS", *(f"{pod.node.name}/{pod.name[-1]}" for pod in pods)), rows)
        show.check(all(answered), f"{sum(answered)} of {len(pairs)} pings answered")

    show.step("The ToRs reach the pods")
    for name in TORS:
        tor = net.node(name)
        targets = [address for pod in pods for address in pod.addresses]
        answered = await asyncio.gather(*(_reaches(tor, address) for address in targets))
        show.check(all(answered), f"{name}: {sum(answered)} of {len(targets)} pod addresses answer")

    show.step("No NAT: the source address that the receiver saw is the pod's own")
    rows = []
    for family in (4, 6):
        for source, target in ((pods[0], pods[-1]), (pods[-1], pods[0]), (pods[2], pods[5])):
            seen = await source.seen_by(target, family)
            rows.append(
                [f"{source.node.name}/{source.name}", source.address(family), f"{target.node.name}/{target.name}", seen]
            )
    show.table("", ("FROM", "OWN ADDRESS", "TO", "SEEN AS"), rows)
    show.check(all(row[1] == row[3] for row in rows), "no address was translated on the way")


def _title(pod: Pod) -> str:
    return f"{pod.node.name}/{pod.name}"


async def _reaches(router: Node, address: str) -> bool:
    return bool(await router.ping(address, wait=2))


async def _delete(show: Show, nodes: list[Node], pods: list[Pod]) -> None:
    addresses = {pod.node.name: [a for p in pods if p.node is pod.node for a in p.addresses] for pod in pods}
    await asyncio.gather(*(pod.stop() for pod in pods))
    for node in nodes:
        blocks, left = await asyncio.gather(_freed(node), _ask(node, "pods"))
        used = sum(block["used"] for block in blocks)
        routes = "".join([(await node.run("ip", family, "-o", "route")).stdout for family in ("-4", "-6")])
        present = [address for address in addresses[node.name] if f"{address} " in routes]
        links = [link["ifname"] for link in json.loads((await node.run("ip", "-j", "link")).stdout)]
        show.check(
            not used and not left and not present and set(links) == {"lo", "eth1"},
            f"{node.name}: {used} addresses used, {len(left)} pods, {len(present)} pod routes; links {' '.join(links)}",
        )


async def _freed(node: Node) -> Any:
    """Return the node's blocks once nothing is used; addresses come free a moment after DEL was answered."""
    deadline = time.monotonic() + CONVERGENCE
    while True:
        blocks = await _ask(node, "blocks")
        if not any(block["used"] for block in blocks) or time.monotonic() > deadline:
            return blocks
        await asyncio.sleep(0.1)


def _look_around(show: Show, name: str, pods: list[Pod]) -> None:
    show.step("The lab stays up. To look around:")
    one, other = pods[0], pods[-1]
    for command in (
        f"podroute lab exec {name} n1 -- podroute status",
        f"podroute lab exec {name} n1 -- podroute peers",
        f"podroute lab exec {name} n1 -- podroute routes",
        f"podroute lab exec {name} n1 -- ip route",
        f"podroute lab exec {name} tor1 -- vtysh -c 'show bgp summary'",
        f"podroute lab exec {name} n1 -- ip netns exec {one.name} ping {other.address(4)}",
        f"podroute lab ps {name}",
    ):
        show.console.print(Text("    sudo .venv/bin/" + command), soft_wrap=True)
    show.say("")
    show.say("make lab-down removes it.")


async def _main(show: Show, *, name: str, keep: bool) -> None:
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await demo(show, name=name, keep=keep)


def main() -> int:
    """Run the demo, and return the exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description="Show podroute's main job in a lab.")
    parser.add_argument("--keep", action="store_true", help="leave the lab up, and print what to type")
    parser.add_argument("--down", action="store_true", help="remove the lab that --keep left up")
    parser.add_argument("--name", default=TOPOLOGY, help="the lab's name, to have several at once")
    options = parser.parse_args()
    show = Show()
    if options.down:
        with suppress(KeyboardInterrupt):
            found = take_down(options.name)
            show.say(f"lab {options.name} {'removed' if found else 'was not up'}")
            return 0
        return 130
    before = Host.look(options.name)
    try:
        asyncio.run(_main(show, name=options.name, keep=options.keep))
    except LabError as error:
        show.check(False, str(error))
    except (KeyboardInterrupt, asyncio.CancelledError):
        show.console.print(Text("\n    interrupted", "yellow"))
        show.failures += 1
    if not options.keep or show.failures:
        left = Host.look(options.name).beyond(before)
        show.check(not left, "nothing is left behind" + "".join(f"\n      {thing}" for thing in left))
    verdict = ("bold green", "every check held") if not show.failures else ("bold red", f"{show.failures} failed")
    show.console.print(Text(f"\n    {show.checks} checks: {verdict[1]}", verdict[0]))
    return 1 if show.failures else 0


if __name__ == "__main__":
    sys.exit(main())
