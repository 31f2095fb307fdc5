"""The links of a topology file as they are written: in brief, or with their type."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface

from labs.checks import Checker, UnusableError
from labs.source import Value
from labs.topology import DEFAULT_MTU, HOST, Endpoint, Link

MAC_PREFIX = "aa:c1:ab"
"""containerlab's prefix of made-up MAC addresses."""
WORDS = frozenset({HOST, "macvlan", "mgmt-net"})
"""Names that turn a brief link into another type; containerlab gives them this meaning."""
BRIEF = frozenset({"endpoints", "mtu", "ipv4", "ipv6"})
TYPES = {
    "veth": frozenset({"type", "endpoints", "mtu", "ipv4", "ipv6", "labels"}),
    "host": frozenset({"type", "endpoint", "host-interface", "mtu", "labels"}),
    "dummy": frozenset({"type", "endpoint", "mtu", "labels"}),
}
TYPES_REFUSED = frozenset({"macvlan", "mgmt-net", "veth-stitch", "vxlan", "vxlan-stitch"})
ENDPOINT = frozenset({"node", "interface", "mac", "ipv4", "ipv6"})
REFUSED = frozenset({"vars"})
"""For nodes of kind linux containerlab exports these and does nothing else with them."""
FAMILIES: dict[str, type[IPv4Interface] | type[IPv6Interface]] = {"ipv4": IPv4Interface, "ipv6": IPv6Interface}


class Links:
    """Reads links; what a link's ends are to its nodes is checked by the caller."""

    def __init__(self, check: Checker, lab: str) -> None:
        self.check = check
        self.lab = lab

    def read(self, place: str, value: Value) -> Link:
        """Return one link. Raises UnusableError."""
        given = self.check.map(place, value)
        if "type" not in given:
            self.check.keys(place, given, BRIEF, REFUSED)
            return self._pair(
                place, given, [self._brief(f"{place}.endpoints[{i}]", e) for i, e in self._ends(place, given)]
            )
        kind = self.check.text(f"{place}.type", given["type"])
        if kind not in TYPES:
            known = ", ".join(f"`{known}`" for known in sorted(TYPES))
            raise UnusableError(f"{place}.type", f"links of type `{kind}` cannot be built here", f"{known} can")
        self.check.keys(place, given, TYPES[kind], REFUSED)
        if kind == "veth":
            return self._pair(
                place, given, [self._end(f"{place}.endpoints[{i}]", e) for i, e in self._ends(place, given)]
            )
        here = self._end(f"{place}.endpoint", given.get("endpoint"))
        if kind == "dummy":
            return self._link(place, given, here, None)
        name = self.check.text(f"{place}.host-interface", given.get("host-interface"))
        return self._link(place, given, here, self._made(f"{place}.host-interface", HOST, name))

    def _ends(self, place: str, given: Mapping[str, Value]) -> list[tuple[int, Value]]:
        ends = self.check.list(f"{place}.endpoints", given.get("endpoints"))
        if len(ends) != 2:
            raise UnusableError(f"{place}.endpoints", f"{len(ends)} endpoints", "a link has exactly two")
        return list(enumerate(ends))

    def _pair(self, place: str, given: Mapping[str, Value], ends: Sequence[Endpoint]) -> Link:
        made = []
        for index, end in enumerate(ends):
            addresses = list(end.addresses)
            for family in FAMILIES:
                listed = self.check.list(f"{place}.{family}", given.get(family))
                if len(listed) > 2:
                    raise UnusableError(f"{place}.{family}", f"{len(listed)} addresses", "there are two ends")
                # An empty one keeps the place of an end that has none.
                if index < len(listed) and (text := self.check.text(f"{place}.{family}[{index}]", listed[index])):
                    addresses.append(self._address(f"{place}.{family}[{index}]", family, text))
            made.append(Endpoint(end.node, end.interface, end.mac, tuple(addresses)))
        a, z = made if made[0].node != HOST else made[::-1]
        if a.node == HOST:
            raise UnusableError(f"{place}.endpoints", "both ends are the host's", "links begin at a node")
        return self._link(place, given, a, z)

    def _link(self, place: str, given: Mapping[str, Value], a: Endpoint, z: Endpoint | None) -> Link:
        mtu = self.check.integer(f"{place}.mtu", given.get("mtu"), 68, 65535, DEFAULT_MTU)
        labels = self.check.texts(f"{place}.labels", given.get("labels"))
        return Link(a, z, mtu, f"{self.check.file}:{place}", labels)

    def _brief(self, place: str, value: Value) -> Endpoint:
        text = self.check.text(place, value)
        node, separator, interface = text.partition(":")
        if not node or not separator:
            raise UnusableError(place, f"`{text}` is not an endpoint", "write `node:interface`")
        if node in WORDS - {HOST}:
            raise UnusableError(
                place, f"endpoints of `{node}` cannot be built here", "links join two nodes, or one and `host`"
            )
        return self._made(place, node, interface)

    def _end(self, place: str, value: Value) -> Endpoint:
        if not isinstance(value, dict):
            raise UnusableError(place, "not a map", "write `{node: NAME, interface: eth1}`")
        given = self.check.map(place, value)
        self.check.keys(place, given, ENDPOINT, REFUSED)
        for key, right in (("node", "name a node"), ("interface", "write `eth1` for example")):
            if not given.get(key):
                raise UnusableError(f"{place}.{key}", "missing", right)
        node = self.check.text(f"{place}.node", given["node"])
        interface = self.check.text(f"{place}.interface", given["interface"])
        mac = self.check.mac(f"{place}.mac", given["mac"]) if "mac" in given else ""
        addresses = tuple(
            self._address(f"{place}.{family}", family, self.check.text(f"{place}.{family}", given[family]))
            for family in FAMILIES
            if family in given
        )
        return self._made(place, node, interface, mac, addresses)

    def _made(self, place: str, node: str, interface: str, mac: str = "", addresses: tuple[str, ...] = ()) -> Endpoint:
        if not re.fullmatch(r"[^\s/:]{1,15}", interface) or interface in (".", "..", "lo"):
            right = "1 to 15 characters without space, `/` and `:`, and not `lo`"
            raise UnusableError(place, f"`{interface}` is not an interface name", right)
        if not mac:
            # The same lab has the same addresses each time it is built.
            digest = hashlib.sha256(f"{self.lab}/{node}/{interface}".encode()).hexdigest()
            mac = ":".join((MAC_PREFIX, digest[0:2], digest[2:4], digest[4:6]))
        return Endpoint(node, interface, mac, addresses)

    def _address(self, place: str, family: str, text: str) -> str:
        try:
            if "/" not in text:
                raise ValueError
            return str(FAMILIES[family](text))
        except ValueError:
            right = "write an address with its prefix length, `192.0.2.1/24` or `2001:db8::1/64`"
            raise UnusableError(place, f"`{text}` is not an {family.replace('ip', 'IP')} address", right) from None
