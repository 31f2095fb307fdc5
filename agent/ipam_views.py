"""Addresses, blocks, pools and nodes as JSON: the cluster's from the store, this node's own from memory."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from typing import Any

from agent.ipam_check import check
from agent.node import Node
from cni.hooks import Handle
from config import prefix
from config.prefix import BITS, NAMES
from ipam import cluster
from ipam.errors import AddressHeldError, AddressNotInPoolError
from ipam.ledger import Attachment
from ipam.loans import NETWORK as LOANS
from ipam.pool import Pool

Json = dict[str, Any]


async def show(node: Node) -> Json:
    """Utilisation per pool and node, as the nodes last said; this node's own as it is."""
    store = node.ipam.shared()
    members = await cluster.members(store)
    claimed: Counter[tuple[str, str]] = Counter((block.pool, block.owner) for block in await cluster.blocks(store))
    used = {member.node.name: dict(member.used) for member in members}
    used[node.config.node.name] = _own_usage(node)
    pools = {pool.name: pool for pool in await cluster.pools(store)}
    return {
        "store": store.url,
        "pools": [
            _pool(pool)
            | {
                "claimed": sum(count for (name, _), count in claimed.items() if name == pool.name),
                "used": sum(by.get(pool.name, 0) for by in used.values()),
            }
            for pool in pools.values()
        ],
        "nodes": [
            {
                "name": member.node.name,
                "alive": member.alive,
                "pool": name,
                "blocks": claimed[name, member.node.name],
                "used": used[member.node.name].get(name, 0),
                "size": claimed[name, member.node.name] * _block_addresses(pool),
            }
            for member in members
            for name, pool in pools.items()
            if claimed[name, member.node.name]
        ],
    }


def picture(node: Node, cidr: str) -> Json:
    """One of this node's blocks, the state of each address and who has it. Raises ValueError, AddressNotInPoolError."""
    family, wire = prefix.parse(cidr)
    cells = node.ipam.picture(family, wire)
    if not cells:
        own = ", ".join(block.cidr for block in node.ipam.blocks()) or "none"
        raise AddressNotInPoolError(f"{cidr} is no block of node {node.config.node.name}; its blocks are: {own}")
    return {"block": cidr, "node": node.config.node.name, "cells": cells}


async def blocks(node: Node, pool: str | None, owner: str | None) -> list[Json]:
    own = {(usage.block.family, usage.block.prefix): usage for usage in node.ipam.usage()}
    return [
        {
            "prefix": block.cidr,
            "family": NAMES[block.family],
            "pool": block.pool,
            "owner": block.owner,
            "generation": block.generation,
            "claimedAt": block.claimed_at,
            "used": mine.used if mine else None,
            "reserved": mine.reserved if mine else None,
            "loans": {prefix.address_text(loan.packed): loan.node for loan in block.loans},
        }
        for block in await cluster.blocks(node.ipam.shared())
        for mine in (own.get((block.family, block.prefix)) if block.uuid == node.ipam.identity.uuid else None,)
        if pool in (None, block.pool) and owner in (None, block.owner)
    ]


async def pools(node: Node) -> list[Json]:
    store = node.ipam.shared()
    supers = await cluster.superblocks(store)
    return [
        _pool(pool) | {"superBlocks": {one.cidr: one.value for one in supers if one.pool == pool.name}}
        for pool in await cluster.pools(store)
    ]


async def set_pool(node: Node, name: str, changes: Json) -> Json:
    return _pool(await cluster.change_pool(node.ipam.shared(), name, **changes))


async def checked(node: Node, *, fix: bool) -> Json:
    checked = await check(node, fix=fix)
    return {
        "node": node.config.node.name,
        "storeProblem": checked.problem or None,
        "disagreements": [
            {"kind": one.kind, "text": one.text, "fixable": one.repair != "none"} for one in checked.found
        ],
        "fixed": checked.done,
    }


async def release(node: Node, address: str, *, force: bool) -> Json:
    """Release what has an address. Raises AddressHeldError where something uses it, unless ``force``."""
    holder = node.ipam.holder(address)
    if holder is None:
        raise AddressNotInPoolError(f"address {address} is not in use on node {node.config.node.name}")
    if holder.handle.network == LOANS:
        raise AddressHeldError(
            f"address {address} is on loan to node {holder.handle.container_id}, which gives it back with its "
            "container: delete that one, or reclaim the node if it is dead"
        )
    if not force:
        _refuse_used(address, holder, {link.name for link in await node.cni.verbs.links()})
    await node.cni.verbs.detach(Handle(*holder.handle))
    return {"released": [one.address for one in holder.assignments], "handle": str(holder.handle)}


def _refuse_used(address: str, holder: Attachment, links: set[str]) -> None:
    """Raise AddressHeldError where a container, or a subnet, uses what is to be released."""
    attributes = holder.attributes
    name, netns = attributes.get("hostInterface"), attributes.get("netns")
    if name in links:
        raise AddressHeldError(
            f"address {address} belongs to {holder.handle}, whose interface {name} is there: delete the container, or "
            "give --force to cut it off"
        )
    if not name and netns and os.path.exists(netns):
        raise AddressHeldError(
            f"address {address} belongs to {holder.handle}, whose network namespace {netns} is there: delete the "
            "container, or give --force where it does not use the address"
        )
    if "reserved" in attributes:
        raise AddressHeldError(
            f"address {address} is kept from containers, as the {attributes['reserved']} address of a subnet: leave "
            "it alone, or give --force where no bridge uses it any more"
        )


async def reclaim(node: Node, name: str, quarantine: int) -> Json:
    taken = await cluster.reclaim(node.ipam.shared(), name, quarantine=quarantine)
    return {"node": name, "quarantine": quarantine, "blocks": [block.cidr for block in taken]}


def _own_usage(node: Node) -> dict[str, int]:
    used: Counter[str] = Counter()
    for usage in node.ipam.usage():
        if not usage.block.lender:  # its owner counts it
            used[usage.block.pool] += usage.used
    return dict(used)


def _pool(pool: Pool) -> Json:
    return {
        "name": pool.name,
        "family": NAMES[pool.family],
        "cidr": pool.cidr,
        "blockSize": pool.block_size,
        "blocks": pool.count,
        "addresses": pool.count * _block_addresses(pool),
        "nodes": pool.nodes,
        "disabled": pool.disabled,
        "manual": pool.manual,
        "notAdvertised": pool.not_advertised,
        "reservations": [prefix.text(pool.family, one) for one in pool.reservations],
        "splitBy": asdict(pool.split) if pool.split else None,
    }


def _block_addresses(pool: Pool) -> int:
    return 1 << (BITS[pool.family] - pool.block_size)
