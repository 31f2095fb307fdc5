"""A pod's network: a veth pair, host-length addresses, a link-local gateway, a host route. No bridge.

The pod's end has a default route per family via 169.254.1.1 or fe80::1, an address that nobody holds: permanent
neighbour entries on both sides stand in for ARP and neighbour discovery, so the first packet leaves without a question
and the host needs no proxy. The functions here block and are called in worker threads.

A crash may come between any two steps. What is left is told by two marks on the host's end: the kernel sets the
interface group as it makes the pair, and the last message of all sets the alias. Group without alias: unfinished.
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
from typing import Final

from cni import netlink
from cni.errors import CniError, Code
from cni.hooks import Handle
from cni.namespaces import entered, set_sysctl
from cni.netlink import Message, Netlink, NetlinkError, attribute, number
from config.prefix import Family

HOST_MAC: Final = bytes.fromhex("027072686f73")
"""Of every host end: links of two stations share no segment, and a pod's entry for its gateway never goes stale."""
GATEWAYS: Final[dict[Family, bytes]] = {
    4: socket.inet_aton("169.254.1.1"),
    6: socket.inet_pton(socket.AF_INET6, "fe80::1"),
}
DEFAULT_MTU: Final = 1500
_MOST_MTU = 65535
"""A veth's; the loopback's is larger."""
_SPARE_INDEX = 1 << 20
_HOST_IFNAME = re.compile(r"pr[0-9a-f]{13}")


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """How a node wires its pods."""

    mtu: int | None = None
    """None: the smallest of the uplinks'."""
    protocol: int = 201
    """rtnetlink protocol of host routes; also the interface group of host ends."""
    metric: Mapping[Family, int] = field(default_factory=lambda: {4: 0, 6: 1024})
    """Of host routes; these are what the kernel gives a route that states none."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One pod's wiring."""

    handle: Handle
    addresses: tuple[tuple[Family, bytes], ...]
    """Packed."""
    mac: bytes
    mtu: int

    @property
    def host_ifname(self) -> str:
        return host_ifname(self.handle)

    @property
    def families(self) -> list[Family]:
        return sorted({family for family, _ in self.addresses})


@dataclass(frozen=True, slots=True)
class HostLink:
    """A host end, as found."""

    name: str
    index: int
    complete: bool
    """All of the pod's wiring was done."""


def host_ifname(handle: Handle) -> str:
    """Return the name of a handle's host end: no two handles of a node share one, a new container gets a new one."""
    return "pr" + _digest(handle).hex()[:13]


def pod_mac(handle: Handle) -> bytes:
    """Return a locally administered unicast address."""
    return b"\x0a" + _digest(handle)[7:12]


def _digest(handle: Handle) -> bytes:
    return blake2b("/".join(handle).encode(errors="surrogateescape"), digest_size=12).digest()


