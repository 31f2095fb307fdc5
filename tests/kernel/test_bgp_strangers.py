"""A speaker under a flood of connections from strangers: no session is lost, memory stays flat.

FLOOD_SECONDS=30 makes the floods as long as the promise says.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bgp import codec
from bgp.messages import Open
from bgp.policy import ACCEPT
from bgp.settings import ListenRange
from config import prefix
from config.remote_as import RemoteAs
from tests.bgp_speakers import PATIENCE, Node, opener_in, peer, running
from tests.house import die_with_us
from tests.kernel.test_routes_bad_cases import holding
from tests.netns import Netns, link

pytestmark = pytest.mark.root

SECONDS = float(os.environ.get("FLOOD_SECONDS", "3"))
RATE = 5000
"""Connections a second; a machine that cannot make so many makes what it can."""
LONGEST = 1.0
"""Seconds of CPU that the loop may be held: sessions of the shortest hold time, 3 s, would stay too."""
FLOOD = Path(__file__).with_name("stranger_flood.py")
A, B, C = "10.1.0.1", "10.1.0.2", "10.1.1.200"


def resident() -> int:
    """Return the octets of memory that this process occupies."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def both_up(a: Node, b: Node) -> None:
    await a.established("b")
    await b.established("a")


@pytest.mark.parametrize(
    ("opening", "inside"), [(False, False), (True, False), (True, True)], ids=["silent", "OPEN", "OPEN inside a range"]
)
async def test_a_flood_of_strangers_ends_no_session(netns: Callable[[], Netns], opening: bool, inside: bool) -> None:
    """Nor is the loop held for long. ``inside``: they are where dynamic neighbours may be."""
    ns, other = netns(), netns()
    link(ns, "eth0", other, "eth1")
    ns.run("ip", "addr", "add", f"{A}/16", "dev", "eth0")
    for address in (B, C, *(f"10.1.1.{number}" for number in range(1, 9))):
        other.run("ip", "addr", "add", f"{address}/16", "dev", "eth1")
    options = {"hold_time": 9, "connect_retry": 0.2}
    family, wire = prefix.parse("10.1.1.0/24" if inside else f"{C}/32")
    rack = ListenRange(
        name="rack",
        family=family,
        prefix=wire,
        remote_as=RemoteAs(kind="external"),
        limit=4,
        hold_time=9,
        import_policy=ACCEPT,
        export_policy=ACCEPT,
    )
    to_b = peer("b", B, 65002, local_address=A, **options)
    async with (
        running(ns, 65001, "10.0.0.1", [to_b], ranges=[rack], listen=((A, 179),)) as a,
        running(other, 65002, "10.0.0.2", [peer("a", A, 65001, local_address=B, **options)], listen=()) as b,
        running(other, 65003, "10.0.0.3", [peer("a", A, 65001, local_address=C, **options)], listen=()) as c,
    ):
        await both_up(a, b)
        await c.established("a")
        # What the allocator keeps for the first flood is not what a second one may add.
        await flood(other, 1.0, opening)
        before = resident()
        async with holding() as held:
            made = await flood(other, SECONDS, opening)
        grown = resident() - before
        print(f"{made} connections in {SECONDS:g} s, {grown >> 10} KiB more")
        assert grown < 8 << 20
        assert max(held) < LONGEST
        assert made > 300
        dynamic = f"rack/{C}"
        await a.until(lambda: {status.name for status in a.speaker.peers()} == {"b", dynamic}, "the last to be gone")
        async with asyncio.timeout(PATIENCE):
            while not inside and a.speaker.refused < made:  # noqa: ASYNC110 (some are in the kernel's queue yet)
                await asyncio.sleep(0.01)
        assert [node.status("a").established_count for node in (b, c)] == [1, 1]
        assert [a.status(name).established_count for name in ("b", dynamic)] == [1, 1]
        route = prefix.parse("192.0.2.0/24")
        b.speaker.originate(*route, owner="test", source="static")
        await a.until(lambda: route in a.fib, "a route after the flood")


async def flood(ns: Netns, seconds: float, opening: bool) -> int:
    """Connect to A from addresses of nobody's, in a process of its own; return how often."""
    message = codec.encode_open(Open(65009, 90, bytes((10, 0, 0, 9)))).hex() if opening else ""
    command = ns.command(sys.executable, str(FLOOD), A, str(seconds), str(RATE), message)
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, preexec_fn=die_with_us)
    said, _ = await process.communicate()
    return int(json.loads(said)["made"])


async def test_a_flood_from_the_peers_own_address_leaves_its_session(netns: Callable[[], Netns]) -> None:
    """Connections beside the established session are closed with Cease, one by one, and none is kept."""
    ns, other = netns(), netns()
    link(ns, "eth0", other, "eth1")
    ns.run("ip", "addr", "add", f"{A}/16", "dev", "eth0")
    other.run("ip", "addr", "add", f"{B}/16", "dev", "eth1")
    options = {"hold_time": 9, "connect_retry": 0.2}
    async with (
        running(ns, 65001, "10.0.0.1", [peer("b", B, 65002, local_address=A, **options)], listen=((A, 179),)) as a,
        running(other, 65002, "10.0.0.2", [peer("a", A, 65001, local_address=B, **options)], listen=()) as b,
    ):
        await both_up(a, b)
        make = opener_in(other)
        loop = asyncio.get_running_loop()
        for _ in range(300):
            sock = make(2)
            sock.setblocking(False)
            sock.bind((B, 0))
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, (A, 179))
            sock.close()
        assert (len(a.sessions), len(b.sessions)) == (1, 1)
        await a.until(lambda: len(a.speaker._peers["b"].sessions) <= 2, "the connections to be closed")
        assert a.status("b").state == "Established"
