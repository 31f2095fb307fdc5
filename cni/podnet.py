"""A pod's network: a veth pair, host-length addresses, a link-local gateway, a host route. No bridge.

The pod's end has a default route per family via 169.254.1.1 or fe80::1, an address that nobody holds: permanent
neighbour entries on both sides stand in for ARP and neighbour discovery, so the first packet leaves without a question
and the host needs no proxy. The functions here block and are called in worker threads.

A crash may come between any two steps. What is left is told by two marks on the host's end: the kernel sets the
interface group as it makes the pair, and the last step of all sets the tag. Group without tag: unfinished. A pod that
is cut off loses its alias and changes the group, so that all of those can be deleted in one go.

The tag is a sysctl: whatever netlink changes of a link that is up leads the kernel past all IPv6 routes of the node, in
tens of milliseconds where it has a full table.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, NamedTuple

from cni import inside, netlink
from cni.errors import CniError, Code
from cni.hooks import Assignment, Handle
from cni.inside import HOST_MAC
from cni.links import await_carrier, set_link
from cni.namespaces import entered, set_sysctl
from cni.netlink import Message, Netlink, NetlinkError, attribute, number
from config.kernel import POD_METRIC, ROUTE_PROTOCOL
from config.prefix import FAMILIES, Family

DEFAULT_MTU: Final = 1500
_MOST_MTU = 65535
"""A veth's; the loopback's is larger."""
CUT_OFF: Final = ROUTE_PROTOCOL << 20 | 0xC07
"""Interface group of host ends that wait for their deletion; a number that nobody else comes upon."""
_SPARE_INDEX = 1 << 20
_MARK = "podroute: "
"""The handle follows, in the alias of a host end; the tag says that it is finished."""
_OLD_MARK = "podroute "
"""The same of host ends that an agent before the tag made: they got their alias when they were finished."""
_ALIAS_LIMIT = 255
_HOST_IFNAME = re.compile(r"pr[0-9a-f]{13}")


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """How a node wires its pods."""

    mtu: int | None = None
    """None: the smallest of the uplinks'."""
    protocol: int = ROUTE_PROTOCOL
    """rtnetlink protocol of host routes; also the interface group of host ends."""
    metric: Mapping[Family, int] = field(default_factory=lambda: POD_METRIC)
    """Of host routes."""
    forwarding: bool = False
    """Whether pods forward what is not for them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One pod's wiring; its addresses may become known after its link is made."""

    handle: Handle
    mac: bytes
    mtu: int
    addresses: tuple[tuple[Family, bytes], ...] = ()
    """Packed."""

    @property
    def host_ifname(self) -> str:
        return host_ifname(self.handle)

    @property
    def families(self) -> list[Family]:
        return sorted({family for family, _ in self.addresses})


class Pair(NamedTuple):
    """The indexes of a link's ends, each in its namespace."""

    outer: int
    inner: int


@dataclass(frozen=True, slots=True)
class HostLink:
    """A host end, as found."""

    name: str
    index: int
    complete: bool
    """All of the pod's wiring was done, and it has not been cut off."""
    peer: int
    """Index of the pod's end."""
    namespace: int
    """This namespace's id of the pod's."""


def host_ifname(handle: Handle) -> str:
    """Return the name of a handle's host end: no two handles of a node share one, a new container gets a new one."""
    return "pr" + _digest(handle).hex()[:13]


def is_host_ifname(name: str) -> bool:
    """Tell whether a name looks like ``host_ifname``'s."""
    return _HOST_IFNAME.fullmatch(name) is not None


def pod_mac(handle: Handle) -> bytes:
    """Return a locally administered unicast address."""
    return b"\x0a" + _digest(handle)[7:12]


def packed(assignments: Sequence[Assignment]) -> tuple[tuple[Family, bytes], ...]:
    """Return assignments as ``Plan.addresses`` has them."""
    return tuple((a.family, socket.inet_pton(netlink.AF[a.family], a.address)) for a in assignments)


def _digest(handle: Handle) -> bytes:
    return blake2b("/".join(handle).encode(errors="surrogateescape"), digest_size=12).digest()


