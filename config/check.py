"""Checks of one value against another, for a configuration whose values are each valid by themselves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import combinations

from config import prefix
from config.check_peers import check_peers, check_policy
from config.model import BLOCK_SIZES, Config, Mesh, Peer, Pool
from config.password import read_password
from config.prefix import NAMES, Family
from config.problems import Location, Problem
from config.store import Store

# Not for containers, and why (IANA special-purpose address registries)
_RESERVED = {
    "0.0.0.0/8": "this network",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
    "::/96": "unspecified and loopback",
    "::ffff:0:0/96": "IPv4-mapped",
    "fe80::/10": "link-local",
    "ff00::/8": "multicast",
}

_NO_NEXT_HOPS = {
    "0.0.0.0/8": "this network",
    "127.0.0.0/8": "loopback",
    "224.0.0.0/3": "multicast and reserved",
    "::/127": "unspecified and loopback",
    "fe80::/10": "link-local: such a next hop brings its interface along",
    "ff00::/8": "multicast",
}

RECLAIM_MARGIN = 3
"""Seconds, and a tenth of the time itself, for clocks that run apart and for withdrawals on their way."""


def check(config: Config) -> Iterator[Problem]:
    """Yield what keeps a configuration from being used; reads the password files of this node's peers."""
    yield from _pools(config)
    yield from _advertise(config)
    yield from check_peers(config)
    yield from _paths(config)
    yield from _onlink(config)
    yield from _resilient(config)
    yield from _store(config.store)
    yield from _mesh(config)
    yield from _reclaim(config)


def warnings(config: Config) -> Iterator[Problem]:
    """Yield what is allowed and yet hardly meant."""
    for name, peer in config.peers.items():
        here: Location = ("peers", name)
        if peer.remote_as.external(config.node.asn):
            for key, policy, direction in (
                ("import", peer.import_policy, "nothing is accepted from it"),
                ("export", peer.export_policy, "nothing is advertised to it"),
            ):
                if policy is None:
                    text = f"is missing on an eBGP peer, so {direction} (RFC 8212); say accept, reject or a policy"
                    yield Problem((*here, key), text)
            for index, rule in enumerate(peer.export_policy.rules if peer.export_policy else ()):
                if rule.set.local_pref is not None:
                    where = (*here, "export", "rules", index, "set", "localPref")
                    yield Problem(where, "has no effect on an eBGP peer (RFC 4271 section 5.1.5); leave it out")
        for direction, policy in (("import", peer.import_policy), ("export", peer.export_policy)):
            for index, rule in enumerate(policy.rules if policy else ()):
                if rule.action == "reject" and rule.set.model_fields_set:
                    text = "has no effect, as the rule rejects; leave it out"
                    yield Problem((*here, direction, "rules", index, "set"), text)
        for pool, its in config.pools.items():
            around = peer.listen_range if peer.password_file is None else None
            if around is not None and _overlap(ip_network(around), ip_network(its.cidr)):
                text = f"overlaps pool {pool} ({its.cidr}), so containers may become neighbours; give it a passwordFile"
                yield Problem((*here, "listenRange"), text)
    if config.pools and not config.pools_here():
        yield Problem(("pools",), "holds no pool for this node (no `nodes` selector matches its labels): no containers")
    if config.peers and not config.peers_here():
        text = "holds no peer for this node (no `nodes` selector matches its labels): nothing is advertised"
        yield Problem(("peers",), text)


def overlaps_with_subnets(config: Config, subnets: Iterable[str], lent: Iterable[str] = ()) -> list[Problem]:
    """Return a problem for every pool of this node that overlaps one of the node's own subnets.

    ``subnets`` are prefixes such as ``"10.1.1.0/24"``; host bits are ignored, so a kernel's address serves as it is.
    ``lent`` are blocks out of which other plugins address their links: what lies in one of them is as it should be.
    """
    used = list(lent)
    given = (ip_network(subnet, strict=False) for subnet in subnets)
    own = [subnet for subnet in given if not any(_within(str(subnet), block) for block in used)]
    return [
        Problem(
            ("pools", name, "cidr"),
            f"{pool.cidr} overlaps {subnet}, a subnet of this node, must be addresses that no link uses",
        )
        for name, pool in config.pools_here().items()
        for subnet in own
        if _overlap(ip_network(pool.cidr), subnet)
    ]


