"""The schema of one node's file, ``apiVersion: podroute/v1``.

Keys are camelCase in the file, attributes snake_case here. A field's description is what an operator reads behind
"must be". Checks of one value against another are in config.check.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any, Literal

from pydantic import Field, model_validator

from config import prefix
from config.kernel import DEFAULT_METRIC, DEFAULT_METRIC_IPV6
from config.policy import ACCEPT, REJECT, Policy, PolicyOrAction, Section
from config.prefix import BY_NAME, Family
from config.remote_as import RemoteAs
from config.routes import OnLink, Resilient
from config.store import Store, StoreOrUrl
from config.values import (
    AbsolutePath,
    AsNumber,
    FamilyName,
    HoldTime,
    HostAddress,
    LabelKey,
    Labels,
    Listen,
    Mtu,
    Name,
    NodeName,
    PathCount,
    Patience,
    PeerAddress,
    Prefix,
    RemoteAsNumbers,
    RouterId,
    SocketPath,
    matches,
    parse_listen,
)

DEFAULT_PATH = "/etc/podroute/podroute.yaml"
HOLD_TIME = 90
CONNECT_RETRY = 5
LISTEN_LIMIT = 100
BLOCK_SIZE: dict[Family, int] = {4: 26, 6: 122}
BLOCK_SIZES: dict[Family, range] = {4: range(20, 33), 6: range(116, 129)}

_AS = "an AS number, 1 to 4294967294 as one integer"
_NODES = 'a mapping of labels and values that a node must have, such as {rack: "r1"}'
_HOLD = "0 (no keepalives) or 3 to 65535 seconds"
_RETRY = "1 to 3600 seconds"


class Node(Section):
    name: NodeName = Field(description="the node's name, unique in the cluster")
    asn: AsNumber = Field(alias="as", description=_AS)
    router_id: RouterId = Field(description='four octets such as "10.1.1.11", unique in the network')
    labels: Labels = Field(default={}, description='a mapping of labels and values such as {rack: "r1"}')
    addresses: list[HostAddress] = Field(
        default=[], description='a list of addresses at which other nodes reach this one, such as ["10.1.1.11"]'
    )

    @property
    def identifier(self) -> bytes:
        """The router ID as the four octets of a BGP identifier."""
        return IPv4Address(self.router_id).packed


class SplitBy(Section):
    """The parts of a pool that belong to one value of a node label each."""

    label: LabelKey = Field(description="the name of a node label such as rack")
    size: int = Field(ge=1, le=127, description="the prefix length of a part, not less than the pool's own")
    aggregate: Literal["none", "beside", "only"] = Field(
        default="none", description="none (only blocks are advertised), beside (parts too) or only (parts alone)"
    )


class Pool(Section):
    """Addresses for containers, cut into blocks of which every node claims whole ones."""

    cidr: Prefix = Field(description='a prefix such as "10.64.0.0/16"')
    block_size: int = Field(
        ge=20, le=128, description="the prefix length of a block: 20 to 32 (IPv4) or 116 to 128 (IPv6)"
    )
    nodes: Labels = Field(default={}, description=_NODES)
    disabled: bool = Field(default=False, description="true (nothing new is given out of it) or false")
    manual: bool = Field(default=False, description="true (used only by requests that name it) or false")
    not_advertised: bool = Field(default=False, description="true (its blocks are not announced) or false")
    reservations: list[Prefix] = Field(default=[], description='a list of prefixes such as ["10.64.0.0/28"]')
    split_by: SplitBy | None = Field(default=None, description="a mapping such as {label: rack, size: 20}")

    @property
    def family(self) -> Family:
        return prefix.parse(self.cidr)[0]

    @property
    def prefix(self) -> bytes:
        """Wire bytes (config.prefix)."""
        return prefix.parse(self.cidr)[1]

    @model_validator(mode="before")
    @classmethod
    def _default_block_size(cls, value: Any) -> Any:
        if isinstance(value, dict) and "blockSize" not in value:
            return {**value, "blockSize": BLOCK_SIZE[6 if ":" in str(value.get("cidr")) else 4]}
        return value


class MaxPrefixes(Section):
    """How many prefixes of one family a peer may announce."""

    maximum: int = Field(ge=1, le=4294967295, description="1 to 4294967295 prefixes")
    warning: int = Field(default=80, ge=1, le=100, description="1 to 100 percent of the maximum")
    restart_after: int | None = Field(default=None, ge=1, le=86400, description="1 to 86400 seconds")


class AddPath(Section):
    """Several paths to a prefix on one session (RFC 7911)."""

    receive: bool = Field(default=False, description="true or false")
    send: PathCount = Field(default=0, description="all, 0 or 1 to 64 paths to a prefix")


class Peer(Section):
    """One neighbour by its ``address``, or dynamic ones: whoever connects from inside ``listen_range``."""

    address: PeerAddress | None = Field(
        default=None, description='the address of the peer such as "10.1.1.1" or "fe80::1%eth0"'
    )
    listen_range: Prefix | None = Field(default=None, description='a prefix such as "10.1.0.0/24"')
    listen_limit: int | None = Field(
        default=None, ge=1, le=65535, description=f"1 to 65535 peers at once, {LISTEN_LIMIT} where it is left out"
    )
    remote_as: RemoteAsNumbers = Field(alias="as", description=_AS)
    port: int = Field(default=179, ge=1, le=65535, description="a TCP port, 1 to 65535")
    local_address: PeerAddress | None = Field(default=None, description="one of the node's own addresses")
    families: list[FamilyName] = Field(min_length=1, description="a list of ipv4 and ipv6, at least one")
    password_file: AbsolutePath | None = Field(default=None, description="the absolute path of a file")
    passive: bool = Field(default=False, description="true (wait for the peer to connect) or false")
    hold_time: HoldTime = Field(default=HOLD_TIME, description=_HOLD)
    connect_retry: int = Field(default=CONNECT_RETRY, ge=1, le=3600, description=_RETRY)
    route_reflector_client: bool = Field(default=False, description="true (an internal peer only) or false")
    add_path: AddPath = Field(default=AddPath(), description="a mapping such as {receive: true, send: all}")
    multihop: int | None = Field(default=None, ge=2, le=255, description="2 to 255, the TTL of what is sent")
    ttl_security: int | None = Field(default=None, ge=1, le=254, description="1 (on the link) to 254 hops")
    allow_own_as: int = Field(default=0, ge=0, le=10, description="how often our own AS may be in an AS path, 0 to 10")
    enforce_first_as: bool = Field(default=True, description="true, or false for a route server")
    max_prefixes: MaxPrefixes | None = Field(default=None, description="a mapping such as {maximum: 1000}")
    nodes: Labels = Field(default={}, description=_NODES)
    import_policy: PolicyOrAction | None = Field(default=None, alias="import", description="accept, reject or a policy")
    export_policy: PolicyOrAction | None = Field(default=None, alias="export", description="accept, reject or a policy")

    @property
    def family_set(self) -> frozenset[Family]:
        """Families of the routes that the session carries."""
        return frozenset(BY_NAME[name] for name in self.families)

    @model_validator(mode="before")
    @classmethod
    def _default_families(cls, value: Any) -> Any:
        if isinstance(value, dict) and "families" not in value:
            where = value.get("address") or value.get("listenRange")
            return {**value, "families": ["ipv6" if ":" in str(where) else "ipv4"]}
        return value


class GracefulRestart(Section):
    """Restarts of this node and of its peers that interrupt no traffic (RFC 4724, RFC 8538)."""

    enabled: bool = Field(default=True, description="true or false")
    restart_time: int = Field(default=120, ge=1, le=4095, description="1 to 4095 seconds")
    stale_time: int = Field(default=360, ge=1, le=86400, description="1 to 86400 seconds")
    deferral_time: int = Field(default=60, ge=1, le=3600, description="1 to 3600 seconds")


class Mesh(Section):
    """Sessions with all other nodes whose records in the store have certain labels; their AS is in the record."""

    select: Labels = Field(description="a mapping of labels and values of the nodes to peer with, {} for all")
    nodes: Labels = Field(default={}, description=_NODES)
    families: list[FamilyName] = Field(
        default=["ipv4", "ipv6"], min_length=1, description="a list of ipv4 and ipv6, at least one"
    )
    port: int = Field(default=179, ge=1, le=65535, description="a TCP port, 1 to 65535")
    password_file: AbsolutePath | None = Field(default=None, description="the absolute path of a file")
    hold_time: HoldTime = Field(default=HOLD_TIME, description=_HOLD)
    connect_retry: float = Field(default=0.5, ge=0.1, le=3600, description="0.1 to 3600 seconds")
    reflectors: bool = Field(
        default=False,
        description="true (nodes with bgp.clusterId reflect for the others) or false (full mesh)",
    )
    import_policy: PolicyOrAction | None = Field(default=None, alias="import", description="accept, reject or a policy")
    export_policy: PolicyOrAction | None = Field(default=None, alias="export", description="accept, reject or a policy")


class Bgp(Section):
    listen: list[Listen] = Field(
        default=["0.0.0.0:179", "[::]:179"],
        description='a list of address:port such as ["0.0.0.0:179", "[::]:179"], or [] not to listen',
    )
    hold_time: HoldTime = Field(default=HOLD_TIME, description=_HOLD)
    connect_retry: int = Field(default=CONNECT_RETRY, ge=1, le=3600, description=_RETRY)
    listen_limit: int = Field(default=1000, ge=1, le=65535, description="1 to 65535 dynamic neighbours of all ranges")
    max_paths: int = Field(default=64, ge=1, le=256, description="1 (no multipath) to 256 next hops")
    multipath_relax: bool = Field(default=True, description="true (multipath through different ASes too) or false")
    always_compare_med: bool = Field(default=False, description="true (between different neighbour ASes too) or false")
    cluster_id: RouterId | None = Field(default=None, description='four octets such as "10.1.1.11"')
    graceful_restart: GracefulRestart = Field(
        default=GracefulRestart(), description="a mapping of enabled, restartTime, staleTime and deferralTime"
    )

    @property
    def cluster_octets(self) -> bytes | None:
        """The cluster ID of our route reflector, four octets; None: the router ID (RFC 4456 section 7)."""
        return None if self.cluster_id is None else IPv4Address(self.cluster_id).packed

    @property
    def listen_addresses(self) -> list[tuple[str, int]]:
        return [parse_listen(text) for text in self.listen]


class Ipam(Section):
    """How a node deals with its blocks. Times in seconds."""

    blocks_per_node: int | None = Field(default=None, ge=1, description="1 or more blocks per family, or left out")
    lease: int = Field(default=30, ge=3, le=3600, description="3 to 3600 seconds until a silent node counts as dead")
    idle_after: int = Field(default=600, ge=1, description="seconds until an empty block goes back, 1 or more")
    grace_time: int = Field(
        default=60, ge=1, description="seconds until the address of a vanished container is free, 1 or more"
    )
    borrowing: bool = Field(default=False, description="true (nodes with full pools borrow addresses) or false")
    quarantine: int = Field(
        default=300, ge=1, le=86400, description="1 to 86400 seconds that the blocks of a dead node rest"
    )
    reclaim_after: Patience = Field(
        default="never", description="never, or 0 to 86400 seconds until a dead node's blocks are given back"
    )
    fence_after: int | None = Field(
        default=None, ge=1, le=86400, description="1 to 86400 seconds without the store, or left out"
    )

    @property
    def fence_seconds(self) -> int | None:
        """Seconds without the store after which the node is fenced; None where automatic reclaim is off."""
        return None if self.reclaim_after == "never" else self.fence_after or 2 * self.lease


class Routes(Section):
    table: int = Field(default=254, ge=1, le=4294967295, description="a routing table, 1 to 4294967295; main is 254")
    metric: int = Field(
        default=DEFAULT_METRIC, ge=2, le=4294967295, description="2 to 4294967295 (1 is that of covers)"
    )
    metric_ipv6: int = Field(
        default=DEFAULT_METRIC_IPV6, ge=2, le=4294967295, description="2 to 4294967295 (connected subnets have 256)"
    )
    check_neighbours: bool = Field(
        default=False,
        description="true (gateways that do not answer carry nothing while others do) or false",
    )
    onlink: OnLink = Field(
        default={}, description='a mapping of prefixes and interfaces such as {"192.0.2.0/24": "eth0"}'
    )
    resilient: Resilient | None = Field(
        default=None, description="a mapping of buckets, idleTimer and unbalancedTimer, {} for the defaults"
    )

    @property
    def onlink_devices(self) -> dict[tuple[Family, bytes], str]:
        """``onlink`` by (family, wire bytes)."""
        return {prefix.parse(text): device for text, device in self.onlink.items()}


class Cni(Section):
    socket: SocketPath = Field(default="/run/podroute/cni.sock", description="the path of a Unix socket")
    mtu: Mtu = Field(default="auto", description="auto or 576 to 65535 octets")
    forwarding: bool = Field(default=False, description="true (containers forward what is not for them) or false")
    masquerade: bool = Field(
        default=False, description="true (what leaves the pools gets the node's address) or false (no NAT)"
    )
    wait_advertised: float = Field(
        default=2.0, ge=0, le=30, description="0 to 30 seconds that ADD waits until a new block is advertised"
    )
    not_ready_after: Patience = Field(
        default="never",
        description="never, or 0 to 86400 seconds without advertisement after which STATUS says 51",
    )
    not_ready_when_full: bool = Field(
        default=False, description="true (STATUS says 50 while a container would get no address) or false"
    )
    bin_dir: AbsolutePath = Field(default="/opt/cni/bin", description="an absolute path")
    conf_dir: AbsolutePath = Field(default="/etc/cni/net.d", description="an absolute path")

    @property
    def not_ready_seconds(self) -> int | None:
        """``notReadyAfter`` in seconds, None for never."""
        return None if self.not_ready_after == "never" else self.not_ready_after


class Api(Section):
    socket: SocketPath = Field(default="/run/podroute/api.sock", description="the path of a Unix socket")


class Metrics(Section):
    """What may be read over TCP: metrics, health and the page."""

    listen: Listen | None = Field(default=None, description='address:port such as "127.0.0.1:9179" or "[::]:9179"')

    @property
    def address(self) -> tuple[str, int] | None:
        """Where to listen; None: nowhere."""
        return None if self.listen is None else parse_listen(self.listen)


class OnStop(Section):
    """What SIGTERM does, and `podroute stop` without a mode."""

    mode: Literal["graceful", "drain", "purge"] = Field(default="graceful", description="graceful, drain or purge")
    drain_time: int = Field(default=10, ge=0, le=3600, description="0 to 3600 seconds")


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error"
    )
    format: Literal["text", "json"] = Field(default="text", description="text or json")


class Config(Section):
    """One node's file."""

    api_version: Literal["podroute/v1"] = Field(description="podroute/v1")
    node: Node = Field(description="a mapping of name, as, routerId and labels")
    state_dir: AbsolutePath = Field(default="/var/lib/podroute", description="an absolute path")
    store: StoreOrUrl = Field(
        default=Store(url="sqlite:///var/lib/podroute/store.db"),
        description="the URL of a store, or a mapping of url, tls, ca, certificate, key, user and passwordFile",
    )
    pools: dict[Name, Pool] = Field(default={}, description="a mapping of pools by name")
    ipam: Ipam = Field(default=Ipam(), description="a mapping of lease, idleAfter, graceTime and so on")
    advertise: list[Prefix] = Field(default=[], description='a list of prefixes such as ["192.0.2.1/32"]')
    bgp: Bgp = Field(default=Bgp(), description="a mapping such as {listen: [], holdTime: 90}")
    peers: dict[Name, Peer] = Field(default={}, description="a mapping of peers by name")
    mesh: dict[Name, Mesh] = Field(default={}, description="a mapping of selections of nodes to peer with, by name")
    routes: Routes = Field(default=Routes(), description="a mapping of table, metric and so on")
    cni: Cni = Field(default=Cni(), description="a mapping of socket, mtu, binDir, confDir and so on")
    api: Api = Field(default=Api(), description="a mapping with socket")
    metrics: Metrics = Field(default=Metrics(), description='a mapping with listen, such as {listen: "127.0.0.1:9179"}')
    log: Log = Field(default=Log(), description="a mapping of level and format")
    on_stop: OnStop = Field(default=OnStop(), description="a mapping of mode and drainTime")

    @property
    def advertised(self) -> list[tuple[Family, bytes]]:
        """The extra prefixes as (family, wire bytes)."""
        return [prefix.parse(text) for text in self.advertise]

    def peers_here(self) -> dict[str, Peer]:
        """Peers and listen ranges whose ``nodes`` selector takes this node, by name."""
        return {name: peer for name, peer in self.peers.items() if matches(peer.nodes, self.node.labels)}

    def mesh_here(self) -> dict[str, Mesh]:
        """Mesh entries whose ``nodes`` selector takes this node, by name."""
        return {name: mesh for name, mesh in self.mesh.items() if matches(mesh.nodes, self.node.labels)}

    def pools_here(self) -> dict[str, Pool]:
        """Pools whose ``nodes`` selector takes this node, by name, in the file's order."""
        return {name: pool for name, pool in self.pools.items() if matches(pool.nodes, self.node.labels)}

    def policies(self, peer: Peer | Mesh, asn: int | None = None) -> tuple[Policy, Policy]:
        """Return a peer's import and export policy as they hold; ``asn``: the AS of a node of a mesh.

        Where an eBGP peer has none nothing passes (RFC 8212); within our own AS everything does.
        """
        its_as = peer.remote_as if isinstance(peer, Peer) else RemoteAs.of(asn or 0)
        missing = REJECT if its_as.external(self.node.asn) else ACCEPT
        return peer.import_policy or missing, peer.export_policy or missing

    @model_validator(mode="before")
    @classmethod
    def _inherit_timers(cls, value: Any) -> Any:
        """Give peers and meshes the timers of ``bgp`` that they do not set themselves."""
        bgp = value.get("bgp") if isinstance(value, dict) else None
        if not isinstance(bgp, dict):
            return value
        inherited = dict(value)
        for entries, keys in (("peers", ("holdTime", "connectRetry")), ("mesh", ("holdTime",))):
            if isinstance(value.get(entries), dict):
                timers = {key: bgp[key] for key in keys if key in bgp}
                inherited[entries] = {
                    name: _with_timers(one, timers) if isinstance(one, dict) else one
                    for name, one in value[entries].items()
                }
        return inherited


def _with_timers(entry: dict[str, Any], timers: dict[str, Any]) -> dict[str, Any]:
    # Nobody connects to a listen range
    left_out = ("connectRetry",) if "listenRange" in entry else ()
    return {**{key: seconds for key, seconds in timers.items() if key not in left_out}, **entry}
