"""Another program's next-hop objects under ids of ours: whenever it takes them, they stay as they are."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from config.kernel import NEXT_HOP_IDS
from routes import netlink
from routes.dumps import read_nexthops
from routes.encode import delete_nexthop, new_group, new_nexthop
from routes.messages import Nexthop
from tests.kernel.routes_lab import Node, gateways, nexthops, packed, routes, running, uplinks, via, witness
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]
PROTOCOL = 11
PREFIX = "192.0.2.0/24"
heard = pytest.mark.parametrize("heard", [True, False], ids=["heard", "unheard"])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "fib.json"


class Stranger:
    """Another program; unheard, its events have not reached the node yet."""

    def __init__(self, node: Node, *, heard: bool) -> None:
        self._sock = node.ns.call(netlink.open_socket)
        self._ifindex = node.ns.call(lambda: socket.if_nametoindex("up0"))
        if not heard:
            node.monitor.ignore([netlink.port(self._sock)])

    def take(self, identifier: int) -> None:
        """Make an object, or have one of the node's become one's own."""
        request = bytearray(new_nexthop(identifier, PROTOCOL, packed("10.0.0.99"), self._ifindex))
        request[6:8] = (netlink.NLM_F_REQUEST | netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE).to_bytes(2, "little")
        self._send(request)

    def take_group(self, identifier: int, member: int) -> None:
        """Make a group, in the place of the node's."""
        self._send(delete_nexthop(identifier))
        self._send(new_group(identifier, PROTOCOL, [(member, 1)]))

    def there(self) -> list[Nexthop]:
        return [nexthop for nexthop in read_nexthops(self._sock) if nexthop.protocol == PROTOCOL]

    def close(self) -> None:
        self._sock.close()

    def _send(self, request: bytes | bytearray) -> None:
        self._sock.send(request)
        refused, _ = netlink.receive_refusals(self._sock)
        assert not refused


@contextmanager
def stranger(node: Node, *, heard: bool = False) -> Iterator[Stranger]:
    made = Stranger(node, heard=heard)
    try:
        yield made
    finally:
        made.close()


def object_and_group(ns: Netns) -> tuple[int, int]:
    """Return the ids of a node's only object and only group."""
    found = nexthops(ns)
    (group,) = [i for i, nexthop in found.items() if nexthop.members]
    (single,) = [i for i, nexthop in found.items() if not nexthop.members]
    return single, group


@heard
@pytest.mark.parametrize("turns", [0, 1, 2, None], ids=["unsent", "sent", "later", "answered"])
async def test_ids_that_were_taken_before_we_asked_for_them(
    netns: Maker, state: Path, turns: int | None, *, heard: bool
) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state) as node:
        with stranger(node, heard=heard) as other:
            for identifier in NEXT_HOP_IDS[:4]:
                other.take(identifier)
            before = other.there()
            node.learn(PREFIX, via("a=10.0.0.2"))
            if turns is None:
                await node.drained()
                assert gateways(ns, PREFIX) == {"10.0.0.2 up0"}
            for _ in range(turns or 0):
                await asyncio.sleep(0)
            node.fib.peer_lost("a")
            node.learn(PREFIX, None)
            await node.drained()
            assert other.there() == before
    assert nexthops(ns) == {}


def leads(ns: Netns) -> set[str]:
    """Return where PREFIX leads; nowhere while it leads through another program's objects."""
    try:
        return gateways(ns, PREFIX)
    except KeyError:
        return set()


@heard
@pytest.mark.parametrize("then", ["lost", "withdrawn", "joined", "compared", "stopped"])
async def test_ids_of_ours_that_were_taken_over(netns: Maker, state: Path, then: str, *, heard: bool) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state) as node, witness(ns) as seen:
        node.learn(PREFIX, via("a=10.0.0.2"))
        await node.drained()
        with stranger(node, heard=heard) as other:
            single, group = object_and_group(ns)
            other.take(single)
            other.take_group(group, single)  # the node's routes are gone with its group
            before = other.there()
            assert {nexthop.id for nexthop in before} == {single, group}
            if then == "stopped":
                await node.stop()
                assert nexthops(ns) == {}
            elif then == "joined":
                node.learn("198.51.100.0/24", via("a=10.0.0.2", "b=10.0.1.2"))
            elif then == "compared":
                node.fib.resync("a test")
            else:
                if then == "lost":
                    node.fib.peer_lost("a")
                node.learn(PREFIX, None)
            if then != "stopped":
                await node.drained()
            if then == "compared" or (then == "joined" and heard):
                await seen.when(lambda: leads(ns) == {"10.0.0.2 up0"})
            elif then in ("lost", "withdrawn"):
                assert routes(ns, 4) == {}
            assert other.there() == before


async def test_a_group_of_ours_that_was_taken_over_is_not_replaced(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    ns.run("ip", "address", "del", "10.0.1.1/24", "dev", "up1")
    async with running(ns, state) as node, witness(ns) as seen:
        node.learn(PREFIX, via("a=10.0.0.2", "b=10.0.1.2"))
        await node.drained()
        with stranger(node) as other:
            _, group = object_and_group(ns)
            other.take(NEXT_HOP_IDS[50])
            other.take_group(group, NEXT_HOP_IDS[50])
            before = other.there()
            ns.run("ip", "address", "add", "10.0.1.1/24", "dev", "up1")  # b resolves: the group would have it too
            await seen.when(lambda: leads(ns) == {"10.0.0.2 up0", "10.0.1.2 up1"})
            await node.drained()
            assert other.there() == before


async def test_an_object_of_ours_that_was_taken_over_carries_nothing_of_ours(netns: Maker, state: Path) -> None:
    ns, _ = uplinks(netns)
    async with running(ns, state) as node, witness(ns) as seen:
        node.learn(PREFIX, via("a=10.0.0.2"))
        await node.drained()
        with stranger(node, heard=True) as other:
            single, _ = object_and_group(ns)
            other.take(single)
            await seen.when(lambda: leads(ns) == {"10.0.0.2 up0"})
            node.learn(PREFIX, None)
            await node.drained()
            assert nexthops(ns) == {}
            assert [nexthop.id for nexthop in other.there()] == [single]
