"""Peers and policies as the file states them, turned into what the speaker takes."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from agent.errors import StartError
from bgp.graceful_restart import RestartSettings
from bgp.policy import Changes, Match, Policy, Rule
from bgp.settings import EVERY_PATH, AddPath, ListenRange, Neighbour, PeerSettings, PrefixLimit
from config import model, prefix
from config import policy as written
from config.communities import community_octets
from config.password import read_password
from ipam.records import NodeRecord


def peer_settings(config: model.Config, name: str, peer: model.Peer) -> Neighbour:
    """Return the settings of one entry of ``peers``. Raises StartError where its password file cannot be read."""
    import_policy, export_policy = config.policies(peer)
    shared: dict[str, Any] = {
        "name": name,
        "import_policy": _policy(import_policy),
        "export_policy": _policy(export_policy),
        "families": peer.family_set,
        "hold_time": peer.hold_time,
        "route_reflector_client": peer.route_reflector_client,
        "add_path": AddPath(peer.add_path.receive, EVERY_PATH if peer.add_path.send == "all" else peer.add_path.send),
        "allow_own_as": peer.allow_own_as,
        "enforce_first_as": peer.enforce_first_as,
        "multihop": peer.multihop,
        "ttl_security": peer.ttl_security,
        "prefix_limit": _limit(peer.max_prefixes) if peer.max_prefixes else None,
        "password": _password(f"peers.{name}", peer.password_file),
    }
    if peer.listen_range is not None:
        family, wire = prefix.parse(peer.listen_range)
        limit = peer.listen_limit or model.LISTEN_LIMIT
        return ListenRange(family=family, prefix=wire, remote_as=peer.remote_as, limit=limit, **shared)
    assert peer.address is not None  # config.check: one of the two
    assert peer.remote_as.only is not None
    return PeerSettings(
        address=peer.address,
        asn=peer.remote_as.only,
        local_address=peer.local_address,
        port=peer.port,
        passive=peer.passive,
        connect_retry=peer.connect_retry,
        **shared,
    )


def mesh_settings(
    config: model.Config,
    name: str,
    mesh: model.Mesh,
    node: NodeRecord,
    ours: str,
    theirs: str,
    password: bytes | None,
) -> PeerSettings:
    """Return the settings of the session with one node of a mesh: the lower address dials."""
    import_policy, export_policy = config.policies(mesh, node.asn)
    export = _policy(export_policy)
    internal = node.asn == config.node.asn
    reflecting = mesh.reflectors and internal and config.bgp.cluster_id is not None
    if reflecting and not export_policy.rules and export.accept:
        export = _REFLECTED
    own, other = ip_address(ours), ip_address(theirs)
    return PeerSettings(
        name=name,
        address=theirs,
        asn=node.asn,
        import_policy=_policy(import_policy),
        export_policy=export,
        local_address=ours,
        port=mesh.port,
        families=frozenset({4 if other.version == 4 else 6}),
        passive=other.packed < own.packed,
        hold_time=mesh.hold_time,
        connect_retry=mesh.connect_retry,
        password=password,
        route_reflector_client=reflecting and not node.cluster_id,
    )


_REFLECTED = Policy(rules=(Rule("reflected", True, Match(sources=frozenset({"learned"}))),), accept=True)
"""What ``export: accept`` is on a route reflector: learned routes go on, too."""


def mesh_password(name: str, mesh: model.Mesh) -> bytes | None:
    """Return the password of the sessions of one entry of ``mesh``. Raises StartError."""
    return _password(f"mesh.{name}", mesh.password_file)


def _password(entry: str, path: str | None) -> bytes | None:
    try:
        return None if path is None else read_password(path)
    except ValueError as error:
        raise StartError(f"{entry}.passwordFile: {error}") from error


def _limit(limit: model.MaxPrefixes) -> PrefixLimit:
    return PrefixLimit(limit.maximum, limit.warning / 100, limit.restart_after)


def restart_settings(restart: model.GracefulRestart) -> RestartSettings:
    """Return how the speaker restarts, and helps peers that do."""
    return RestartSettings(restart.enabled, restart.restart_time, restart.stale_time, restart.deferral_time)


def _policy(policy: written.Policy) -> Policy:
    return Policy(rules=tuple(_rule(rule) for rule in policy.rules), accept=policy.default == "accept")


def _rule(rule: written.Rule) -> Rule:
    match = Match(
        prefixes=tuple(rule.match.prefixes),
        sources=frozenset(rule.match.source),
        family=rule.match.family_number,
        communities=frozenset(map(community_octets, rule.match.communities)),
        as_path=rule.match.as_path,
        next_hops=tuple(rule.match.next_hop),
    )
    return Rule(rule.name, rule.action == "accept", match, _changes(rule.set))


def _changes(changes: written.Changes) -> Changes:
    communities = [community_octets(text) for text in changes.communities]
    return Changes(
        local_pref=changes.local_pref,
        med=changes.med,
        communities=frozenset(c for c in communities if len(c) == 4),
        extended_communities=frozenset(c for c in communities if len(c) == 8),
        large_communities=frozenset(c for c in communities if len(c) == 12),
        remove_communities=frozenset(map(community_octets, changes.remove_communities)),
        replace_communities=changes.replace_communities,
        prepend=changes.prepend,
        next_hop_self=changes.next_hop == "self",
        next_hop_keep=changes.next_hop == "keep",
        weight=changes.weight,
    )
