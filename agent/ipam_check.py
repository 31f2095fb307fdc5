"""`podroute ipam check`: the ledger, the store's block records and the kernel compared, each disagreement named."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.node import Node
from cni.hooks import Handle
from cni.podnet import HostLink
from config import prefix
from config.prefix import Family
from ipam import cluster
from ipam.errors import IpamError
from ipam.ledger import Attachment
from ipam.loans import NETWORK as LOANS
from ipam.pool import span
from ipam.records import Block
from routes.pods import PodRoute, pod_routes

Repair = Literal["compare", "release", "remove-link", "route", "none"]


@dataclass(frozen=True, slots=True)
class Disagreement:
    kind: str
    text: str
    """What is wrong, and what is done about it."""
    repair: Repair = "none"
    subject: object = None
    """What the repair is done to."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What there is, on all sides."""

    uuid: str
    held: Sequence[Block]
    records: Sequence[Block] | None
    """All of the cluster; None: the store did not give them."""
    attachments: Sequence[Attachment]
    links: Sequence[HostLink]
    routes: Sequence[PodRoute]


@dataclass(frozen=True, slots=True)
class Checked:
    found: list[Disagreement]
    done: list[str]
    problem: str
    """Why the store's records were not compared; empty: they were."""


async def check(node: Node, *, fix: bool) -> Checked:
    """Return what disagrees, and with ``fix`` what was done. A call under way is not mistaken for a disagreement."""
    picture, problem = await _look(node)
    found = list(compare(picture))
    if found:  # what a second look does not find again was on its way
        await asyncio.sleep(0.2)
        picture, second = await _look(node)
        again = set(found_keys(compare(picture)))
        found, problem = [one for one in found if (one.kind, one.text) in again], problem or second
    return Checked(found, [await _repair(node, one) for one in found if one.repair != "none"] if fix else [], problem)


def found_keys(found: Iterable[Disagreement]) -> list[tuple[str, str]]:
    return [(one.kind, one.text) for one in found]


async def _look(node: Node) -> tuple[Picture, str]:
    """Return what there is, and why the store's records are not in it."""
    routes = await asyncio.to_thread(pod_routes, node.config.routes.table)
    links = await node.cni.verbs.links()
    records, problem = None, ""
    try:
        records = await cluster.blocks(node.ipam.shared())
    except IpamError as error:
        problem = str(error)
    held, attachments = node.ipam.blocks(), await node.ipam.attachments()
    return Picture(node.ipam.identity.uuid, held, records, attachments, links, routes), problem


def compare(picture: Picture) -> Iterator[Disagreement]:
    """Yield each disagreement."""
    if picture.records is not None:
        yield from _blocks(picture, picture.records)
        yield from _loans(picture, picture.records)
        yield from _overlaps(picture.records)
    yield from _containers(picture)


def _blocks(picture: Picture, records: Sequence[Block]) -> Iterator[Disagreement]:
    held = {(block.family, block.prefix): block for block in picture.held}
    stored = {(block.family, block.prefix): block for block in records}
    stored |= {(one.family, one.prefix): one for block in records for one in block.on_loan(picture.uuid)}
    for key, block in stored.items():
        if block.uuid == picture.uuid and key not in held:
            yield Disagreement("unused-block", f"block {block.cidr} is this node's, but it does not use it", "compare")
    for key, block in held.items():
        there = stored.get(key)
        if there is None:
            yield Disagreement("unrecorded-block", f"block {block.cidr} is used here and not in the store", "compare")
        elif there.uuid != picture.uuid:
            text = f"block {block.cidr} is used here and belongs to node {there.owner}"
            yield Disagreement("foreign-block", text, "compare")


