"""Links and addresses of this namespace, as the monitor last heard of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from config.prefix import Family, address_text
from routes.messages import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_TEMPORARY,
    IFA_F_TENTATIVE,
    RT_SCOPE_UNIVERSE,
    Address,
    AddressEvent,
    Event,
    Link,
    LinkEvent,
)

_UNFIT = IFA_F_TEMPORARY | IFA_F_DADFAILED | IFA_F_DEPRECATED | IFA_F_TENTATIVE
_Key = tuple[int, bytes, int]


class Interfaces:
    """Pure: fed by the monitor, read by everybody in routes/."""

    def __init__(self) -> None:
        self._links: dict[int, Link] = {}
        self._named: dict[str, Link] = {}
        self._addresses: dict[_Key, Address] = {}

    def link(self, ifindex: int) -> Link | None:
        return self._links.get(ifindex)

    def named(self, name: str) -> Link | None:
        return self._named.get(name)

    def links(self) -> Iterator[Link]:
        return iter(self._links.values())

    def holders(self, address: bytes) -> list[int]:
        """Return the interfaces that have this address of ours."""
        return sorted({a.ifindex for a in self._addresses.values() if a.address == address})

    def owns(self, address: bytes) -> bool:
        return any(a.address == address for a in self._addresses.values())

    def global_addresses(self, ifindex: int, family: Family) -> list[bytes]:
        """Return an interface's addresses fit to be told to a peer, lowest first.

        Global scope, and neither temporary, deprecated, tentative nor found double (RFC 4862).
        """
        return sorted(
            a.address
            for a in self._addresses.values()
            if a.ifindex == ifindex
            and a.family == family
            and a.scope == RT_SCOPE_UNIVERSE
            and (family == 4 or not a.flags & _UNFIT)
        )

    def subnets(self) -> list[str]:
        """Return the addresses of all links but the loopback's with their prefix lengths: ``10.1.1.2/30``."""
        loopback = {link.ifindex for link in self._links.values() if link.name == "lo"}
        return [
            f"{address_text(a.address)}/{a.length}"
            for a in self._addresses.values()
            if a.ifindex not in loopback and a.scope == RT_SCOPE_UNIVERSE
        ]

    def apply(self, event: LinkEvent | AddressEvent) -> bool:
        """Take over one event; False where it told nothing new."""
        if isinstance(event, LinkEvent):
            link = event.link
            known = self._links.get(link.ifindex)
            if known is not None and (event.gone or known.name != link.name) and self._named.get(known.name) is known:
                del self._named[known.name]
            if event.gone:
                return self._links.pop(link.ifindex, None) is not None
            # A name is kept as long as it is the same: a node has thousands of links, and each changes several times.
            link = link._replace(name=known.name) if known is not None and known.name == link.name else link
            self._links[link.ifindex] = self._named[link.name] = link
            return known is None or (known.name, known.up) != (link.name, link.up)
        address = event.address
        key = address.ifindex, address.address, address.length
        if event.gone:
            return self._addresses.pop(key, None) is not None
        if self._addresses.get(key) == address:
            return False
        self._addresses[key] = address
        return True

    def replace(self, found: Iterable[Event]) -> list[Event]:
        """Take over a complete dump and return what differs from before, as events."""
        before = self._links, self._addresses
        self._links, self._named, self._addresses = {}, {}, {}
        for event in found:
            if isinstance(event, LinkEvent | AddressEvent):
                self.apply(event)
        links, addresses = before
        changed: list[Event] = [LinkEvent(link, True) for i, link in links.items() if i not in self._links]
        changed += [LinkEvent(link, False) for i, link in self._links.items() if links.get(i) != link]
        changed += [AddressEvent(a, True) for key, a in addresses.items() if key not in self._addresses]
        changed += [AddressEvent(a, False) for key, a in self._addresses.items() if addresses.get(key) != a]
        return changed