class PodLinks:
    """Makes, finds and removes pods' links; ``host`` is a descriptor of the host's network namespace."""

    def __init__(self, host: int, settings: PodNetwork) -> None:
        self.host = host
        self.settings = settings

    def wire(self, pod: int, plan: Plan) -> None:
        """Wire a pod whose namespace is ``pod``; on failure nothing is left. Raises CniError.

        The namespace must have been checked (``namespaces.check_pod``).
        """
        with self._host() as host:
            outer = self._make_pair(host, pod, plan)
            try:
                with entered(pod, self.host), Netlink() as inside:
                    inner = _index(inside, plan.handle.ifname)
                    if inner == outer:
                        outer = self._make_again(host, pod, plan, inner)
                        inner = _index(inside, plan.handle.ifname)
                    _configure_pod(inside, inner, plan)
                self._configure_host(host, outer, plan)
            except BaseException as fault:
                _remove(host, plan.host_ifname)
                if isinstance(fault, OSError):
                    raise CniError(Code.IO_FAILURE, "the pod's network cannot be set up", str(fault)) from fault
                raise

    def unwire(self, handle: Handle) -> bool:
        """Remove a handle's link, and with it address, routes and neighbours; return whether there was one."""
        with self._host() as host:
            return _remove(host, host_ifname(handle))

    def remove(self, link: HostLink) -> None:
        """Remove a host end that was found, not one that took its name since."""
        with self._host() as host:
            host.transact([netlink.delete_link_by_index(link.index)], tolerate=[errno.ENODEV])

    def find(self, handle: Handle) -> HostLink | None:
        with self._host() as host:
            body = host.one(netlink.get_link(host_ifname(handle)))
        return None if body is None else _host_link(netlink.decode_link(body))

    def list(self) -> list[HostLink]:
        """Return all host ends, finished or not. Another's interface never looks like one: name, kind and group."""
        with self._host() as host:
            (replies,) = host.transact([netlink.list_links("veth")])
        links = (netlink.decode_link(reply.body) for reply in replies)
        return [
            _host_link(link)
            for link in links
            if link.group == self.settings.protocol and _HOST_IFNAME.fullmatch(link.name)
        ]

    def mtu(self, uplinks: Sequence[str]) -> int:
        """Return the MTU for a new pod: as set, else the smallest on the way to ``uplinks``, else 1500."""
        if self.settings.mtu:
            return self.settings.mtu
        with self._host() as host:
            found = [_uplink_mtu(host, uplink) for uplink in uplinks]
        return min((mtu for mtu in found if 0 < mtu <= _MOST_MTU), default=DEFAULT_MTU)

    @contextmanager
    def _host(self) -> Iterator[Netlink]:
        with entered(self.host, self.host), Netlink() as host:
            yield host

    def _make_pair(self, host: Netlink, pod: int, plan: Plan) -> int:
        """Make both ends where they belong, in one message; return the host end's index."""
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
        return _index(host, plan.host_ifname)

    def _make_again(self, host: Netlink, pod: int, plan: Plan, inner: int) -> int:
        """Make the pair again with unlike indexes: with like ones the kernel delays the carrier by up to a second."""
        _remove(host, plan.host_ifname)
        host.transact([_new_pair(plan, pod, self.settings.protocol, index=_SPARE_INDEX + inner)])
        return _index(host, plan.host_ifname)

    def _configure_host(self, host: Netlink, index: int, plan: Plan) -> None:
        name = plan.host_ifname
        ipv6 = os.path.isdir("/proc/sys/net/ipv6")
        if ipv6:
            # The pod is a host, not a router: what it announces must not give this node addresses or routes.
            set_sysctl(f"ipv6/conf/{name}/accept_ra", 0)
        if 6 in plan.families:
            set_sysctl(f"ipv6/conf/{name}/forwarding", 1)
        host.transact(
            [
                _set_link(index, _host_settings(ipv6=ipv6), f"configure {name}"),
                _set_link(index, b"", f"bring {name} up", up=True),
                *(netlink.set_neighbour(family, address, plan.mac, index) for family, address in plan.addresses),
            ]
        )
        for family, address in plan.addresses:
            self._add_host_route(host, family, address, index)
        alias = f"podroute {plan.handle}".encode(errors="surrogateescape")[:255]
        host.transact([_set_link(index, attribute(netlink.IFLA_IFALIAS, alias), f"mark {name} as complete")])

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


def _configure_pod(inside: Netlink, index: int, plan: Plan) -> None:
    if 6 in plan.families:
        set_sysctl(f"ipv6/conf/{plan.handle.ifname}/disable_ipv6", 0)
    messages = [_set_link(index, b"", f"bring {plan.handle.ifname} up", up=True)]
    messages += [netlink.add_address(family, address, index) for family, address in plan.addresses]
    for family in plan.families:
        gateway = GATEWAYS[family]
        messages.append(netlink.set_neighbour(family, gateway, HOST_MAC, index))
        if family == 4:  # an IPv6 gateway is on the link by being link-local
            messages.append(netlink.add_route(4, gateway, index))
        messages.append(netlink.add_route(family, b"", index, gateway=gateway))
    inside.transact(messages)


def _set_link(index: int, body: bytes, step: str, *, up: bool = False) -> Message:
    return Message(netlink.SETLINK, 0, netlink.link_header(index, up=up) + body, step)


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


def _index(kernel: Netlink, link: str) -> int:
    body = kernel.one(netlink.get_link(link))
    if body is None:
        raise CniError(Code.IO_FAILURE, f"interface {link} went away while it was being set up")
    return netlink.decode_link(body).index


def _remove(host: Netlink, link: str) -> bool:
    try:
        host.transact([netlink.delete_link(link)])
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def _host_link(link: netlink.Link) -> HostLink:
    return HostLink(link.name, link.index, bool(link.alias))


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