class PodLinks:
    """Makes, finds and removes pods' links; ``host`` is a descriptor of the host's network namespace."""

    def __init__(self, host: int, settings: PodNetwork) -> None:
        self.host = host
        self.settings = settings
        self._ipv6 = os.path.isdir("/proc/sys/net/ipv6")
        """Whether the kernel has it."""
        self._settings_of_links: dict[Family, int] = {}
        """Directories of the host's sysctls of links; a path to them leads past those of all namespaces."""

    def open(self) -> None:
        """Call it before any link is made; blocks, for worker threads. Raises OSError."""
        families: tuple[Family, ...] = FAMILIES if self._ipv6 else (4,)
        with entered(self.host, self.host):
            for family in families:
                path = f"/proc/sys/net/ipv{family}/conf"
                self._settings_of_links[family] = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        for directory in self._settings_of_links.values():
            os.close(directory)
        self._settings_of_links.clear()

    def make(self, pod: int, plan: Plan) -> Pair:
        """Make a pod's link, both ends down. Raises CniError and OSError.

        The namespace must have been checked (``namespaces.check_pod``).
        """
        with self._host() as host:
            return self._make_pair(host, pod, plan)

    def configure(self, pod: int, plan: Plan, pair: Pair) -> frozenset[Family]:
        """Give a link that ``make`` made its addresses and routes; when this returns, both ends carry packets.

        Returns the families whose default route in the pod leads through it. Raises CniError and OSError; unwire it
        then. The host's end is opened first: so the pod's has a carrier, and takes addresses, as soon as it opens.
        """
        with self._host() as host:
            self._open_host_end(host, pair.outer, plan)
            with entered(pod, self.host), Netlink(strict=True) as pods:
                main = inside.configure(
                    pods,
                    pair.inner,
                    plan.handle.ifname,
                    plan.addresses,
                    forwarding=self.settings.forwarding,
                    ipv6=self._ipv6,
                )
            self._lead_to_pod(host, pair.outer, plan)
        return main

    def forget(self, pod: int, link: HostLink | None) -> None:
        """Take away what a link that is cut off, and others that went, leave in a pod. Raises CniError and OSError."""
        with entered(pod, self.host), Netlink() as pods:
            inside.forget(pods, link.peer if link else None)

    def cut(self, handle: Handle) -> HostLink | None:
        """Take a pod's host end down, and with it its routes, and queue it for ``delete_cut``; None: there is none."""
        with self._host() as host:
            found = self._find(host, handle)
            if found:
                marks = attribute(netlink.IFLA_IFALIAS, b"") + attribute(netlink.IFLA_GROUP, number(CUT_OFF))
                body = netlink.link_header(found.index, down=True) + marks
                gone = [errno.ENODEV]
                host.transact([Message(netlink.SETLINK, 0, body, f"cut {found.name} off")], tolerate=gone)
        return found

    def delete_cut(self) -> None:
        """Delete all links that were cut off, and with them addresses, routes and neighbours. Raises OSError."""
        with self._host() as host:
            host.transact([netlink.delete_group(CUT_OFF)], tolerate=[errno.ENODEV])

    def unwire(self, handle: Handle) -> bool:
        """Remove a handle's link, finished or not, at once; return whether there was one."""
        with self._host() as host:
            return _remove(host, host_ifname(handle))

    def remove(self, link: HostLink) -> None:
        """Remove a host end that was found, not one that took its name since."""
        with self._host() as host:
            host.transact([netlink.delete_link_by_index(link.index)], tolerate=[errno.ENODEV])

    def find(self, handle: Handle) -> HostLink | None:
        with self._host() as host:
            return self._find(host, handle)

    def list(self) -> list[HostLink]:
        """Return all host ends, finished or not. Another's interface never looks like one: name, kind and group."""
        with self._host() as host:
            (replies,) = host.transact([netlink.list_links("veth")])
        links = (netlink.decode_link(reply.body) for reply in replies)
        return [
            _host_link(link)
            for link in links
            if link.group in (self.settings.protocol, CUT_OFF) and is_host_ifname(link.name)
        ]

    def mtu(self, uplinks: Sequence[str]) -> int:
        """Return the MTU for a new pod: as set, else the smallest on the way to ``uplinks``, else 1500."""
        if self.settings.mtu:
            return self.settings.mtu
        if not uplinks:
            return DEFAULT_MTU
        with self._host() as host:
            found = [_uplink_mtu(host, uplink) for uplink in uplinks]
        return min((mtu for mtu in found if 0 < mtu <= _MOST_MTU), default=DEFAULT_MTU)

    def handle(self, index: int) -> Handle | None:
        """Return whose a finished host end is; None also where its mark is too short to say."""
        with self._host() as host:
            body = host.one(netlink.get_link_by_index(index))
        link = netlink.decode_link(body) if body else None
        if link is None or not finished(link):
            return None
        parts = link.alias.removeprefix(_MARK).removeprefix(_OLD_MARK).split("/")
        if len(parts) != len(Handle._fields):
            return None
        handle = Handle(*parts)
        return handle if host_ifname(handle) == link.name else None

    def mac(self, index: int) -> bytes:
        """Return the MAC address that a pod has now, by its host end; empty where there is none."""
        with self._host() as host:
            return self._mac(host, index)

    def follow(self, index: int, pod: int, handle: Handle, addresses: Sequence[tuple[Family, bytes]]) -> bytes:
        """Have neighbour entries on both sides fit the MAC address that a pod has now, and return it.

        The host's entries have the old one, and those of the pod went with it. Empty, and nothing done, where the
        namespace is not that of the pod behind this host end. Raises OSError.
        """
        with entered(self.host, self.host), Netlink(strict=True) as host:
            mac = self._mac(host, index)
            with entered(pod, self.host), Netlink() as pods:
                body = pods.one(netlink.get_link(handle.ifname))
                inner = netlink.decode_link(body) if body else None
                if not mac or inner is None or inner.peer != index or inner.mac != mac:
                    return b""
                inside.set_gateways(pods, inner.index, sorted({family for family, _ in addresses}))
            host.transact(_neighbours(index, mac, addresses))
            return mac

    def mend(self, ends: Sequence[tuple[int, Sequence[tuple[Family, bytes]]]]) -> None:
        """Give host ends their pods' neighbour entries anew: the kernel drops them when a link goes down.

        ``ends`` are their indexes, each with its pod's addresses. Raises OSError.
        """
        with self._host() as host:
            for index, addresses in ends:
                if mac := self._mac(host, index):
                    host.transact(_neighbours(index, mac, addresses), tolerate=[errno.ENODEV, errno.ENETDOWN])

    def _mac(self, host: Netlink, index: int) -> bytes:
        body = host.one(netlink.get_link_by_index(index))
        outer = netlink.decode_link(body) if body else None
        if outer is None or outer.group != self.settings.protocol or outer.namespace < 0:
            return b""
        try:
            body = host.one(netlink.get_link_elsewhere(outer.peer, outer.namespace))
        except NetlinkError as error:
            if error.errno != errno.EINVAL:
                raise
            return b""  # the namespace has ended in between, and nobody has its number any more
        return netlink.decode_link(body).mac if body else b""

    def _find(self, host: Netlink, handle: Handle) -> HostLink | None:
        body = host.one(netlink.get_link(host_ifname(handle)))
        return None if body is None else _host_link(netlink.decode_link(body))

    @contextmanager
    def _host(self) -> Iterator[Netlink]:
        with entered(self.host, self.host), Netlink() as host:
            yield host

    def _make_pair(self, host: Netlink, pod: int, plan: Plan) -> Pair:
        """Make both ends where they belong, in one message."""
        make = _new_pair(plan, pod, self.settings.protocol)
        try:
            try:
                host.transact([make])
            except NetlinkError as error:
                # The host end is a crashed run's, or the pod's name is taken.
                if error.errno != errno.EEXIST or not _remove(host, plan.host_ifname):
                    raise
                host.transact([make])
        except NetlinkError as error:
            if error.errno == errno.EEXIST:
                text = f"the namespace has an interface {plan.handle.ifname} already"
                raise CniError(Code.ALREADY_ADDED, text) from None
            raise CniError(Code.IO_FAILURE, "the pod's interface cannot be made", str(error)) from error
        pair = _pair(host, plan)
        if pair.inner in (pair.outer, 0):
            # With like indexes the kernel delays the carrier by up to a second; a small host's first pod has them.
            _remove(host, plan.host_ifname)
            host.transact([_new_pair(plan, pod, self.settings.protocol, index=_SPARE_INDEX + pair.outer)])
            pair = _pair(host, plan)
        return pair

    def _open_host_end(self, host: Netlink, index: int, plan: Plan) -> None:
        name, ipv6 = plan.host_ifname, 6 in plan.families
        if ipv6:
            # The pod is a host, not a router: what it announces must not give this node addresses or routes.
            self._set(6, name, "accept_ra", 0)
            self._set(6, name, "forwarding", 1)
        elif self._ipv6:
            # Each change of a link that has IPv6 leads the kernel past all IPv6 routes of the node.
            self._set(6, name, "disable_ipv6", 1)
        alias = f"{_MARK}{plan.handle}".encode(errors="surrogateescape")[:_ALIAS_LIMIT]
        settings = _host_settings(ipv6=ipv6) + attribute(netlink.IFLA_IFALIAS, alias)
        host.transact(
            [
                set_link(index, settings, f"configure {name}"),
                set_link(index, b"", f"bring {name} up", up=True),
                *_neighbours(index, plan.mac, plan.addresses),
            ]
        )

    def _lead_to_pod(self, host: Netlink, index: int, plan: Plan) -> None:
        await_carrier(host, index)
        for family, address in plan.addresses:
            self._add_host_route(host, family, address, index)
        self._set(4, plan.host_ifname, "tag", self.settings.protocol)

    def _set(self, family: Family, link: str, name: str, value: int) -> None:
        set_sysctl(f"ipv{family}/conf/{link}/{name}", value, below=self._settings_of_links[family])

    def _add_host_route(self, host: Netlink, family: Family, address: bytes, index: int) -> None:
        """Add the route to a pod. One of ours that is in the way is stale: the ledger gave the address to this pod."""

        def route(replace: bool) -> Message:
            settings = self.settings
            return netlink.add_route(
                family, address, index, protocol=settings.protocol, metric=settings.metric[family], replace=replace
            )

        try:
            host.transact([route(replace=False)])
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            body = host.one(netlink.find_route(family, address, entry=True))
            found = netlink.decode_route(body) if body else None
            if found and found.protocol != self.settings.protocol:
                raise CniError(
                    Code.CONFLICT,
                    f"a route to {netlink.show(address)} exists that is not podroute's",
                    f"protocol {found.protocol}, interface {found.device}; `ip route show {netlink.show(address)}`",
                ) from None
            host.transact([route(replace=True)])


