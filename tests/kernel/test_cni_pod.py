"""Pods wired by the installed plugin, called as a runtime calls it, in real namespaces."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from cni import netlink
from cni.hooks import Handle
from cni.podnet import PodLinks, PodNetwork, host_ifname
from config.prefix import Family
from tests.kernel.cni_node import Ledger, Node, open_descriptors, pings
from tests.netns import Netns, link

pytestmark = pytest.mark.root
MakeNetns = Callable[[], Netns]


@pytest_asyncio.fixture
async def node(tmp_path: Path, netns: MakeNetns) -> AsyncIterator[Node]:
    node = Node(tmp_path, netns())
    await node.start()
    yield node
    await node.stop()


async def test_a_pod_is_reached_from_its_node_and_reaches_it(node: Node, netns: MakeNetns) -> None:
    pod = netns()
    added = await node.add("c1", pod)
    assert added.addresses == ["10.64.0.1", "fd00:64::1"]
    assert pings(node.host, *added.addresses)
    assert pings(pod, "192.0.2.1", "2001:db8::1")


async def test_pods_reach_each_other_through_the_node(node: Node, netns: MakeNetns) -> None:
    one, two = netns(), netns()
    first, second = await node.add("c1", one), await node.add("c2", two)
    assert pings(one, *second.addresses)
    assert pings(two, *first.addresses)
    # One hop, the node: no bridge joins them.
    assert "ttl=63" in one.run("ping", "-c1", "-W2", second.addresses[0])


async def test_the_result_says_what_was_made(node: Node, netns: MakeNetns) -> None:
    pod = netns()
    result = (await node.add("c1", pod, dns={"nameservers": ["192.0.2.53"]})).json
    host, inner = result["interfaces"]
    assert host == {"name": host_ifname(Handle("podroute", "c1", "eth0")), "mac": host["mac"], "mtu": 1500}
    assert inner == {"name": "eth0", "mac": inner["mac"], "mtu": 1500, "sandbox": pod.path}
    assert f"link/ether {host['mac']} " in node.host.run("ip", "link", "show", host["name"])
    assert f"link/ether {inner['mac']} " in pod.run("ip", "link", "show", "eth0")
    assert result["ips"] == [
        {"address": "10.64.0.1/32", "gateway": "169.254.1.1", "interface": 1},
        {"address": "fd00:64::1/128", "gateway": "fe80::1", "interface": 1},
    ]
    assert result["routes"] == [
        {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
        {"dst": "::/0", "gw": "fe80::1"},
    ]
    assert result["dns"] == {"nameservers": ["192.0.2.53"]}


async def test_what_the_pod_finds_inside(node: Node, netns: MakeNetns) -> None:
    pod = netns()
    await node.add("c1", pod)
    assert "inet 10.64.0.1/32 scope global eth0" in pod.run("ip", "address", "show", "eth0")
    six = pod.run("ip", "-6", "address", "show", "dev", "eth0", "scope", "global")
    assert "fd00:64::1/128" in six
    assert "tentative" not in six, "duplicate address detection would delay the first packet"
    assert "default via 169.254.1.1 dev eth0" in pod.run("ip", "route")
    assert "default via fe80::1 dev eth0" in pod.run("ip", "-6", "route")
    neighbours = pod.run("ip", "neigh", "show", "nud", "permanent")
    assert "169.254.1.1 dev eth0" in neighbours
    assert "fe80::1 dev eth0" in neighbours


async def test_what_the_node_holds_of_a_pod(node: Node, netns: MakeNetns) -> None:
    await node.add("c1", netns())
    name = host_ifname(Handle("podroute", "c1", "eth0"))
    assert f"10.64.0.1 dev {name} proto 201 scope link" in node.host.run("ip", "route")
    assert f"fd00:64::1 dev {name} proto 201" in node.host.run("ip", "-6", "route")
    neighbours = node.host.run("ip", "neigh", "show", "dev", name, "nud", "permanent")
    assert "10.64.0.1" in neighbours
    assert "fd00:64::1" in neighbours
    assert not node.host.run("ip", "address", "show", "dev", name, "scope", "link").count("inet6")

    def sysctl(path: str) -> str:
        return node.host.run("cat", f"/proc/sys/net/{path}").strip()

    assert sysctl(f"ipv4/conf/{name}/rp_filter") == "1"
    assert sysctl(f"ipv4/conf/{name}/forwarding") == "1"
    assert sysctl(f"ipv6/conf/{name}/accept_ra") == "0"
    assert sysctl(f"ipv6/conf/{name}/forwarding") == "1"
    assert node.hooks.pods == {Handle("podroute", "c1", "eth0"): name}
    attributes = node.ledger.held[Handle("podroute", "c1", "eth0")].attributes
    assert attributes["hostInterface"] == name


async def test_a_pod_cannot_speak_with_an_address_that_is_not_its_own(node: Node, netns: MakeNetns) -> None:
    pod = netns()
    await node.add("c1", pod)
    pod.run("ip", "address", "add", "10.64.0.77/32", "dev", "eth0")
    assert "bytes from" not in pod.run("ping", "-c1", "-W1", "-I", "10.64.0.77", "192.0.2.1", check=False)


async def test_router_advertisements_of_a_pod_are_not_taken(node: Node, netns: MakeNetns) -> None:
    """Also where the node takes them by default, as behind a router that announces its default route."""
    node.host.run("sh", "-c", "echo 2 >/proc/sys/net/ipv6/conf/default/accept_ra")
    settings: dict[Family, str] = {4: "disable_ipv6 1", 6: "accept_ra 0"}
    for family, setting in settings.items():
        node.ledger.families = (family,)
        await node.add(f"c{family}", netns())
        name = host_ifname(Handle("podroute", f"c{family}", "eth0"))
        key, value = setting.split()
        assert node.host.run("cat", f"/proc/sys/net/ipv6/conf/{name}/{key}") == f"{value}\n"


async def test_delete_leaves_nothing(node: Node, netns: MakeNetns) -> None:
    pod = netns()
    await node.add("c1", pod)
    assert (await node.delete("c1", pod)).status == 0
    assert await node.remains() == []
    assert "eth0" not in pod.run("ip", "link")


@pytest.mark.parametrize("families", [(4,), (6,)])
async def test_single_stack(tmp_path: Path, netns: MakeNetns, families: tuple[int, ...]) -> None:
    node = Node(tmp_path, netns(), ledger=Ledger(families))  # type: ignore[arg-type]
    await node.start()
    pod = netns()
    added = await node.add("c1", pod)
    assert len(added.addresses) == 1
    assert pings(node.host, *added.addresses)
    assert (await node.delete("c1")).status == 0
    assert await node.remains() == []
    await node.stop()


async def test_a_pod_whose_namespace_has_ipv6_off_gets_it_back(node: Node, netns: MakeNetns) -> None:
    pod = netns()
    for where in ("all", "default"):
        pod.run("sh", "-c", f"echo 1 >/proc/sys/net/ipv6/conf/{where}/disable_ipv6")
    added = await node.add("c1", pod)
    assert pings(node.host, *added.addresses)


async def test_mtu_follows_the_way_to_the_peers(node: Node, netns: MakeNetns) -> None:
    node.host.run("ip", "route", "add", "prohibit", "203.0.113.0/24")
    node.hooks.ways = ["192.0.2.9", "2001:db8::9", "198.51.100.1", "203.0.113.1", "127.0.0.1", "fe80::1%gone"]
    first = await node.add("c1", netns())
    assert [i["mtu"] for i in first.json["interfaces"]] == [1400, 1400]
    node.hooks.ways = ["fe80::1%uplink"]
    node.host.run("ip", "link", "set", "uplink", "mtu", "1350")
    pod = netns()
    assert (await node.add("c2", pod)).status == 0
    assert "mtu 1350" in pod.run("ip", "link", "show", "eth0")


@pytest.mark.parametrize("ways", [[], ["127.0.0.1"], ["198.51.100.1"]])
async def test_mtu_without_a_way_to_any_peer(node: Node, netns: MakeNetns, ways: list[str]) -> None:
    node.hooks.ways = ways
    assert (await node.add("c1", netns())).json["interfaces"][1]["mtu"] == 1500


async def test_an_mtu_that_ipv6_cannot_have(node: Node, netns: MakeNetns) -> None:
    refused = await node.add("c1", netns(), mtu=1279)
    assert refused.json["code"] == 7
    assert "mtu 1279 is too small for IPv6" in refused.json["msg"]
    assert await node.remains() == []
    assert (await node.add("c1", netns(), mtu=1280)).status == 0


async def test_mtu_of_the_network_configuration_comes_first(node: Node, netns: MakeNetns) -> None:
    node.hooks.ways = ["192.0.2.9"]
    pod = netns()
    assert (await node.add("c1", pod, mtu=9000)).status == 0
    assert "mtu 9000" in pod.run("ip", "link", "show", "eth0")
    host = node.host.run("ip", "link", "show", host_ifname(Handle("podroute", "c1", "eth0")))
    assert "mtu 9000" in host


async def test_addresses_and_mac_asked_for(node: Node, netns: MakeNetns) -> None:
    pod = netns()
    runtime = {"ips": ["10.64.0.77/24"], "mac": "02:00:00:00:00:77"}
    added = await node.add("c1", pod, runtimeConfig=runtime)
    assert added.addresses == ["10.64.0.77"]
    assert "02:00:00:00:00:77" in pod.run("ip", "link", "show", "eth0")
    assert pings(node.host, "10.64.0.77")


async def test_two_interfaces_in_one_pod(node: Node, netns: MakeNetns) -> None:
    """Default routes lead through the first; answers leave where the question came in."""
    pod = netns()
    first = await node.add("c1", pod)
    second = await node.add("c1", pod, ifname="eth1")
    assert second.json["routes"] == []
    assert pings(node.host, *first.addresses, *second.addresses)
    assert pings(pod, "192.0.2.1", "2001:db8::1")
    for family in ("-4", "-6"):
        assert pod.run("ip", family, "route", "show", "default").count("dev eth0") == 1
        assert "eth1" not in pod.run("ip", family, "route", "show", "default")
    for ifname, added in (("eth0", first), ("eth1", second)):
        checked = await node.call("CHECK", "c1", pod.path, ifname=ifname, prevResult=added.json)
        assert checked == (0, b"", "")
    assert (await node.delete("c1", pod, ifname="eth1")).status == 0
    await node.settled()
    assert pings(node.host, *first.addresses)
    assert rules(pod) == 0
    again = await node.add("c1", pod, ifname="eth1")
    assert pings(node.host, *again.addresses)
    assert (await node.delete("c1", ifname="eth1")).status == 0
    assert (await node.delete("c1", pod)).status == 0
    assert await node.remains() == []


async def test_a_further_interface_that_fails_leaves_no_rule(
    node: Node, netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = netns()
    assert (await node.add("c1", pod)).status == 0

    def fail(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as broken:
        broken.setattr(PodLinks, "_lead_to_pod", fail)
        assert (await node.add("c1", pod, ifname="eth1")).json["code"] == 5
    assert rules(pod) == 0
    assert (await node.add("c1", pod, ifname="eth1")).status == 0
    pod.run("ip", "rule", "add", "from", "203.0.113.1", "lookup", "100")
    assert rules(pod) == 2
    # Killed where nothing was undone, or deleted by hand: the next DEL finds what is nobody's.
    pod.run("ip", "link", "del", "eth1")
    assert (await node.delete("c1", pod)).status == 0
    assert rules(pod) == 0
    assert "203.0.113.1" in pod.run("ip", "rule")


def rules(pod: Netns) -> int:
    """Return how many rules further interfaces have."""
    return sum(pod.run("ip", family, "rule").count("lookup 167") for family in ("-4", "-6"))


async def test_check_finds_the_missing_rule_of_a_further_interface(node: Node, netns: MakeNetns) -> None:
    pod = netns()
    await node.add("c1", pod)
    second = await node.add("c1", pod, ifname="eth1")
    pod.run("ip", "-6", "rule", "del", "from", second.addresses[1])
    checked = await node.call("CHECK", "c1", pod.path, ifname="eth1", prevResult=second.json)
    assert checked.json["code"] == 102
    assert f"no rule for what comes from {second.addresses[1]}" in checked.json["msg"]


async def test_fifty_at_once(node: Node, netns: MakeNetns) -> None:
    pods = {f"c{n}": netns() for n in range(50)}
    added = await asyncio.gather(*(node.add(name, pod) for name, pod in pods.items()))
    addresses = [address for outcome in added for address in outcome.addresses]
    assert len(set(addresses)) == 100
    assert pings(pods["c0"], *added[49].addresses)
    assert pings(node.host, *added[25].addresses)
    deleted = await asyncio.gather(*(node.delete(name, pod) for name, pod in pods.items()))
    assert {outcome.status for outcome in deleted} == {0}
    assert await node.remains() == []


async def test_an_address_given_anew_leads_to_the_new_pod(node: Node, netns: MakeNetns) -> None:
    for container in ("c1", "c2", "c3"):
        pod = netns()
        added = await node.add(container, pod)
        assert added.addresses[0] == "10.64.0.1"
        assert pings(node.host, *added.addresses)
        await node.delete(container)
        await node.settled()


async def test_the_first_packet_is_not_lost(node: Node, netns: MakeNetns) -> None:
    """With equal indexes of both ends the kernel delays the carrier; the first pod of a small host would get them."""
    for number in range(4):
        pod = netns()
        added = await node.add(f"c{number}", pod)
        assert "1 received" in pod.run("ping", "-c1", "-W1", "192.0.2.1", check=False)
        assert "1 received" in node.host.run("ping", "-c1", "-W1", added.addresses[0], check=False)


async def test_a_peer_beyond_the_node_sees_the_pods_own_address(node: Node, netns: MakeNetns) -> None:
    router, pod = netns(), netns()
    link(node.host, "eth0", router, "eth0")
    node.host.run("ip", "address", "add", "198.51.100.1/24", "dev", "eth0")
    router.run("ip", "address", "add", "198.51.100.2/24", "dev", "eth0")
    router.run("ip", "route", "add", "10.64.0.0/26", "via", "198.51.100.1")
    assert (await node.add("c1", pod)).status == 0

    def listen() -> socket.socket:
        server = socket.create_server(("198.51.100.2", 8080))
        server.settimeout(10)
        return server

    with router.call(listen) as server:
        client = pod.call(lambda: socket.create_connection(("198.51.100.2", 8080), 10))
        with client:
            accepted, source = server.accept()
            accepted.close()
    assert source[0] == "10.64.0.1"


async def test_no_descriptor_is_leaked(node: Node, netns: MakeNetns) -> None:
    pod = netns()
    await node.add("warm", pod)
    await node.delete("warm")
    await node.settled()
    with open_descriptors():
        for _ in range(3):
            assert (await node.add("c1", pod)).status == 0
            assert (await node.add("c1", pod)).status == 1
            assert (await node.delete("c1", pod)).status == 0
        await node.settled()


async def test_a_changed_mac_is_followed(node: Node, netns: MakeNetns) -> None:
    """The plugin tuning changes it; the host's entries are permanent, and the pod's own go with the change."""
    pod = netns()
    added = await node.add("c1", pod)
    name = host_ifname(Handle("podroute", "c1", "eth0"))
    pod.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
    async with asyncio.timeout(60):
        while node.host.run("ip", "neigh", "show", "dev", name).count("02:00:00:00:00:01 PERMANENT") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert pings(node.host, *added.addresses)
    assert pings(pod, "192.0.2.1", "2001:db8::1")


async def test_a_mac_that_changed_while_the_agent_was_away_is_followed(node: Node, netns: MakeNetns) -> None:
    pod = netns()
    added = await node.add("c1", pod)
    await node.stop()
    pod.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
    await node.start()
    assert pings(node.host, *added.addresses)
    assert pings(pod, "192.0.2.1", "2001:db8::1")


async def test_a_pod_of_an_earlier_release_is_finished(node: Node, netns: MakeNetns) -> None:
    """Its host end got an alias as the last step, and no tag."""
    pod = netns()
    added = await node.add("c1", pod)
    await node.stop()
    name = host_ifname(Handle("podroute", "c1", "eth0"))
    node.host.run("ip", "link", "set", name, "alias", "podroute podroute/c1/eth0")
    node.host.run("sh", "-c", f"echo 0 >/proc/sys/net/ipv4/conf/{name}/tag")
    await node.start()
    assert pings(node.host, *added.addresses)
    assert await node.call("CHECK", "c1", pod.path, prevResult=added.json) == (0, b"", "")
    pod.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
    async with asyncio.timeout(60):
        while node.host.run("ip", "neigh", "show", "dev", name).count("02:00:00:00:00:01 PERMANENT") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("away", [False, True])
async def test_a_host_end_that_went_down_and_up_has_its_neighbours(node: Node, netns: MakeNetns, away: bool) -> None:
    """The kernel drops them. IPv6 does not work without, for the host end has no address that could ask for the pod."""
    added = await node.add("c1", netns())
    name = host_ifname(Handle("podroute", "c1", "eth0"))
    if away:
        await node.stop()
    node.host.run("ip", "link", "set", name, "down")
    assert "PERMANENT" not in node.host.run("ip", "neigh", "show", "dev", name)
    node.host.run("ip", "link", "set", name, "up")
    if away:
        await node.start()
    async with asyncio.timeout(60):
        while node.host.run("ip", "neigh", "show", "dev", name).count("PERMANENT") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for family, address in zip(("-4", "-6"), added.addresses, strict=True):  # which is the Fib's part
        node.host.run("ip", family, "route", "replace", address, "dev", name)
    assert pings(node.host, *added.addresses)


async def test_a_pod_that_ends_while_the_agent_starts_is_no_reason_to_crash(
    node: Node, netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host end is seen, and then its namespace has gone: the kernel knows nobody of that number."""
    assert (await node.add("c1", netns())).status == 0
    await node.stop()
    look = netlink.get_link_elsewhere
    monkeypatch.setattr(netlink, "get_link_elsewhere", lambda index, _: look(index, 9999))
    await node.start()


@pytest.mark.parametrize("forwarding", [False, True])
async def test_forwarding_inside_the_pod(tmp_path: Path, netns: MakeNetns, forwarding: bool) -> None:
    node = Node(tmp_path, netns())
    node.network = PodNetwork(forwarding=forwarding)
    await node.start()
    pod = netns()
    pod.run("sh", "-c", f"echo {int(not forwarding)} >/proc/sys/net/ipv4/ip_forward")
    assert (await node.add("c1", pod)).status == 0
    assert pod.run("cat", "/proc/sys/net/ipv4/ip_forward") == f"{int(forwarding)}\n"
    assert pod.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding") == f"{int(forwarding)}\n"
    await node.stop()


async def test_nobodys_announcement_of_a_pods_address_wins(node: Node, netns: MakeNetns) -> None:
    added = await node.add("c1", netns())
    for family, address, via in (("-4", added.addresses[0], "192.0.2.9"), ("-6", added.addresses[1], "2001:db8::9")):
        learned = [address, "via", via, "dev", "uplink", "proto", "201", "metric", "20"]
        node.host.run("ip", family, "route", "add", *learned)
        assert "uplink" not in node.host.run("ip", family, "route", "get", address)
    assert pings(node.host, *added.addresses)
