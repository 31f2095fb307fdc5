"""What a running lab's routers and agents say about their sessions and routes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from cni.podnet import is_host_ifname
from labs.errors import LabError
from labs.lab import Lab
from labs.node import Node
from labs.waiting import together

FAMILIES = ("-4", "-6")
_DAEMONS = ("bgp", "bird", "201")
"""Protocols of their routes, as ip(8) names them."""


@dataclass(frozen=True, slots=True)
class Session:
    """One node's view of one BGP session."""

    peer: str
    """The peer's address."""
    state: str

    @property
    def established(self) -> bool:
        return self.state == "Established"


@dataclass(frozen=True, slots=True)
class NodeState:
    name: str
    role: str
    """podroute, FRR, BIRD, or empty."""
    asn: str = ""
    sessions: tuple[Session, ...] = ()
    addresses: tuple[str, ...] = ()
    learned: tuple[int, int] = (0, 0)
    """Routes of routing daemons in the kernel: IPv4, IPv6."""
    problem: str = ""


async def observe(net: Lab) -> list[NodeState]:
    """Ask every node of a lab at once. What a node does not answer is its ``problem``."""
    return await together(_observe(node) for node in net.nodes.values())


async def _observe(node: Node) -> NodeState:
    role = role_of(node)
    if not node.namespaces.alive():
        return NodeState(node.name, role, problem="gone")
    try:
        asn, sessions = await _ASK[role](node)
        problem = ""
    except (LabError, KeyError, ValueError) as error:
        asn, sessions, problem = "", (), str(error)
    links = json.loads((await node.run("ip", "-j", "addr")).stdout or "[]")
    addresses = tuple(address["local"] for link in links for address in link.get("addr_info", ()) if "local" in address)
    learned = [await _learned(node, family) for family in FAMILIES]
    return NodeState(node.name, role, asn, sessions, addresses, (learned[0], learned[1]), problem)


def role_of(node: Node) -> str:
    """Return what routes in a node, by its sockets: podroute, FRR, BIRD, or empty."""
    if node.agent.present:
        return "podroute"
    if (node.root / "run/frr/bgpd.vty").exists():
        return "FRR"
    return "BIRD" if (node.root / "run/bird/bird.ctl").exists() else ""


async def _learned(node: Node, family: str) -> int:
    return count_learned((await node.run("ip", "-j", family, "route", "show", check=False)).stdout)


def count_learned(text: str) -> int:
    """Count the routes of routing daemons in what ``ip -j route`` printed."""
    return sum(route.get("protocol") in _DAEMONS and not _own(route) for route in json.loads(text or "[]"))


def _own(route: dict[str, Any]) -> bool:
    """A block's cover and pods' host routes are the node's own, not learned."""
    return route.get("type") == "unreachable" or is_host_ifname(str(route.get("dev", "")))


async def _podroute(node: Node) -> tuple[str, tuple[Session, ...]]:
    status = await node.agent.get("/v1/status")
    peers = await node.agent.get("/v1/peers")
    return str(status["node"]["as"]), tuple(Session(peer["address"], peer["state"]) for peer in peers)


async def _frr(node: Node) -> tuple[str, tuple[Session, ...]]:
    found: dict[str, Session] = {}
    asn = ""
    for family in (await node.frr_json("show bgp summary json")).values():
        asn = str(family.get("as", asn))
        for address, peer in family.get("peers", {}).items():
            found[address] = Session(address, peer["state"])
    return asn, tuple(found.values())


async def _bird(node: Node) -> tuple[str, tuple[Session, ...]]:
    return parse_bird((await node.run("birdc", "show", "protocols", "all")).stdout)


def parse_bird(text: str) -> tuple[str, tuple[Session, ...]]:
    """Return AS and sessions out of ``show protocols all`` of BIRD 2."""
    sessions = []
    asn = ""
    for part in re.split(r"\n(?=\S)", text):
        state = re.search(r"BGP state:\s+(\S+)", part)
        address = re.search(r"Neighbor address:\s+(\S+)", part)
        if state and address:
            sessions.append(Session(address[1].partition("%")[0], state[1]))
            own = re.search(r"Local AS:\s+(\d+)", part)
            asn = own[1] if own else asn
    return asn, tuple(sessions)


async def _nothing(_: Node) -> tuple[str, tuple[Session, ...]]:
    return "", ()


_ASK = {"podroute": _podroute, "FRR": _frr, "BIRD": _bird, "": _nothing}
