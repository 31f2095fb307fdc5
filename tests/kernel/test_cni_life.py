"""A pod's life as runtimes lead it: ADD twice, DEL at all times, CHECK after damage, GC, refused calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cni import verbs
from cni.hooks import AddressError, Assignment, Handle
from cni.podnet import HostLink, PodLinks, host_ifname
from cni.verbs import Verbs
from tests.kernel.cni_node import Ledger, Node, Outcome, pings
from tests.netns import Netns

pytestmark = pytest.mark.root
MakeNetns = Callable[[], Netns]
C1 = Handle("podroute", "c1", "eth0")


@pytest_asyncio.fixture
async def node(tmp_path: Path, netns: MakeNetns) -> AsyncIterator[Node]:
    node = Node(tmp_path, netns())
    await node.start()
    yield node
    await node.stop()


def test_names_of_host_ends_differ_by_every_part_of_the_handle() -> None:
    handles = [Handle("n", "c", "eth0"), Handle("m", "c", "eth0"), Handle("n", "d", "eth0"), Handle("n", "c", "eth1")]
    names = {host_ifname(handle) for handle in handles}
    assert len(names) == 4
    assert all(len(name) == 15 for name in names)


class TestAdd:
    async def test_again_is_refused_and_harms_nothing(self, node: Node, netns: MakeNetns) -> None:
        pod = netns()
        added = await node.add("c1", pod)
        before = node.traces()
        again = await node.add("c1", pod)
        assert (again.status, again.json["code"]) == (1, 101)
        assert node.traces() == before
        assert pings(node.host, *added.addresses)

    async def test_again_for_another_namespace_is_refused_too(self, node: Node, netns: MakeNetns) -> None:
        added = await node.add("c1", netns())
        assert (await node.add("c1", netns())).json["code"] == 101
        assert pings(node.host, *added.addresses)

    async def test_an_interface_of_that_name_is_left_alone(self, node: Node, netns: MakeNetns) -> None:
        pod = netns()
        pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
        refused = await node.add("c1", pod)
        assert refused.json["code"] == 101
        assert "eth0" in refused.json["msg"]
        assert "eth0" in pod.run("ip", "link")
        assert await node.remains() == []

    async def test_one_cut_short_is_done_anew(self, node: Node, netns: MakeNetns) -> None:
        """Addresses in the ledger, and a host end without the mark of a finished one."""
        pod = netns()
        await node.add("c1", pod)
        node.host.run("sh", "-c", f"echo 0 >/proc/sys/net/ipv4/conf/{host_ifname(C1)}/tag")
        other = netns()
        added = await node.add("c1", other)
        assert pings(node.host, *added.addresses)
        assert "eth0" not in pod.run("ip", "link")

    async def test_a_stale_route_of_ours_gives_way(self, node: Node, netns: MakeNetns) -> None:
        node.host.run("ip", "route", "add", "10.64.0.1/32", "dev", "uplink", "proto", "201", "scope", "link")
        node.host.run("ip", "-6", "route", "add", "fd00:64::1/128", "dev", "uplink", "proto", "201")
        added = await node.add("c1", netns())
        assert pings(node.host, *added.addresses)

    @pytest.mark.parametrize("where", [("-4", "10.64.0.1/32", "0"), ("-6", "fd00:64::1/128", "1")])
    async def test_a_foreign_route_does_not(self, node: Node, netns: MakeNetns, where: tuple[str, str, str]) -> None:
        node.host.run("ip", where[0], "route", "add", where[1], "dev", "uplink", "metric", where[2])
        before = node.traces()
        refused = await node.add("c1", netns())
        assert refused.json["code"] == 103
        assert "not podroute's" in refused.json["msg"]
        assert node.traces() == before
        assert "uplink" in node.host.run("ip", where[0], "route", "show", where[1])

    async def test_no_address_left(self, tmp_path: Path, netns: MakeNetns) -> None:
        node = Node(tmp_path, netns(), ledger=Ledger(size=1))
        await node.start()
        await node.add("c1", netns())
        refused = await node.add("c2", netns())
        assert refused.json["code"] == 100
        assert "full" in refused.json["details"]
        assert list(node.ledger.held) == [C1]
        await node.stop()

    @pytest.mark.parametrize(("retry", "code"), [(True, 11), (False, 100)])
    async def test_a_ledger_that_fails(self, node: Node, netns: MakeNetns, retry: bool, code: int) -> None:
        node.ledger.trouble = AddressError("disk full", retry=retry)
        refused = await node.add("c1", netns())
        assert refused.json["code"] == code
        assert refused.json["details"] == "disk full"
        assert (await node.delete("c1")).json["code"] == code
        node.ledger.trouble = None
        assert await node.remains() == []

    async def test_a_ledger_that_hangs(self, node: Node, netns: MakeNetns, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verbs, "ALLOCATION_LIMIT", 0.01)
        node.ledger.hangs = True
        refused = await node.add("c1", netns())
        assert refused.json["code"] == 11
        assert await node.remains() == []

    async def test_an_agent_that_fails_afterwards(self, node: Node, netns: MakeNetns) -> None:
        async def pod_added(*arguments: object, **named: object) -> None:
            raise ZeroDivisionError("a fault of ours")

        node.hooks.pod_added = pod_added  # type: ignore[method-assign]
        pod = netns()
        refused = await node.add("c1", pod)
        assert refused.json["code"] == 999
        assert "a fault of ours" in refused.json["details"]
        assert await node.remains() == []
        assert "eth0" not in pod.run("ip", "link")

    async def test_behind_another_plugin_is_refused(self, node: Node, netns: MakeNetns) -> None:
        refused = await node.add("c1", netns(), prevResult={"cniVersion": "1.1.0", "interfaces": []})
        assert refused.json["code"] == 7
        assert await node.remains() == []

    async def test_undone_when_the_plugin_was_killed_waiting(self, node: Node, netns: MakeNetns) -> None:
        """The runtime counts it as failed."""
        pod = netns()
        release = asyncio.Event()
        entered_hook = asyncio.Event()
        original = node.hooks.pod_added

        async def pod_added(*arguments: object, **named: object) -> None:
            await original(*arguments, **named)  # type: ignore[arg-type]
            entered_hook.set()
            await release.wait()

        node.hooks.pod_added = pod_added  # type: ignore[method-assign]
        process = await asyncio.create_subprocess_exec(
            node.installed.binary,
            stdin=asyncio.subprocess.PIPE,
            env={"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"},
        )
        assert process.stdin
        process.stdin.write(b'{"cniVersion":"1.1.0","name":"podroute","type":"podroute"}')
        process.stdin.close()
        await entered_hook.wait()
        process.kill()
        await process.wait()
        release.set()
        await node.stop()
        assert await node.remains() == []


class TestDelete:
    @pytest.mark.parametrize("times", [1, 2])
    async def test_the_unknown(self, node: Node, netns: MakeNetns, times: int) -> None:
        for _ in range(times):
            assert await node.delete("c1", netns()) == (0, b"", "")

    async def test_twice(self, node: Node, netns: MakeNetns) -> None:
        await node.add("c1", netns())
        assert await node.delete("c1") == (0, b"", "")
        assert await node.delete("c1") == (0, b"", "")

    async def test_a_namespace_that_vanished(self, node: Node, netns: MakeNetns) -> None:
        pod = Netns()
        path = pod.path
        await node.add("c1", pod)
        pod.close()
        assert (await node.call("DEL", "c1", path)).status == 0
        assert await node.remains() == []

    async def test_a_namespace_that_is_none(self, node: Node, netns: MakeNetns) -> None:
        await node.add("c1", netns())
        assert (await node.call("DEL", "c1", "/dev/null")).status == 0
        assert await node.remains() == []

    async def test_a_late_one_spares_the_newer_container(self, node: Node, netns: MakeNetns) -> None:
        """A runtime restarts a container in the same namespace; the old one's DEL comes last."""
        pod = netns()
        await node.add("old", pod)
        pod.run("ip", "link", "del", "eth0")
        new = await node.add("new", pod)
        assert (await node.delete("old", pod)).status == 0
        await node.settled()
        assert pings(node.host, *new.addresses)
        assert [handle.container_id for handle in node.ledger.held] == ["new"]

    async def test_answers_once_the_pod_is_cut_off(
        self, node: Node, netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The address is free only when the link is gone."""
        deleted = threading.Event()
        original = PodLinks.delete_cut

        def delete_cut(links: PodLinks) -> None:
            assert deleted.wait(60)
            original(links)

        monkeypatch.setattr(PodLinks, "delete_cut", delete_cut)
        pod = netns()
        added = await node.add("c1", pod)
        assert (await node.delete("c1", pod)).status == 0
        assert "state DOWN" in node.host.run("ip", "link", "show", host_ifname(C1))
        assert node.host.run("ip", "route", "show", "proto", "201") == ""
        assert node.host.run("ip", "-6", "route", "show", "proto", "201") == ""
        assert "bytes from" not in pod.run("ping", "-c1", "-W1", "192.0.2.1", check=False)
        assert list(node.ledger.held) == [C1], "not free yet"
        assert node.hooks.pods == {}
        assert (await node.call("CHECK", "c1", pod.path, prevResult=added.json)).json["code"] == 102
        assert (await node.delete("c1", pod)).status == 0
        again = asyncio.create_task(node.add("c1", netns()))
        other = await node.add("c2", netns())
        assert not set(other.addresses) & set(added.addresses)
        assert not again.done()
        deleted.set()
        assert pings(node.host, *(await again).addresses)

    async def test_what_is_freed_by_it_is_waited_for(self, tmp_path: Path, netns: MakeNetns) -> None:
        node = Node(tmp_path, netns(), ledger=Ledger(size=1))
        await node.start()
        for number in range(5):
            assert (await node.add(f"c{number}", netns())).status == 0
            assert (await node.delete(f"c{number}")).status == 0
        await node.stop()
        assert node.traces() == []

    async def test_links_that_cannot_be_deleted(
        self, node: Node, netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They stay cut off and in the ledger, until DEL, GC or the next start tries again."""

        def delete_cut(links: PodLinks) -> None:
            raise OSError(16, "Device or resource busy")

        await node.add("c1", netns())
        with monkeypatch.context() as patched:
            patched.setattr(PodLinks, "delete_cut", delete_cut)
            assert (await node.delete("c1")).status == 0
            await node.settled()
        assert list(node.ledger.held) == [C1]
        assert (await node.delete("c1")).status == 0
        assert await node.remains() == []

    async def test_the_network_of_that_name_only(self, node: Node, netns: MakeNetns) -> None:
        added = await node.add("c1", netns())
        assert (await node.delete("c1", network="another")).status == 0
        assert pings(node.host, *added.addresses)

    async def test_calls_for_one_handle_follow_each_other(self, node: Node, netns: MakeNetns) -> None:
        pod = netns()
        outcomes = await asyncio.gather(
            *(node.add("c1", pod) if number % 2 else node.delete("c1", pod) for number in range(12))
        )
        assert {outcome.json["code"] for outcome in outcomes if outcome.status} <= {101}
        await node.delete("c1", pod)
        assert await node.remains() == []


DAMAGES = {
    "pod's IPv4 address": ("pod", "ip address del 10.64.0.1/32 dev eth0", "does not have the address 10.64.0.1"),
    "pod's IPv6 address": ("pod", "ip address del fd00:64::1/128 dev eth0", "does not have the address fd00:64::1"),
    "pod's IPv4 default": ("pod", "ip route del default", "no default route via 169.254.1.1"),
    "pod's IPv6 default": ("pod", "ip -6 route del default", "no default route via fe80::1"),
    "pod's gateway entry": ("pod", "ip neigh del 169.254.1.1 dev eth0", "neighbour entry for 169.254.1.1"),
    "pod's gateway MAC": ("pod", "ip neigh replace fe80::1 lladdr 2:0:0:0:0:1 dev eth0", "neighbour entry for fe80::1"),
    "pod's end down": ("pod", "ip link set eth0 down", "eth0 is down"),
    "pod's end gone": ("pod", "ip link del eth0", "eth0 is gone"),
    "pod's end replaced": (
        "pod",
        "ip link del eth0; ip link add eth0 type veth peer name x; ip link set eth0 up",
        "is gone",
    ),
    "pod's end renamed": ("pod", "ip link set eth0 down; ip link set eth0 name eth9", "eth0 is gone"),
    "host's end down": ("host", "ip link set {host} down", "is down"),
    "host's IPv4 route": ("host", "ip route del 10.64.0.1", "route to 10.64.0.1 is gone"),
    "host's IPv6 route": ("host", "ip -6 route del fd00:64::1", "route to fd00:64::1 is gone"),
    "host's route stolen": (
        "host",
        "ip route del 10.64.0.1; ip route add 10.64.0.1 dev uplink",
        "route to 10.64.0.1 leads to",
    ),
    "host's entry": ("host", "ip neigh del 10.64.0.1 dev {host}", "neighbour entry for 10.64.0.1"),
    "host's entry may age": (
        "host",
        "ip neigh change fd00:64::1 dev {host} nud reachable",
        "neighbour entry for fd00:64::1",
    ),
}
CHANGES = {
    "nothing": "true",
    "MTU": "ip link set eth0 mtu 1300",
    "MAC": "ip link set eth0 address 02:00:00:00:00:01",
    "another address": "ip address add 203.0.113.1/32 dev eth0",
    "another route": "ip route add 203.0.113.0/24 via 169.254.1.1",
    "queueing": "ip link set eth0 txqueuelen 50",
}


class TestCheck:
    async def check(self, node: Node, pod: Netns, added: Outcome) -> Outcome:
        return await node.call("CHECK", "c1", pod.path, prevResult=added.json)

    @pytest.mark.parametrize("damage", DAMAGES)
    async def test_finds(self, node: Node, netns: MakeNetns, damage: str) -> None:
        where, command, expected = DAMAGES[damage]
        pod = netns()
        added = await node.add("c1", pod)
        (pod if where == "pod" else node.host).run("sh", "-c", command.format(host=host_ifname(C1)))
        checked = await self.check(node, pod, added)
        assert (checked.status, checked.json["code"]) == (1, 102)
        assert expected in checked.json["msg"] + "; " + checked.json.get("details", "")

    @pytest.mark.parametrize("change", CHANGES)
    async def test_lets_be(self, node: Node, netns: MakeNetns, change: str) -> None:
        pod = netns()
        added = await node.add("c1", pod)
        pod.run("sh", "-c", CHANGES[change])
        assert await self.check(node, pod, added) == (0, b"", "")

    async def test_finds_a_lost_ledger_entry(self, node: Node, netns: MakeNetns) -> None:
        pod = netns()
        added = await node.add("c1", pod)
        await node.ledger.release(C1)
        assert (await self.check(node, pod, added)).json["code"] == 102

    async def test_finds_an_address_that_the_runtime_does_not_know(self, node: Node, netns: MakeNetns) -> None:
        pod = netns()
        added = await node.add("c1", pod)
        previous = {**added.json, "ips": added.json["ips"][1:]}
        checked = await node.call("CHECK", "c1", pod.path, prevResult=previous)
        assert "prevResult lacks the address 10.64.0.1" in checked.json["msg"]

    async def test_needs_the_previous_result(self, node: Node, netns: MakeNetns) -> None:
        pod = netns()
        await node.add("c1", pod)
        assert (await node.call("CHECK", "c1", pod.path)).json["code"] == 7


class TestCollect:
    async def collect(self, node: Node, valid: list[dict[str, str]] | None) -> Outcome:
        return await node.call("GC", "", also={"cni.dev/valid-attachments": valid})

    async def test_removes_what_is_not_listed(self, node: Node, netns: MakeNetns) -> None:
        pods = {name: netns() for name in ("keep", "drop", "also")}
        kept = await node.add("keep", pods["keep"])
        await node.add("drop", pods["drop"])
        await node.add("also", pods["also"])
        await node.add("keep", netns(), network="another")
        assert await self.collect(node, [{"containerID": "keep", "ifname": "eth0"}]) == (0, b"", "")
        assert sorted(node.ledger.held) == [("another", "keep", "eth0"), ("podroute", "keep", "eth0")]
        assert pings(node.host, *kept.addresses)

    async def test_an_empty_list_removes_all(self, node: Node, netns: MakeNetns) -> None:
        await node.add("c1", netns())
        assert (await self.collect(node, None)).status == 0
        assert await node.remains() == []

    async def test_without_a_list_nothing_is_removed(self, node: Node, netns: MakeNetns) -> None:
        await node.add("c1", netns())
        assert (await node.call("GC", "")).json["code"] == 7
        assert list(node.ledger.held) == [C1]

    async def test_removes_links_that_no_ledger_knows(self, node: Node, netns: MakeNetns) -> None:
        await node.add("c1", netns())
        await node.ledger.release(C1)
        node.hooks.pods.clear()
        assert (await self.collect(node, [])).status == 0
        assert await node.remains() == []

    @pytest.mark.parametrize("by", ["GC", "check"])
    async def test_an_add_at_work_keeps_its_link(
        self, node: Node, netns: MakeNetns, monkeypatch: pytest.MonkeyPatch, by: str
    ) -> None:
        """Its link is there before the ledger knows of it, and was made while GC looked at the links."""
        looking, made, gate = threading.Event(), threading.Event(), asyncio.Event()
        look, make, allocate = PodLinks.list, PodLinks.make, node.ledger.allocate

        def slow_look(links: PodLinks) -> list[HostLink]:
            looking.set()
            made.wait(60)
            return look(links)

        def told_make(*arguments: Any) -> Any:
            pair = make(*arguments)
            made.set()
            return pair

        async def slow_allocate(*arguments: Any, **named: Any) -> Sequence[Assignment]:
            await gate.wait()
            return await allocate(*arguments, **named)

        monkeypatch.setattr(PodLinks, "list", slow_look)
        monkeypatch.setattr(PodLinks, "make", told_make)
        monkeypatch.setattr(node.ledger, "allocate", slow_allocate)
        assert node.server
        collecting: asyncio.Task[Any] = asyncio.create_task(
            self.collect(node, [{"containerID": "c1", "ifname": "eth0"}])
            if by == "GC"
            else self._check(node.server.verbs)
        )
        await asyncio.to_thread(looking.wait, 60)
        pod = netns()
        adding = asyncio.create_task(node.add("c1", pod))
        await collecting
        gate.set()
        assert pings(node.host, *(await adding).addresses)

    async def _check(self, verbs: Verbs) -> None:
        """As `podroute ipam check --fix` does."""
        for link in await verbs.links():
            assert not await verbs.remove_stray(link)

    async def test_foreign_interfaces_stay(self, node: Node, netns: MakeNetns) -> None:
        node.host.run("ip", "link", "add", "pr0123456789abc", "type", "veth", "peer", "name", "prx")
        node.host.run("ip", "link", "add", "mine", "group", "201", "type", "veth", "peer", "name", "mine2")
        assert (await self.collect(node, [])).status == 0
        links = node.host.run("ip", "link")
        assert "pr0123456789abc" in links
        assert "mine" in links


class TestStatus:
    async def test_ready(self, node: Node) -> None:
        assert await node.call("STATUS", "") == (0, b"", "")

    @pytest.mark.parametrize("code", [50, 51])
    async def test_not_ready(self, node: Node, code: int) -> None:
        node.hooks.trouble = (code, "no session is established")
        outcome = await node.call("STATUS", "")
        assert (outcome.status, outcome.json["code"]) == (1, code)
        assert outcome.json["details"] == "no session is established"

    async def test_version(self, node: Node) -> None:
        outcome = await node.call("VERSION", "")
        assert outcome.json["supportedVersions"] == ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