def _pools(config: Config) -> Iterator[Problem]:
    for name, pool in config.pools.items():
        yield from _block_size(("pools", name, "blockSize"), pool)
        yield from _split(("pools", name, "splitBy"), pool)
        for index, reservation in enumerate(pool.reservations):
            if not _within(reservation, pool.cidr):
                text = f"is {reservation}, must be a part of the pool, {pool.cidr}"
                yield Problem(("pools", name, "reservations", index), text)
        for reserved, use in _RESERVED.items():
            if _overlap(ip_network(pool.cidr), ip_network(reserved)):
                text = f"{pool.cidr} overlaps {reserved} ({use}), must be addresses that containers may use"
                yield Problem(("pools", name, "cidr"), text)
    for name, pool in config.pools_here().items():
        if pool.split_by is not None and pool.split_by.label not in config.node.labels:
            text = f"is {pool.split_by.label}, which is no label of this node: must be one, or add it to node.labels"
            yield Problem(("pools", name, "splitBy", "label"), text)
    for (one, first), (other, second) in combinations(config.pools.items(), 2):
        if _overlap(ip_network(first.cidr), ip_network(second.cidr)):
            text = f"{second.cidr} overlaps pool {one} ({first.cidr}), must be addresses of this pool alone"
            yield Problem(("pools", other, "cidr"), text)


def _block_size(location: Location, pool: Pool) -> Iterator[Problem]:
    sizes, length = BLOCK_SIZES[pool.family], pool.prefix[0]
    low, high = max(sizes.start, length), sizes.stop - 1
    if low > high:
        text = f"cannot be met: {pool.cidr} is smaller than a block, must be {high} or less after the slash"
        yield Problem((*location[:-1], "cidr"), text)
    elif pool.block_size not in range(low, high + 1):
        why = f"not shorter than the pool's own /{length}" if low == length else f"{NAMES[pool.family]} blocks"
        yield Problem(location, f"is {pool.block_size}, must be {low} to {high} ({why})")


def _split(location: Location, pool: Pool) -> Iterator[Problem]:
    if pool.split_by is None:
        return
    low, high = pool.prefix[0], pool.block_size - 1
    if pool.split_by.size not in range(low, high + 1):
        right = (
            f"must be {low} (the pool) to {high} (two blocks)" if low <= high else "must be left out: it is one block"
        )
        yield Problem((*location, "size"), f"is {pool.split_by.size}, {right}")


def _advertise(config: Config) -> Iterator[Problem]:
    for index, text in enumerate(config.advertise):
        if text in config.advertise[:index]:
            yield Problem(("advertise", index), f"{text} is given twice, must be given once: remove one")


def _paths(config: Config) -> Iterator[Problem]:
    if config.api.socket == config.cni.socket:
        text = f"{config.api.socket} is the path of cni.socket too, must be a socket of its own"
        yield Problem(("api", "socket"), text)
    has_ipv6 = any(pool.family == 6 for pool in config.pools.values())
    if config.cni.mtu != "auto" and config.cni.mtu < 1280 and has_ipv6:
        text = f"is {config.cni.mtu}, must be 1280 or more with an IPv6 pool (RFC 8200 section 5)"
        yield Problem(("cni", "mtu"), text)


def _onlink(config: Config) -> Iterator[Problem]:
    for text in config.routes.onlink:
        for unfit, use in _NO_NEXT_HOPS.items():
            if _within(text, unfit):
                yield Problem(("routes", "onlink", text), f"lies in {unfit} ({use}), must be where next hops may be")


def _resilient(config: Config) -> Iterator[Problem]:
    resilient, paths = config.routes.resilient, config.bgp.max_paths
    if resilient is not None and resilient.buckets < paths:
        text = f"is {resilient.buckets}, must be {paths} (bgp.maxPaths) or more: every next hop needs a bucket"
        yield Problem(("routes", "resilient", "buckets"), text)