def _pair(host: Netlink, plan: Plan) -> Pair:
    body = host.one(netlink.get_link(plan.host_ifname))
    if body is None:
        raise CniError(Code.IO_FAILURE, f"interface {plan.host_ifname} went away while it was being set up")
    link = netlink.decode_link(body)
    return Pair(link.index, link.peer)


def _new_pair(plan: Plan, pod: int, group: int, *, index: int = 0) -> Message:
    mtu = attribute(netlink.IFLA_MTU, number(plan.mtu))
    peer = netlink.link_header()
    peer += attribute(netlink.IFLA_IFNAME, netlink.name(plan.handle.ifname))
    peer += attribute(netlink.IFLA_ADDRESS, plan.mac) + mtu
    peer += attribute(netlink.IFLA_NET_NS_FD, number(pod))
    data = attribute(netlink.IFLA_INFO_DATA, attribute(netlink.VETH_INFO_PEER, peer))
    body = netlink.link_header(index) + attribute(netlink.IFLA_IFNAME, netlink.name(plan.host_ifname))
    body += attribute(netlink.IFLA_ADDRESS, HOST_MAC) + mtu + attribute(netlink.IFLA_GROUP, number(group))
    body += attribute(netlink.IFLA_LINKINFO, attribute(netlink.IFLA_INFO_KIND, b"veth\0") + data)
    return Message(netlink.NEWLINK, netlink.CREATE | netlink.EXCL, body, f"make {plan.host_ifname}")


