"""Faults on a lab's links: a rate, loss, a packet limit, no carrier. Made of tbf, nftables and link state.

No netem is needed. Loss and limits are rules at the netdev ingress hook of the receiving end, so that they hit
everything, ARP and neighbour discovery too, in one direction only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labs.errors import LabError
from labs.node import Node

if TYPE_CHECKING:
    from labs.lab import Lab

TABLE = "podroute_lab_"
"""Begins the names of nftables' tables here; an interface's index follows."""
LATENCY = "50ms"
"""Time that a packet waits in tbf's queue at most."""
_RATE = re.compile(r"[1-9]\d*([kmg]?bit)", re.ASCII)


@dataclass(frozen=True, slots=True)
class End:
    """One end of a link."""

    node: Node
    interface: str

    def __str__(self) -> str:
        return f"{self.node.name}:{self.interface}"


class Link:
    """A link of a running lab as one of its ends sees it; ``out`` is what that end sends."""

    def __init__(self, here: End, there: End | None) -> None:
        self.here = here
        self._there = there

    @property
    def there(self) -> End:
        if self._there is None:
            raise LabError(f"{self.here}: its other end is not a node of this lab")
        return self._there

    @classmethod
    def find(cls, net: Lab, place: str) -> Link:
        """Return the link at ``NODE:INTERFACE``. Raises LabError."""
        name, _, interface = place.partition(":")
        node = net.node(name)
        known = []
        for link in net.describe()["links"]:
            ends = [(end["node"], end["interface"]) for end in link["endpoints"].values()]
            for index, end in enumerate(ends):
                if end[0] != name:
                    continue
                known.append(end[1])
                if end[1] == interface:
                    others = [other for position, other in enumerate(ends) if position != index]
                    peer = End(net.node(others[0][0]), others[0][1]) if others and others[0][0] in net.nodes else None
                    return cls(End(node, interface), peer)
        raise LabError(f"{place}: no such link end, node {name} has {', '.join(sorted(known)) or 'none'}")

    async def down(self) -> None:
        """Set this end down: both ends lose their carrier. Its IPv6 addresses stay, as on a pulled cable."""
        keep = f"net/ipv6/conf/{self.here.interface}/keep_addr_on_down=1"
        await self.here.node.run("sysctl", "-q", "-w", keep)
        await self.here.node.run("ip", "link", "set", self.here.interface, "down")

    async def up(self) -> None:
        await self.here.node.run("ip", "link", "set", self.here.interface, "up")

    async def rate(self, rate: str) -> None:
        """Let this end send ``rate`` (``10mbit``) at most."""
        if not _RATE.fullmatch(rate):
            raise LabError(f"`{rate}` is not a rate, write `500kbit` or `10mbit`")
        shape = ("rate", rate, "burst", "64kb", "latency", LATENCY)
        await self.here.node.run("tc", "qdisc", "replace", "dev", self.here.interface, "root", "tbf", *shape)

    async def lose(self, percent: float, *, direction: str = "out") -> None:
        """Lose a share of the packets at random, ``direction`` in, out or both; 100 loses all."""
        if not 0 < percent <= 100:
            raise LabError(f"a loss of {percent:g} % is not possible, it is above 0 and at most 100")
        rule = "drop" if percent == 100 else f"numgen random mod 10000 < {max(1, round(percent * 100))} drop"
        await self._rules(direction, rule)

    async def limit(self, packets: int, *, direction: str = "out") -> None:
        """Let ``packets`` per second through at most, and lose the others."""
        if packets < 1:
            raise LabError("a limit is at least 1 packet per second")
        await self._rules(direction, f"limit rate over {packets}/second drop")

    async def clear(self) -> None:
        """Remove all faults of this link that this class made, on both ends, and set this end up."""
        for end in (self.here, self._there):
            if end is not None:
                # Nothing there is no failure.
                await end.node.run("tc", "qdisc", "del", "dev", end.interface, "root", check=False)
                await end.node.run("nft", "delete", "table", "netdev", _table(end), check=False)
        await self.up()

    async def show(self) -> str:
        """Return what is set on both ends, as tc and nft print it."""
        parts = []
        for end in (self.here, self._there):
            if end is None:
                continue
            link = (await end.node.run("ip", "-br", "link", "show", "dev", end.interface)).stdout.strip()
            shape = (await end.node.run("tc", "qdisc", "show", "dev", end.interface, check=False)).stdout.strip()
            rules = (await end.node.run("nft", "list", "table", "netdev", _table(end), check=False)).stdout.strip()
            found = [line for line in (shape, rules) if line and "noqueue" not in line]
            parts.append("\n".join([f"{end}: {link}", *found]))
        return "\n".join(parts)

    async def _rules(self, direction: str, rule: str) -> None:
        ends = {"out": (self.there,), "in": (self.here,), "both": (self.here, self.there)}[direction]
        for end in ends:
            table = f"netdev {_table(end)}"
            chain = f'type filter hook ingress device "{end.interface}" priority -300; policy accept;'
            script = (
                f"add table {table}\ndelete table {table}\nadd table {table}\n"
                f"add chain {table} ingress {{ {chain} }}\nadd rule {table} ingress {rule}\n"
            )
            await end.node.run("nft", "-f", "-", input=script)


def _table(end: End) -> str:
    """Tables are named by what a name may hold: letters, digits and underscores."""
    return TABLE + re.sub(r"\W", "_", end.interface, flags=re.ASCII)