def _loans(picture: Picture, records: Sequence[Block]) -> Iterator[Disagreement]:
    """Compare what we have lent: the record is the truth, the ledger keeps the addresses from others."""
    named = {loan.packed: loan.node for block in records if block.uuid == picture.uuid for loan in block.loans}
    kept = {a.packed: one for one in picture.attachments if one.handle.network == LOANS for a in one.assignments}
    for packed, node in named.items():
        if packed not in kept:
            text = f"address {prefix.address_text(packed)} is on loan to node {node}, and the ledger does not keep it"
            yield Disagreement("unkept-loan", text, "compare")
    for packed, one in kept.items():
        if packed not in named:
            text = f"address {prefix.address_text(packed)} is kept for node {one.handle.container_id}, which has it not"
            yield Disagreement("unrecorded-loan", text, "compare")


def _overlaps(records: Iterable[Block]) -> Iterator[Disagreement]:
    last: Block | None = None
    for block in sorted(records, key=lambda one: (one.family, span(one.family, one.prefix))):
        if last and last.family == block.family and prefix.contains(last.prefix, block.prefix):
            text = f"block {block.cidr} of node {block.owner} overlaps {last.cidr} of node {last.owner}"
            yield Disagreement("overlap", f"{text}: drain one of the two nodes")
        else:
            last = block


def _containers(picture: Picture) -> Iterator[Disagreement]:
    held = {(block.family, block.prefix) for block in picture.held}
    links = {link.name: link for link in picture.links}
    routes = {(route.family, route.prefix): route.device for route in picture.routes}
    given: dict[tuple[Family, bytes], str] = {}
    known: set[str] = set()
    for attachment in picture.attachments:
        name, netns = attachment.attributes.get("hostInterface"), attachment.attributes.get("netns")
        who = str(attachment.handle)
        for one in attachment.assignments:
            if (one.family, one.prefix) in given:
                text = f"address {one.address} is given to {given[one.family, one.prefix]} and to {who}"
                yield Disagreement("address-twice", f"{text}: delete one of the two containers")
            given[one.family, one.prefix] = who
            if (one.family, one.block) not in held:
                block = prefix.text(one.family, one.block)
                text = f"{who} uses {one.address} of block {block}, which is not this node's: delete the container"
                yield Disagreement("lost-block", text)
        if not name:
            continue
        known.add(name)
        if name not in links:
            there = "" if netns and os.path.exists(netns) else " and no network namespace"
            text = f"{who} has addresses but no interface {name}{there}"
            yield Disagreement("vanished", text, "release", Handle(*attachment.handle))
            continue
        for one in attachment.assignments:
            device = routes.get((one.family, one.prefix))
            if device != name and (one.family, one.block) in held:
                found = f"leads to {device}, must lead to {name}" if device else f"over {name} is missing"
                text = f"the route to {one.address} of {who} {found}"
                yield Disagreement("route", text, "route", PodRoute(one.family, one.prefix, name))
    for name, link in links.items():
        if name not in known:
            yield Disagreement("stray-interface", f"interface {name} belongs to no container", "remove-link", link)
    for (family, wire), device in routes.items():
        if (family, wire) not in given and device in known:
            text = f"the route to {prefix.text(family, wire)} over {device} is for an address that nobody has"
            yield Disagreement("stray-route", text, "route", PodRoute(family, wire, ""))


async def _repair(node: Node, found: Disagreement) -> str:
    match found.repair, found.subject:
        case "release", Handle() as handle:
            done = await node.cni.verbs.remove_gone(handle)
            return f"{handle}: addresses released" if done else f"{handle}: is there again, left alone"
        case "remove-link", HostLink() as link:
            done = await node.cni.verbs.remove_stray(link)
            return f"interface {link.name} removed" if done else f"interface {link.name} is in use now, left alone"
        case "route", PodRoute() as route:
            if route.device:
                node.fib.expect_pod(route.family, route.prefix, route.device)
            else:
                node.fib.forget_pod(route.family, route.prefix)
            await node.fib.drained()
            return f"route to {prefix.text(route.family, route.prefix)} {'set' if route.device else 'removed'}"
        case _:
            node.ipam.compare_again()
            return "blocks are compared with the store again"
