"""Racks whose addresses lie together: agents, FRR as ToR of each rack, and a spine that sees one prefix a rack."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.agents import PATIENCE, Agent, agents
from tests.frr import Frr
from tests.kernel.test_agent_life import add_pod
from tests.netns import Netns, link

pytestmark = pytest.mark.root

POOL = "10.64.0.0/22"
PARTS = [f"10.64.{n}.0/24" for n in range(4)]


class Fabric:
    """Nodes n1 and n2 at tor1, n3 at tor2, both ToRs at the spine; the nodes' pool is split by rack."""

    def __init__(self, spine: Frr, tors: dict[str, Frr], places: dict[str, Netns], nodes: dict[str, Agent]) -> None:
        self.spine, self.tors, self.nodes = spine, tors, nodes
        self.places = places
        """The ToRs' namespaces."""

    async def seen(self, router: Frr, wanted: Callable[[dict[str, set[str]]], bool]) -> dict[str, set[str]]:
        """Return a router's routes to the pool, with their next hops, once they are as wanted."""
        found: dict[str, set[str]] = {}
        try:
            async with asyncio.timeout(PATIENCE):
                while True:  # FRR tells nobody when it has taken an UPDATE
                    shown = await asyncio.to_thread(router.show, "bgp ipv4 unicast")
                    routes = {text: paths for text, paths in shown["routes"].items() if text.startswith("10.64.")}
                    found = {text: {p["nexthops"][0]["ip"] for p in paths} for text, paths in routes.items()}
                    if wanted(found):
                        return found
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"the router has {found}") from None

    async def parts(self) -> dict[str, str]:
        """Return each rack's part of the pool."""
        (pool,) = await asyncio.to_thread(self.nodes["n1"].client.get, "/v1/ipam/pools")
        return {value: text for text, value in pool["superBlocks"].items()}


def tor(asn: int, spine: str, nodes: Iterable[tuple[str, int]], *, summarise: bool) -> str:
    """Return a ToR's configuration; with ``summarise`` it makes the aggregates, else it passes on those it is told."""
    lines = [f"router bgp {asn}", " no bgp ebgp-requires-policy", f" bgp router-id {spine[:-1]}9"]
    lines += [f" neighbor {spine} remote-as 65000"]
    lines += [f" neighbor {address} remote-as {number}" for address, number in nodes]
    lines += [" address-family ipv4 unicast"]
    if summarise:
        lines += [f"  aggregate-address {part} summary-only" for part in PARTS]
    else:
        lines += [f"  neighbor {spine} prefix-list parts out"]
    lines += [" exit-address-family", "exit", f"ip prefix-list parts permit {POOL} le 24"]
    return "\n".join(lines)


@asynccontextmanager
async def fabric(make: Callable[[], Netns], *, aggregate: str) -> AsyncIterator[Fabric]:
    spine, tors = make(), {"tor1": make(), "tor2": make()}
    wiring = {"n1": ("tor1", 1), "n2": ("tor1", 2), "n3": ("tor2", 1)}
    routers: list[Frr] = []
    async with agents() as (directory, running):
        try:
            for number, ns in enumerate(tors.values(), 1):
                link(ns, "spine", spine, f"tor{number}")
                ns.run("ip", "addr", "add", f"10.9.{number}.2/24", "dev", "spine")
                spine.run("ip", "addr", "add", f"10.9.{number}.1/24", "dev", f"tor{number}")
            for ns in (spine, *tors.values()):
                ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
            for number, (name, (at, port)) in enumerate(wiring.items(), 1):
                ns, net = make(), f"10.{at[-1]}.{port}"
                link(ns, "eth0", tors[at], f"port{port}")
                ns.run("ip", "addr", "add", f"{net}.2/24", "dev", "eth0")
                tors[at].run("ip", "addr", "add", f"{net}.1/24", "dev", f"port{port}")
                asn, rack = 4200000000 + number, f"r{at[-1]}"
                split = {"label": "rack", "size": 24, "aggregate": aggregate}
                agent = Agent(
                    ns,
                    directory,
                    name,
                    asn,
                    node={"name": name, "as": asn, "routerId": f"192.0.2.{number}", "labels": {"rack": rack}},
                    pools={"p": {"cidr": POOL, "blockSize": 26, "splitBy": split}},
                    peers={"tor": {"address": f"{net}.1", "as": 65010 + int(at[-1]), "import": "accept"}},
                    onStop={"mode": "drain", "drainTime": 0},
                )
                agent.config["peers"]["tor"]["export"] = "accept"
                running.append(agent)
            summarise = aggregate == "none"
            lines = ["router bgp 65000", " no bgp ebgp-requires-policy", " bgp router-id 10.9.0.1"]
            lines += [f" neighbor 10.9.{n}.2 remote-as {65010 + n}" for n in (1, 2)]
            routers.append(Frr(spine, "\n".join(lines)))
            at1 = [("10.1.1.2", 4200000001), ("10.1.2.2", 4200000002)]
            routers.append(Frr(tors["tor1"], tor(65011, "10.9.1.1", at1, summarise=summarise)))
            routers.append(Frr(tors["tor2"], tor(65012, "10.9.2.1", [("10.2.1.2", 4200000003)], summarise=summarise)))
            await asyncio.gather(*(agent.start() for agent in running))
            await asyncio.gather(*(agent.converged() for agent in running))
            yield Fabric(routers[0], dict(zip(tors, routers[1:], strict=True)), tors, {a.name: a for a in running})
        finally:
            for router in routers:
                router.close()


