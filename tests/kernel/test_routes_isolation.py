"""Rules that keep a container's packets in the node: exactly those that are wanted, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import pytest

from routes.isolation import Isolated, isolate
from tests.netns import Netns, link

pytestmark = pytest.mark.root


def isolated(address: str, device: str) -> Isolated:
    packed = ip_address(address).packed
    return Isolated(4 if len(packed) == 4 else 6, packed, device)


def rules(ns: Netns) -> list[str]:
    found = ns.run("ip", "-4", "rule") + ns.run("ip", "-6", "rule")
    return sorted(line.partition(":\t")[2].strip() for line in found.splitlines() if line.startswith("201:"))


def test_rules_follow_what_is_wanted_and_leave_others_alone(netns: Callable[[], Netns]) -> None:
    ns = netns()
    ns.run("ip", "rule", "add", "from", "10.64.0.9", "iif", "veth9", "prohibit", "priority", "201")
    assert ns.call(lambda: isolate([isolated("10.64.0.1", "veth1"), isolated("fd00::1", "veth1")])) == []
    theirs = "from 10.64.0.9 iif veth9 [detached] prohibit"
    assert rules(ns) == [
        "from 10.64.0.1 iif veth1 [detached] prohibit proto 201",
        theirs,
        "from fd00::1 iif veth1 [detached] prohibit proto 201",
    ]
    wanted = [isolated("10.64.0.1", "veth2"), isolated("fd00::1", "veth1")]
    for _ in range(2):
        assert ns.call(lambda: isolate(wanted)) == []
        assert len(rules(ns)) == 3
    assert "from 10.64.0.1 iif veth2 [detached] prohibit proto 201" in rules(ns)
    assert ns.call(lambda: isolate([])) == []
    assert rules(ns) == [theirs]


@pytest.mark.parametrize(("address", "to"), [("10.64.0.1", "192.0.2.1"), ("fd00:64::1", "2001:db8::1")])
def test_what_the_container_sends_stays_in_the_node(netns: Callable[[], Netns], address: str, to: str) -> None:
    host = 128 if ":" in address else 32
    pod, node, fabric = netns(), netns(), netns()
    link(pod, "eth0", node, "veth1")
    link(node, "uplink", fabric, "downlink")
    family = "-6" if ":" in address else "-4"
    for ns, own, device in ((pod, address, "eth0"), (fabric, to, "lo")):
        ns.run("ip", family, "addr", "add", f"{own}/{host}", "dev", device, *(["nodad"] if ":" in own else []))
    via = {"-4": ("169.254.1.1", "169.254.2.1"), "-6": ("fe80::1", "fe80::2")}[family]
    for ns, device, gateway in ((node, "veth1", via[0]), (node, "uplink", via[1])):
        ns.run("ip", family, "addr", "add", f"{gateway}/{host}", "dev", device, *(["nodad"] if ":" in gateway else []))
    onlink = [] if ":" in address else ["onlink"]
    pod.run("ip", family, "route", "add", "default", "via", via[0], "dev", "eth0", *onlink)
    fabric.run("ip", family, "route", "add", "default", "via", via[1], "dev", "downlink", *onlink)
    node.run("ip", family, "route", "add", address, "dev", "veth1")
    if ":" in to:  # IPv6 hosts do not answer for what they have on another link
        fabric.run("ip", "-6", "addr", "add", "fe80::3/128", "dev", "downlink", "nodad")
        node.run("ip", "-6", "route", "add", to, "via", "fe80::3", "dev", "uplink")
    else:
        node.run("ip", "-4", "route", "add", to, "dev", "uplink")
    node.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def ping(source: Netns, target: str) -> bool:
        return " 0% packet loss" in source.run("ping", family, "-c", "1", "-W", "2", target, check=False)

    assert ping(pod, to)
    assert node.call(lambda: isolate([isolated(address, "veth1")])) == []
    assert not ping(pod, to)
    # The node itself is not concerned
    assert ping(node, address)
    assert node.call(lambda: isolate([])) == []
    assert ping(pod, to)
