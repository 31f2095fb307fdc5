"""Masquerade: on, pods leave the pools with the node's address; off, nothing of it is there."""

from __future__ import annotations

import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from cni import masquerade
from config import prefix
from tests.kernel.cni_node import Node
from tests.netns import Netns, link

pytestmark = pytest.mark.root
MakeNetns = Callable[[], Netns]
POOLS = [prefix.parse("10.64.0.0/16"), prefix.parse("fd00:64::/48"), prefix.parse("10.64.1.0/24")]


@pytest_asyncio.fixture
async def node(tmp_path: Path, netns: MakeNetns) -> AsyncIterator[Node]:
    node = Node(tmp_path, netns())
    await node.start()
    yield node
    await node.stop()


def seen_source(client: Netns, server: Netns, address: str) -> str:
    """Connect, and return the address that the server saw."""

    def listen() -> socket.socket:
        made = socket.create_server((address, 8080), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        made.settimeout(10)
        return made

    with server.call(listen) as listener, client.call(lambda: socket.create_connection((address, 8080), 10)):
        accepted, source = listener.accept()
        accepted.close()
    return str(source[0])


async def test_what_leaves_the_pools(node: Node, netns: MakeNetns) -> None:
    router, one, two = netns(), netns(), netns()
    link(node.host, "eth0", router, "eth0")
    for ns, last in ((node.host, 1), (router, 2)):
        ns.run("ip", "address", "add", f"198.51.100.{last}/24", "dev", "eth0")
        ns.run("ip", "address", "add", f"2001:db8:1::{last}/64", "dev", "eth0", "nodad")
    router.run("ip", "route", "add", "10.64.0.0/16", "via", "198.51.100.1")
    router.run("ip", "route", "add", "fd00:64::/48", "via", "2001:db8:1::1")
    first, second = await node.add("c1", one), await node.add("c2", two)
    node.host.call(lambda: masquerade.apply(POOLS))
    assert seen_source(one, router, "198.51.100.2") == "198.51.100.1"
    assert seen_source(one, router, "2001:db8:1::2") == "2001:db8:1::1"
    for mine, theirs in zip(first.addresses, second.addresses, strict=True):
        assert seen_source(one, two, theirs) == mine
    node.host.call(lambda: masquerade.apply(POOLS))
    assert node.host.run("nft", "list", "ruleset").count("masquerade") == 2, "twice is once"
    node.host.call(lambda: masquerade.apply([]))
    assert node.host.run("nft", "list", "ruleset") == ""
    assert seen_source(one, router, "198.51.100.2") == first.addresses[0]


async def test_other_tables_stay(node: Node) -> None:
    node.host.run("nft", "add", "table", "inet", "mine")
    node.host.call(lambda: masquerade.apply(POOLS[:1]))
    node.host.call(lambda: masquerade.apply([]))
    node.host.call(lambda: masquerade.apply([]))
    assert node.host.run("nft", "list", "tables").split() == ["table", "inet", "mine"]


def test_without_nft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    masquerade.apply([])
    with pytest.raises(masquerade.MasqueradeError, match="install nftables"):
        masquerade.apply(POOLS)
