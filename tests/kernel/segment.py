"""A node and gateways on one Ethernet segment, where a gateway can fall silent without any link noticing."""

from __future__ import annotations

from collections.abc import Callable

from tests.netns import Netns, link

DESTINATIONS = [f"192.0.2.{number}" for number in range(1, 17)]


class Segment:
    """A node and gateways, 10.0.0.2, 10.0.0.3 and so on, on one bridge; all gateways have the DESTINATIONS."""

    def __init__(self, make: Callable[[], Netns], gateways: int = 2) -> None:
        self.switch, self.node = make(), make()
        self.gateways = {number: make() for number in range(2, 2 + gateways)}
        self.switch.run("ip", "link", "add", "br0", "type", "bridge")
        self.switch.run("ip", "link", "set", "br0", "up")
        for number, ns in {1: self.node, **self.gateways}.items():
            link(ns, "eth0", self.switch, f"p{number}")
            self.speak(number)
            ns.run("ip", "address", "add", f"10.0.0.{number}/24", "dev", "eth0")
            ns.run("ip", "address", "add", f"fd00::{number}/64", "dev", "eth0", "nodad")
        for ns in self.gateways.values():
            for address in DESTINATIONS:
                ns.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        quick = ("base_reachable_time_ms=100", "retrans_time_ms=100", "delay_first_probe_time=0")
        few = ("ucast_solicit=3", "mcast_solicit=3")
        for family in ("ipv4", "ipv6"):
            self.node.run("sysctl", "-qw", *(f"net.{family}.neigh.eth0.{setting}" for setting in (*quick, *few)))
        self.node.run("sysctl", "-qw", "net.ipv4.fib_multipath_hash_policy=0")

    def silence(self, number: int) -> None:
        """Nothing of a gateway gets through any more; its link and the node's keep their carrier."""
        self.switch.run("ip", "link", "set", f"p{number}", "nomaster")

    def speak(self, number: int) -> None:
        self.switch.run("ip", "link", "set", f"p{number}", "master", "br0")

    def use(self, number: int) -> None:
        """Send to a silent gateway until the kernel must have noticed."""
        self.node.run("ping", "-c8", "-i0.1", "-W1", f"10.0.0.{number}", check=False)

    def used(self) -> set[str]:
        """Return the gateways by which the node sends to the DESTINATIONS."""
        found = (self.node.run("ip", "route", "get", address).split() for address in DESTINATIONS)
        return {words[words.index("via") + 1] for words in found}

    def reach_all(self) -> None:
        for address in DESTINATIONS:
            self.node.run("ping", "-c1", "-W5", address)