def _host_settings(*, ipv6: bool) -> bytes:
    """Settings of a host end that netlink can make.

    IPv4: forward what the pod sends, and only what comes from its own addresses (RFC 3704 section 2.2). IPv6: no
    link-local address, which would be one more address and group membership per pod.
    """
    settings = attribute(netlink.IPV4_FORWARDING, number(1)) + attribute(netlink.IPV4_RP_FILTER, number(1))
    families = attribute(socket.AF_INET, attribute(netlink.IFLA_INET_CONF, settings))
    if ipv6:
        families += attribute(socket.AF_INET6, attribute(netlink.IFLA_INET6_ADDR_GEN_MODE, b"\x01"))
    return attribute(netlink.IFLA_AF_SPEC, families)


def _remove(host: Netlink, link: str) -> bool:
    try:
        host.transact([netlink.delete_link(link)])
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def _host_link(link: netlink.Link) -> HostLink:
    return HostLink(link.name, link.index, finished(link), link.peer, link.namespace)


def finished(link: netlink.Link) -> bool:
    """Tell whether all of a pod's wiring was done, of its host end; one that is cut off has no alias."""
    return link.alias.startswith(_OLD_MARK) or bool(link.alias and link.tag == link.group)


def _neighbours(index: int, mac: bytes, addresses: Sequence[tuple[Family, bytes]]) -> list[Message]:
    return [netlink.set_neighbour(family, address, mac, index) for family, address in addresses]


def _uplink_mtu(host: Netlink, uplink: str) -> int:
    """Return the MTU of the device that leads to an address, 0 where none does."""
    address, _, device = uplink.partition("%")
    try:
        if device:
            body = host.one(netlink.get_link(device))
        else:
            family: Family = 6 if ":" in address else 4
            route = host.one(netlink.find_route(family, socket.inet_pton(netlink.AF[family], address), entry=False))
            index = netlink.decode_route(route).device if route else 0
            body = host.one(netlink.get_link_by_index(index)) if index else None
    except NetlinkError:
        return 0  # a route that says no: blackhole, prohibit
    return netlink.decode_link(body).mtu if body else 0