def _mesh(config: Config) -> Iterator[Problem]:
    if not config.mesh_here():
        return
    if not config.node.addresses:
        yield Problem(("node", "addresses"), "is missing, must be where the other nodes of the mesh reach this one")
    if not config.bgp.listen:
        yield Problem(
            ("bgp", "listen"), "is empty, must be an address: of two nodes of a mesh either may have to listen"
        )
    for name, mesh in config.mesh_here().items():
        if mesh.password_file:
            try:
                read_password(mesh.password_file)
            except ValueError as error:
                yield Problem(("mesh", name, "passwordFile"), str(error))
        for direction, policy in (("import", mesh.import_policy), ("export", mesh.export_policy)):
            if policy:
                yield from check_policy(("mesh", name, direction), policy)


def _reclaim(config: Config) -> Iterator[Problem]:
    """Yield what makes automatic reclaim unsafe: a block must be seen nowhere before it can be another node's.

    A node that is cut off notices after ``fenceAfter``; one that hangs or dies a moment before that is found out after
    the hold time, and its peers keep its routes for as long as a restart may take (RFC 4724).
    """
    ipam, at = config.ipam, ("ipam",)
    fence = ipam.fence_seconds
    if fence is None or ipam.reclaim_after == "never":
        if ipam.fence_after is not None:
            yield Problem((*at, "fenceAfter"), "is given without ipam.reclaimAfter, must be left out, or both given")
        return
    if fence < ipam.lease:
        text = f"is {fence}, must be {ipam.lease} (ipam.lease) or more: a node that is merely late would be fenced"
        yield Problem((*at, "fenceAfter"), text)
    sessions: list[tuple[str, str, Peer | Mesh]] = [("peers", name, peer) for name, peer in config.peers_here().items()]
    sessions += [("mesh", name, mesh) for name, mesh in config.mesh_here().items()]
    for kind, name, session in sessions:
        if session.hold_time == 0:
            text = "is 0, so that a dead node goes unnoticed, must be 3 or more with ipam.reclaimAfter"
            yield Problem((kind, name, "holdTime"), text)
    hold = max((session.hold_time for _, _, session in sessions), default=0)
    restart = config.bgp.graceful_restart
    kept = restart.restart_time + restart.deferral_time if restart.enabled and sessions else 0
    seen = fence + hold + kept
    least = seen + RECLAIM_MARGIN + seen // 10
    if ipam.reclaim_after < least:
        yield Problem(
            (*at, "reclaimAfter"),
            f"is {ipam.reclaim_after}, must be {least} or more: this node's blocks may be seen for {seen} s "
            f"(fenceAfter {fence}, longest holdTime {hold}, gracefulRestart restartTime and deferralTime {kept}), and "
            f"a margin of {least - seen} s is kept",
        )


def _store(store: Store) -> Iterator[Problem]:
    at: Location = ("store",)
    extras = ("tls", "ca", "certificate", "key", "user", "passwordFile")
    if store.place.scheme == "sqlite":
        if store.model_fields_set - {"url"}:
            yield Problem(at, f"is a SQLite file with one of {', '.join(extras)}, must be its URL alone")
        return
    for one, other, first, second in (
        ("certificate", "key", store.certificate, store.key),
        ("user", "passwordFile", store.user, store.password_file),
    ):
        if (first is None) != (second is None):
            given, lacking = (one, other) if second is None else (other, one)
            yield Problem((*at, lacking), f"is missing, must be given together with {given}")
    for key, path in (("ca", store.ca), ("certificate", store.certificate), ("key", store.key)):
        if path is not None and not os.path.isfile(path):
            yield Problem((*at, key), f'is "{path}", which is no file, must be a PEM file')
    if store.password_file is not None:
        try:
            read_password(store.password_file)
        except ValueError as error:
            yield Problem((*at, "passwordFile"), str(error))


def _overlap(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    family: Family = 4 if one.version == 4 else 6
    if other.version != family:
        return False
    first, second = prefix.parse(str(one))[1], prefix.parse(str(other))[1]
    return prefix.contains(first, second) or prefix.contains(second, first)


def _within(inner: str, outer: str) -> bool:
    (family, wire), (of, pool) = prefix.parse(inner), prefix.parse(outer)
    return family == of and prefix.contains(pool, wire)
