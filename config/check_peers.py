"""Checks of peers, listen ranges and their policies, for values that are each valid by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from itertools import combinations, permutations

from config.model import Config, Peer
from config.password import read_password
from config.policy import Policy, Rule
from config.problems import Location, Problem
from config.values import address_with_device

DIALLED_ONLY = {"port": "port", "local_address": "localAddress", "passive": "passive", "connect_retry": "connectRetry"}
"""Keys of those that podroute may connect to, by field."""


def check_peers(config: Config) -> Iterator[Problem]:
    """Yield what keeps peers and listen ranges from being used; reads the password files of this node's."""
    here = config.peers_here()
    for name, peer in config.peers.items():
        at: Location = ("peers", name)
        if len(set(peer.families)) != len(peer.families):
            yield Problem((*at, "families"), "names a family twice, must name each once")
        yield from _range(at, peer, config) if peer.listen_range else _one(at, peer, config)
        if peer.password_file and name in here:
            try:
                read_password(peer.password_file)
            except ValueError as error:
                yield Problem((*at, "passwordFile"), str(error))
        if peer.multihop is not None and peer.ttl_security is not None:
            text = f"is {peer.multihop} beside ttlSecurity, which sends with TTL 255, must be left out, or ttlSecurity"
            yield Problem((*at, "multihop"), text)
        if peer.route_reflector_client and peer.remote_as.external(config.node.asn):
            text = (
                f"is true for a peer in AS {peer.remote_as}, must be false: clients are in our own AS {config.node.asn}"
            )
            yield Problem((*at, "routeReflectorClient"), text)
        for direction, policy in (("import", peer.import_policy), ("export", peer.export_policy)):
            if policy:
                yield from check_policy((*at, direction), policy)
    yield from _twice(config)
    yield from _passwords_inside_ranges(config)


def _one(at: Location, peer: Peer, config: Config) -> Iterator[Problem]:
    if peer.address is None:
        text = 'is missing, must be the address of the peer such as "10.1.1.1", or listenRange a prefix'
        yield Problem((*at, "address"), text)
        return
    if peer.remote_as.only is None:
        text = f"is {peer.remote_as}, must be one AS number: only a listenRange takes several"
        yield Problem((*at, "as"), text)
    if peer.listen_limit is not None:
        yield Problem((*at, "listenLimit"), "is given for one address, must be left out: it limits a listenRange")
    yield from _local_address(at, peer.address, peer.local_address)
    yield from _in_pools((*at, "address"), peer.address, config)
    if peer.local_address:
        yield from _in_pools((*at, "localAddress"), peer.local_address, config)
    if peer.passive and not config.bgp.listen:
        text = "is true while bgp.listen is empty, so nobody would connect; must be false, or bgp.listen an address"
        yield Problem((*at, "passive"), text)


def _range(at: Location, peer: Peer, config: Config) -> Iterator[Problem]:
    if peer.address is not None:
        yield Problem((*at, "listenRange"), "is given beside an address, must be one of the two: remove the other")
    for field, key in DIALLED_ONLY.items():
        if field in peer.model_fields_set:
            yield Problem((*at, key), "is given for a listenRange, to which nobody connects; must be left out")
    own = config.node.asn
    if peer.remote_as.kind == "listed" and peer.remote_as.only != own and peer.remote_as.admits(own, own):
        text = (
            f"is {peer.remote_as}, must be AS numbers without our own {own}, or internal: such peers need other rules"
        )
        yield Problem((*at, "as"), text)
    if not config.bgp.listen:
        text = "is given while bgp.listen is empty, so nobody would connect; bgp.listen must be an address"
        yield Problem((*at, "listenRange"), text)


