"""The first packet after ADD is answered, both ways and in both families, also while others come and go."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from cni.install import install
from tests.kernel.cni_node import INTERPRETER, Node
from tests.netns import Netns

pytestmark = pytest.mark.root

PODS = 200
AT_ONCE = 8
HOST = ("192.0.2.1", "2001:db8::1")
FAMILIES = (socket.AF_INET, socket.AF_INET6)


def listen(stack: ExitStack, place: Netns, addresses: Sequence[str]) -> list[socket.socket]:
    """Return a datagram socket per family in a namespace."""

    def make() -> list[socket.socket]:
        found = []
        for family, address in zip(FAMILIES, addresses, strict=True):
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.bind((address, 0))
            sock.settimeout(10)
            found.append(sock)
        return found

    return place.call(make)


def add_and_send(node: Node, container: str, pod: Netns, inside: list[socket.socket], host: list[socket.socket]) -> str:
    """Add a pod, and send one packet each way at once; return what was lost."""
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": container,
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(node.installed.bin_dir),
    }
    config = json.dumps({"cniVersion": "1.1.0", "name": "podroute", "type": "podroute"})
    done = subprocess.run([node.installed.binary], env=env, input=config, capture_output=True, text=True, timeout=60)
    lost = []
    addresses = [ip["address"].partition("/")[0] for ip in json.loads(done.stdout)["ips"]]
    for inner, outer, address, gateway in zip(inside, host, addresses, HOST, strict=True):
        try:
            inner.sendto(container.encode(), (gateway, outer.getsockname()[1]))
            outer.sendto(container.encode(), (address, inner.getsockname()[1]))
        except OSError as error:
            lost.append(f"{address}: {error}")
    for inner, outer, address in zip(inside, host, addresses, strict=True):
        for sock, way in ((outer, "from"), (inner, "to")):
            try:
                data, (source, *_) = sock.recvfrom(100)
            except TimeoutError:
                lost.append(f"{way} {address}: lost")
            else:
                assert data == container.encode()
                assert way == "to" or source == address
    return ", ".join(lost)


@contextmanager
def churn(place: Netns) -> Iterator[None]:
    """Have somebody else keep the kernel's lock of links busy, in a namespace of its own."""
    again = "while :; do echo link add x type veth; echo link set x up; echo link set veth0 up; echo link del x; done"
    script = f"({again}) | ip -force -batch - >/dev/null 2>&1"
    with running(place.command("sh", "-c", script)):
        yield


def busy() -> AbstractContextManager[None]:
    """Have somebody else want a processor all the time."""
    return running(["sh", "-c", "while :; do :; done"])


@contextmanager
def running(command: Sequence[str]) -> Iterator[None]:
    """Run a command, and all that it starts, for as long as this process lives at most."""
    bound = ("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child")
    load = subprocess.Popen([*bound, *command])
    try:
        yield
    finally:
        load.kill()
        load.wait()


async def test_the_first_packet_after_add_arrives(tmp_path: Path, netns: Callable[[], Netns]) -> None:
    """A pod's link that is made and a link that carries packets are not the same: the kernel takes its time between."""
    node = Node(tmp_path, netns())
    install(node.installed, interpreter=INTERPRETER, plugin="compiled")  # the shortest time between answer and packet
    await node.start()
    numbers = iter(range(PODS))
    lost: list[str] = []

    async def add_some(host: list[socket.socket]) -> None:
        for number in numbers:
            with ExitStack() as stack:
                pod = Netns()
                stack.callback(pod.close)
                inside = listen(stack, pod, ("0.0.0.0", "::"))
                if missing := await asyncio.to_thread(add_and_send, node, f"c{number}", pod, inside, host):
                    lost.append(f"c{number}: {missing}")
                # Deletions hold the lock that the kernel's own work on carriers needs.
                assert (await node.delete(f"c{number}", pod)).status == 0

    try:
        with ExitStack() as stack:
            for load in (churn(netns()), churn(netns()), busy(), busy()):
                stack.enter_context(load)
            await asyncio.gather(*(add_some(listen(stack, node.host, HOST)) for _ in range(AT_ONCE)))
    finally:
        await node.stop()
    assert lost == []
