"""What guards a session, with real routers: GTSM, limits, our own block, passwords, dynamic neighbours."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from bgp.policy import ACCEPT
from bgp.settings import ListenRange, PrefixLimit
from config import prefix
from config.remote_as import RemoteAs
from tests.agents import PATIENCE, Agent, agents
from tests.frr import Frr
from tests.house import BIRD_CONF, Bird
from tests.interop.bench import Bench
from tests.interop.routers import ROUTER4, Setup
from tests.interop.test_bgp_matrix import over4
from tests.kernel.test_agent_reload import reload
from tests.netns import Netns, link

pytestmark = pytest.mark.root

BLOCK, OTHER = "192.0.2.0/24", "198.51.100.128/25"
OWN = "10.64.0.64/26"


@pytest.fixture
def bench(bench: Bench) -> Bench:
    if bench.kind == "GoBGP" and "INTEROP_PAGE" not in os.environ:
        pytest.skip("part of `make interop`")
    return bench


async def test_gtsm_limits_and_our_own_block(bench: Bench) -> None:
    await bench.begin(Setup(passive=True, gtsm=True, routes=(BLOCK, OTHER)))
    async with bench.speaker(over4(ttl_security=1), listen=()) as node:
        node.speaker.originate(*prefix.parse(BLOCK), owner="test", source="block")
        with bench.works("GTSM"):
            await node.established("tor")
        with bench.works("our own block is refused"):
            await node.until(lambda: prefix.parse(OTHER) in node.fib, "the other prefix")
            await node.until(lambda: node.status("tor").families[4].refused == 1, "the refusal")
            assert prefix.parse(BLOCK) not in node.fib
            known = node.speaker.rib.explain(*prefix.parse(BLOCK))
            assert [r.ineligible for r in known.routes if r.peer] == [f"refused: {BLOCK} is our own"]
        await node.speaker.remove_peer("tor")
        limit = PrefixLimit(1, warning=0.5, restart_after=1)
        node.speaker.add_peer(over4(ttl_security=1, prefix_limit=limit))
        with bench.works("maximum number of prefixes, with a restart"):
            reason = "2 ipv4 prefixes received, the maximum is 1"
            await node.until(lambda: node.status("tor").reason == reason, "the limit")
            assert "Cease/Maximum Number of Prefixes Reached" in str(node.status("tor").last_sent)
            await asyncio.to_thread(bench.router.withdraw)
            # One that came meanwhile met the limit again
            await node.until(
                lambda: (
                    node.status("tor").established_count > 1
                    and node.status("tor").state == "Established"
                    and node.status("tor").families[4].end_of_rib == "received"
                ),
                "the session after the wait",
            )


async def test_a_dynamic_neighbour(bench: Bench) -> None:
    """It connects from inside a range, with the password of the range."""
    await bench.begin(Setup(password="s3cret", routes=(BLOCK,)))
    family, wire = prefix.parse("10.1.1.0/24")
    rack = ListenRange(
        name="rack",
        family=family,
        prefix=wire,
        remote_as=RemoteAs(kind="external"),
        limit=1,
        password=b"s3cret",
        import_policy=ACCEPT,
        export_policy=ACCEPT,
    )
    async with bench.speaker(ranges=[rack]) as node:
        with bench.works("dynamic neighbour, TCP-MD5 for its prefix"):
            node.speaker.originate(*prefix.parse(OWN), owner="test", source="block")
            await node.until(lambda: prefix.parse(BLOCK) in node.fib, "its prefix")
            assert [hop.peer for hop in node.fib[prefix.parse(BLOCK)]] == [f"rack/{ROUTER4}"]
            await bench.path(OWN)
        await asyncio.to_thread(bench.router.shut, "enough")
        await node.until(lambda: not node.speaker.peers(), "its end")
        assert node.fib == {}


FRR4, FRR6, BIRD4, NODE_FRR4, NODE_FRR6, NODE_BIRD4 = (
    "10.1.1.1",
    "fd00:1::1",
    "10.1.2.1",
    "10.1.1.11",
    "fd00:1::11",
    "10.1.2.11",
)
NODE_AS, FRR_AS, BIRD_AS = 4200000001, 65010, 65020


class Keys:
    """An agent between FRR (two sessions) and BIRD (one), each session with a password of its own."""

    def __init__(self, make: Callable[[], Netns], directory: Path) -> None:
        self.node, frr, bird = make(), make(), make()
        for ns, device, far, ours, theirs in (
            (frr, "eth0", "eth1", (NODE_FRR4, NODE_FRR6), (FRR4, FRR6)),
            (bird, "eth1", "eth1", (NODE_BIRD4,), (BIRD4,)),
        ):
            link(self.node, device, ns, far)
            for address, other in zip(ours, theirs, strict=True):
                length = "64" if ":" in address else "24"
                more = ["nodad"] if ":" in address else []
                self.node.run("ip", "addr", "add", f"{address}/{length}", "dev", device, *more)
                ns.run("ip", "addr", "add", f"{other}/{length}", "dev", far, *more)
        self.frr = Frr(
            frr,
            f"router bgp {FRR_AS}\n bgp router-id 10.0.0.1\n no bgp ebgp-requires-policy\n"
            + "".join(
                f" neighbor {a} remote-as {NODE_AS}\n neighbor {a} password old\n neighbor {a} timers connect 1\n"
                for a in (NODE_FRR4, NODE_FRR6)
            )
            + f" address-family ipv6 unicast\n  neighbor {NODE_FRR6} activate\n exit-address-family\n",
        )
        self.bird = Bird(bird, self._bird("old"))
        self._directory = directory
        common = {"import": "accept", "export": "accept", "holdTime": 9, "connectRetry": 1}
        peers: dict[str, Any] = {
            "frr": {"address": FRR4, "as": FRR_AS, **common},
            "frr6": {"address": FRR6, "as": FRR_AS, **common},
            "bird": {"listenRange": "10.1.2.0/24", "as": BIRD_AS, **common},
        }
        del peers["bird"]["connectRetry"]
        for name, entry in peers.items():
            entry["passwordFile"] = str(directory / f"{name}.key")
            self.write(name, "old")
        self.agent = Agent(self.node, directory, "n1", NODE_AS, peers=peers)

    @staticmethod
    def _bird(password: str) -> str:
        return (
            f"router id 10.0.0.2;\nprotocol bgp node {{ local {BIRD4} as {BIRD_AS}; neighbor {NODE_BIRD4} as {NODE_AS};"
            f' direct; password "{password}"; hold time 9; connect delay time 1; connect retry time 1;'
            " error wait time 1, 1; ipv4 { import all; export all; }; }\n"
        )

    def write(self, name: str, password: str) -> None:
        """Put a password into the file of a peer."""
        file = self._directory / f"{name}.key"
        file.write_text(password)
        file.chmod(0o600)

    def tell_bird(self, password: str) -> None:
        text = f"protocol device {{ scan time 1; }}\n{self._bird(password)}"
        self.bird.house.run("sh", "-c", 'cat > "$0"', BIRD_CONF, stdin=text)
        self.bird.command("configure")

    async def counts(self) -> dict[str, int]:
        """Return how often each session that there is was established."""
        up = [peer for peer in await self.agent.get("/v1/peers") if peer["state"] == "Established"]
        return {peer["name"]: peer["establishedCount"] for peer in up}

    def close(self) -> None:
        self.frr.close()
        self.bird.close()


@pytest.fixture
async def keys(netns: Callable[[], Netns]) -> AsyncIterator[Keys]:
    async with agents() as (directory, running):
        found = Keys(netns, directory)
        running.append(found.agent)
        await found.agent.start()
        try:
            yield found
        finally:
            found.close()


async def test_another_password_for_one_peer_touches_no_other(keys: Keys) -> None:
    """The wrong one brings no session and says so; the right one does. FRR's is configured, BIRD's that of a range."""
    bird = f"bird/{BIRD4}"
    for name in ("frr", "frr6", bird):
        await keys.agent.until("Established", "", name)
    keys.write("frr", "new")
    assert reload(keys.agent)["resets"] == ["frr"]
    await keys.agent.until("no answer", "", "frr")
    assert "another one" in (await keys.agent.peer("frr"))["problem"]
    assert await keys.counts() == {"frr6": 1, bird: 1}
    await asyncio.to_thread(keys.frr.configure, f"router bgp {FRR_AS}", f"neighbor {NODE_FRR4} password new")
    await keys.agent.until("Established", "", "frr")
    keys.write("bird", "new")
    assert reload(keys.agent)["resets"] == ["bird"]
    assert bird not in await keys.counts()
    await asyncio.to_thread(keys.tell_bird, "wrong")
    await asyncio.to_thread(keys.tell_bird, "new")
    await keys.agent.until("Established", "", bird)
    assert await keys.counts() == {"frr": 1, "frr6": 1, bird: 1}
    neighbors = await asyncio.to_thread(keys.frr.show, "bgp neighbors")
    assert neighbors[NODE_FRR6]["connectionsEstablished"] == 1
    async with asyncio.timeout(PATIENCE):  # ours is the first to have it for established
        while not re.search(r"BGP state:\s+Established", keys.bird.birdc("show protocols all node")):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