def _local_address(at: Location, peer_address: str, local_address: str | None) -> Iterator[Problem]:
    if local_address is None:
        return
    name = {4: "an IPv4", 6: "an IPv6"}
    (peer, peer_device), (local, device) = address_with_device(peer_address), address_with_device(local_address)
    if local.version != peer.version:
        text = f"{local_address} is {name[local.version]} address, must be {name[peer.version]} one like the peer's"
        yield Problem((*at, "localAddress"), text)
    elif local.packed == peer.packed:
        text = f"{local_address} is the peer's own address, must be an address of this node"
        yield Problem((*at, "localAddress"), text)
    elif device and peer_device and device != peer_device:
        text = f"{local_address} is on {device}, must be on {peer_device} like the peer's"
        yield Problem((*at, "localAddress"), text)


def _twice(config: Config) -> Iterator[Problem]:
    for (one, first), (other, second) in combinations(config.peers.items(), 2):
        for key, mine, its in (
            ("address", second.address, first.address),
            ("listenRange", second.listen_range, first.listen_range),
        ):
            if mine is not None and mine == its and _may_both_apply(first.nodes, second.nodes):
                what = "address" if key == "address" else "range"
                text = f"{mine} is the {what} of peer {one} too, must be given once: remove one of the two"
                yield Problem(("peers", other, key), text)


def _passwords_inside_ranges(config: Config) -> Iterator[Problem]:
    """Whoever lies inside a range with a password must have one: the kernel knows no exception from a prefix's key."""
    for (name, peer), (outer, range_) in permutations(config.peers.items(), 2):
        if range_.listen_range is None or range_.password_file is None or peer.password_file is not None:
            continue
        if _inside(peer, range_.listen_range) and _may_both_apply(peer.nodes, range_.nodes):
            text = (
                f"is missing inside the range of {outer}, which has a password, must be given: TCP would drop all else"
            )
            yield Problem(("peers", name, "passwordFile"), text)


def _inside(peer: Peer, outer: str) -> bool:
    around = ip_network(outer)
    if peer.address is not None:
        return address_with_device(peer.address)[0] in around
    inner = ip_network(peer.listen_range or outer)
    return inner.version == around.version and inner.prefixlen > around.prefixlen and inner[0] in around


def _in_pools(location: Location, address: str, config: Config) -> Iterator[Problem]:
    bare = ip_address(address.partition("%")[0])
    for name, pool in config.pools.items():
        if bare in ip_network(pool.cidr):
            text = f"{address} lies in pool {name} ({pool.cidr}), must be outside of every pool"
            yield Problem(location, text)


def check_policy(at: Location, policy: Policy) -> Iterator[Problem]:
    """Yield what is wrong with the policy at ``at``, whose last part is its direction."""
    names: set[str] = set()
    for index, rule in enumerate(policy.rules):
        where: Location = (*at, "rules", index)
        if rule.name in names:
            yield Problem((*where, "name"), f'is "{rule.name}" again, must be unique within the policy')
        names.add(rule.name)
        yield from _families(where, rule)
        if at[-1] == "import":
            yield from _import_only(where, rule)
        elif rule.set.weight:
            text = "is given in an export policy, must be in the import policy: it does not leave this node"
            yield Problem((*where, "set", "weight"), text)


def _families(where: Location, rule: Rule) -> Iterator[Problem]:
    for index, item in enumerate(rule.match.prefixes):
        if rule.match.family_number not in (None, item.family):
            text = f'is "{item}" under match.family {rule.match.family}, so never matches; must be of that family'
            yield Problem((*where, "match", "prefixes", index), text)


def _import_only(where: Location, rule: Rule) -> Iterator[Problem]:
    if rule.match.source:
        text = "is given in an import policy, where every route is learned; must be left out"
        yield Problem((*where, "match", "source"), text)
    if rule.set.next_hop:
        yield Problem((*where, "set", "nextHop"), "is given in an import policy, must be in the export policy")


def _may_both_apply(one: dict[str, str], other: dict[str, str]) -> bool:
    return all(other.get(label, value) == value for label, value in one.items())