async def test_the_spine_carries_one_aggregate_a_rack_made_by_the_tors(netns: Callable[[], Netns]) -> None:
    async with fabric(netns, aggregate="none") as lab:
        parts = await lab.parts()
        assert set(parts) == {"r1", "r2"}
        await lab.seen(lab.spine, lambda found: set(found) == set(parts.values()))
        one, _ = add_pod(lab.nodes["n1"], netns, "one")
        two, (address,) = add_pod(lab.nodes["n2"], netns, "two")
        _, (far,) = add_pod(lab.nodes["n3"], netns, "far")
        await reaches(one, far)
        await reaches(two, far)
        await reaches(one, address)
        # Its contributors leave one by one
        await lab.nodes["n1"].stop()
        await lab.seen(lab.tors["tor1"], lambda found: found.get(parts["r1"]) is not None and len(found) == 3)
        assert set(await lab.seen(lab.spine, lambda found: True)) == set(parts.values())
        await lab.nodes["n2"].stop()
        await lab.seen(lab.spine, lambda found: set(found) == {parts["r2"]})


async def test_the_agents_announce_the_aggregate_as_long_as_they_contribute(netns: Callable[[], Netns]) -> None:
    async with fabric(netns, aggregate="beside") as lab:
        parts = await lab.parts()
        n1, n3 = lab.nodes["n1"], lab.nodes["n3"]
        await lab.seen(lab.spine, lambda found: set(found) == set(parts.values()))
        # At the ToR: two blocks, and the aggregate by both nodes
        both = {"10.1.1.2", "10.1.2.2"}
        await lab.seen(lab.tors["tor1"], lambda found: len(found) == 4 and found.get(parts["r1"]) == both)
        one, _ = add_pod(n1, netns, "one")
        _, (far,) = add_pod(n3, netns, "far")
        await reaches(one, far)
        # Free addresses of the rack end here, not in a loop over a default route
        routes = n1.ns.run("ip", "route")
        assert f"unreachable {parts['r1']} proto 201" in routes
        # A node with a part of its own can do without its block
        (block,) = [b["prefix"] for b in await n3.get("/v1/blocks")]
        set_aggregate(n1, "only")
        await lab.seen(lab.tors["tor2"], lambda found: by(found, "10.2.1.2") == {parts["r2"]})
        await n3.until("'advertisedTo': ['tor']", "/v1/blocks")
        await reaches(lab.places["tor2"], far)  # the other rack has two nodes, and answers would go to either
        set_aggregate(n1, "none")
        await lab.seen(lab.tors["tor2"], lambda found: by(found, "10.2.1.2") == {block})
        await lab.seen(lab.spine, lambda found: not found)
        async with asyncio.timeout(PATIENCE):
            while f"unreachable {parts['r1']} " in n1.ns.run("ip", "route"):  # noqa: ASYNC110 (the kernel)
                await asyncio.sleep(0.05)
        set_aggregate(n1, "beside")
        await lab.seen(lab.spine, lambda found: set(found) == set(parts.values()))
        # A pool that is not announced has no aggregate either
        change(n1, "notAdvertised=true")
        await lab.seen(lab.tors["tor1"], lambda found: not found)
        change(n1, "notAdvertised=false")
        await lab.seen(lab.spine, lambda found: set(found) == set(parts.values()))
        await n3.stop()
        await lab.seen(lab.spine, lambda found: set(found) == {parts["r1"]})


async def reaches(pod: Netns, address: str) -> None:
    """Wait until a pod reaches another: a route that a router tells of may be a moment from its kernel."""
    async with asyncio.timeout(PATIENCE):
        while " 0% packet loss" not in await asyncio.to_thread(  # noqa: ASYNC110 (kernels of other namespaces)
            pod.run, "ping", "-c1", "-W1", address, check=False
        ):
            await asyncio.sleep(0.1)


def set_aggregate(agent: Agent, mode: str) -> None:
    assert change(agent, f"aggregate={mode}")["splitBy"]["aggregate"] == mode


def change(agent: Agent, what: str) -> dict[str, Any]:
    done = agent.command("ipam", "pools", "set", "p", what, "--json")
    assert done.returncode == 0, done.stderr
    (pool,) = json.loads(done.stdout)
    return dict(pool)


def by(found: dict[str, set[str]], next_hop: str) -> set[str]:
    return {text for text, hops in found.items() if next_hop in hops}
