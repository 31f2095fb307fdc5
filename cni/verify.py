"""CHECK: is a pod's network still what ADD made it? (CNI 1.1.0, section 2.)

Only what podroute answers for is compared. What a later plugin of the chain may change is let be: MTU, queueing,
further addresses and routes, the pod's MAC as long as the host's neighbour entries know it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cni import netlink
from cni.hooks import Handle
from cni.inside import GATEWAYS, missing_rules
from cni.namespaces import entered
from cni.netlink import Link, Netlink
from cni.podnet import PodLinks, finished, host_ifname
from config.prefix import BITS, Family


def faults(links: PodLinks, pod: int, handle: Handle, addresses: Sequence[tuple[Family, bytes]]) -> list[str]:
    """Return all that is wrong with a pod, in words; blocks, for worker threads.

    ``pod`` is a descriptor of its namespace, checked; ``addresses`` are packed, as the ledger has them.
    """
    with entered(links.host, links.host), Netlink() as host, entered(pod, links.host), Netlink(strict=True) as inside:
        outer = _link(host, host_ifname(handle))
        inner = _link(inside, handle.ifname)
        found = []
        if outer is None:
            found.append(f"the host's interface {host_ifname(handle)} is gone")
        elif not outer.up:
            found.append(f"the host's interface {outer.name} is down")
        elif not finished(outer):
            found.append(f"the host's interface {outer.name} was never finished")
        if inner is None:
            found.append(f"the pod's interface {handle.ifname} is gone")
        elif not inner.up:
            found.append(f"the pod's interface {handle.ifname} is down")
        if inner and outer and inner.peer != outer.index:
            found.append(f"the pod's interface {inner.name} is not the other end of {outer.name}")
        if outer:
            found += _host_faults(host, outer, inner, links.settings.protocol, addresses)
        if inner:
            found += _pod_faults(inside, inner, outer, addresses)
        return found


def _link(kernel: Netlink, name: str) -> Link | None:
    body = kernel.one(netlink.get_link(name))
    return netlink.decode_link(body) if body else None


def _host_faults(
    host: Netlink, outer: Link, inner: Link | None, protocol: int, addresses: Sequence[tuple[Family, bytes]]
) -> list[str]:
    found = []
    for family, address in addresses:
        shown = netlink.show(address)
        body = host.one(netlink.find_route(family, address, entry=True))
        route = netlink.decode_route(body) if body else None
        if route is None or route.length != BITS[family]:
            found.append(f"the host's route to {shown} is gone")
        elif route.device != outer.index or route.protocol != protocol:
            found.append(
                f"the host's route to {shown} leads to interface {route.device} with protocol {route.protocol}, "
                f"not to {outer.name} ({outer.index}) with protocol {protocol}"
            )
        if inner:
            found += _neighbour_faults(host, family, address, outer, inner.mac, "the host's")
    return found


def _pod_faults(
    inside: Netlink, inner: Link, outer: Link | None, addresses: Sequence[tuple[Family, bytes]]
) -> list[str]:
    found = []
    (replies,) = inside.transact([netlink.list_addresses(inner.index)])
    held = {netlink.decode_address(reply.body) for reply in replies}
    for _, address in addresses:
        if (inner.index, address) not in held:
            found.append(f"the pod's interface {inner.name} does not have the address {netlink.show(address)}")
    for family in sorted({family for family, _ in addresses}):
        (replies,) = inside.transact([netlink.list_routes(family, table=0)])
        routes = [netlink.decode_route(reply.body) for reply in replies]
        gateway = GATEWAYS[family]
        tables = {r.table for r in routes if (r.length, r.gateway, r.device) == (0, gateway, inner.index)}
        if not tables:
            found.append(f"the pod has no default route via {netlink.show(gateway)} on {inner.name}")
        elif netlink.TABLE_MAIN not in tables:
            missing = missing_rules(inside, inner.index, family, addresses)
            found += [f"the pod has no rule for what comes from {netlink.show(address)}" for address in missing]
        if outer:
            found += _neighbour_faults(inside, family, gateway, inner, outer.mac, "the pod's")
    return found


def _neighbour_faults(kernel: Netlink, family: Family, address: bytes, link: Link, mac: bytes, whose: str) -> list[str]:
    body = kernel.one(netlink.get_neighbour(family, address, link.index))
    if body is None:
        return [f"{whose} neighbour entry for {netlink.show(address)} on {link.name} is gone"]
    _, _, known, state = netlink.decode_neighbour(body)
    if known != mac or not state & netlink.NUD_PERMANENT:
        return [
            f"{whose} neighbour entry for {netlink.show(address)} on {link.name} is {known.hex(':')} "
            f"(state {state:#x}), not {mac.hex(':')}, permanent"
        ]
    return []
