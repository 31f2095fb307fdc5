"""Two whole agents, side by side on one link: what an operator can get wrong, and what a crash must not break."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from config.compiled import SWITCH, form
from tests.agents import PATIENCE, Agent, agents
from tests.netns import WITHOUT_CAPABILITIES, Netns, link

pytestmark = pytest.mark.root

DEBIAN = Path("/usr/lib/cni")
POOLS = {"pods4": {"cidr": "10.64.0.0/16", "blockSize": 26}, "pods6": {"cidr": "fd00:64::/48", "blockSize": 122}}


class Pair:
    """Agents ``a`` (AS 4200000001, .1) and ``b`` (AS 4200000002, .2) on one link; ``b`` waits to be called."""

    def __init__(self, directory: Path, running: list[Agent], make: Callable[[], Netns]) -> None:
        self.directory = directory
        self.ns_a, self.ns_b = make(), make()
        link(self.ns_a, "eth0", self.ns_b, "eth0")
        for ns, last in ((self.ns_a, 1), (self.ns_b, 2)):
            ns.run("ip", "addr", "add", f"10.0.0.{last}/24", "dev", "eth0")
            ns.run("ip", "-6", "addr", "add", f"fd00::{last}/64", "dev", "eth0", "nodad")
        self.a = self._agent(self.ns_a, "a", 1)
        self.b = self._agent(self.ns_b, "b", 2)
        running += [self.a, self.b]

    def _agent(self, ns: Netns, name: str, own: int) -> Agent:
        other = 3 - own
        common = {"as": 4200000000 + other, "import": "accept", "export": "accept", "holdTime": 9}
        peers = {
            "v4": {"address": f"10.0.0.{other}", "passive": own == 2, **common},
            "v6": {"address": f"fd00::{other}", "passive": own == 2, **common},
        }
        bgp = {"connectRetry": 1}
        return Agent(ns, self.directory, name, 4200000000 + own, pools=deepcopy(POOLS), peers=peers, bgp=bgp)

    async def start(self) -> None:
        await asyncio.gather(self.a.start(), self.b.start())
        await asyncio.gather(self.a.converged(), self.b.converged())


@pytest.fixture
async def pair(netns: Callable[[], Netns]) -> AsyncIterator[Pair]:
    async with agents() as (directory, running):
        yield Pair(directory, running, netns)


def add_pod(agent: Agent, netns: Callable[[], Netns], name: str) -> tuple[Netns, list[str]]:
    """ADD a container as a runtime does; return its namespace and addresses."""
    pod = netns()
    done = call(agent, "ADD", pod, name)
    assert done.returncode == 0, done.stdout + done.stderr + agent.log
    return pod, [ip["address"].partition("/")[0] for ip in json.loads(done.stdout)["ips"]]


def call(
    agent: Agent,
    verb: str,
    pod: Netns,
    name: str,
    *,
    ips: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> subprocess.CompletedProcess[str]:
    plugin = Path(agent.config["cni"]["binDir"]) / "podroute"
    if not plugin.exists():
        done = agent.command("cni", "install", "--config", str(agent.file))
        assert done.returncode == 0, done.stderr
    env = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(plugin.parent),
    }
    text: dict[str, Any] = {"cniVersion": "1.0.0", "name": "podroute", "type": "podroute", **(config or {})}
    if ips:
        text["runtimeConfig"] = {"ips": list(ips)}
    return subprocess.run([str(plugin)], input=json.dumps(text), env=env, capture_output=True, text=True, timeout=30)


async def test_agents_learn_each_others_blocks_and_pods_talk(pair: Pair, netns: Callable[[], Netns]) -> None:
    await pair.start()
    one, mine = add_pod(pair.a, netns, "one")
    _, theirs = add_pod(pair.b, netns, "two")
    one.run("ping", "-c1", "-W5", theirs[0])
    one.run("ping", "-c1", "-W5", theirs[1])
    status = await pair.a.get("/v1/status")
    assert status["converged"] is True
    assert status["peers"]["established"] == 2
    assert status["pods"] == 1
    blocks = {block["family"]: block for block in await pair.a.get("/v1/blocks")}
    assert blocks["ipv4"]["used"] == 1
    assert blocks["ipv4"]["advertisedTo"] == ["v4"]
    assert blocks["ipv6"]["advertisedTo"] == ["v6"]
    pods = await pair.a.get("/v1/pods")
    assert [pod["addresses"] for pod in pods] == [mine]
    known = (await pair.a.routes(family="ipv4")).values()
    learned = [route for route in known if "v4" in [path["peer"] for path in route["paths"]]]
    assert [route["kernel"] for route in learned] == ["installed"]


async def test_the_command_line_shows_what_the_api_says(pair: Pair) -> None:
    await pair.start()
    assert pair.a.command("wait-converged", "--timeout", "5").returncode == 0
    for argv, word in (
        (("status",), "converged  yes"),
        (("peers",), "Established"),
        (("routes",), "installed"),
        (("routes", "--family", "ipv6"), "fd00:64:"),
        (("blocks",), "pods4"),
        (("pods",), "no pods"),
    ):
        done = pair.a.command(*argv)
        assert (done.returncode, done.stderr) == (0, "")
        assert word in done.stdout, done.stdout
        parsed = pair.a.command(*argv, "--json")
        assert parsed.returncode == 0
        assert [json.loads(line) for line in parsed.stdout.splitlines()] if argv[0] == "routes" else True
    (block,) = [b["prefix"] for b in await pair.b.get("/v1/blocks") if b["family"] == "ipv4"]
    assert block in pair.a.command("routes", block).stdout


@pytest.mark.parametrize("pure", [False, True])
async def test_it_says_in_which_form_it_runs(pair: Pair, monkeypatch: pytest.MonkeyPatch, pure: bool) -> None:
    if pure:
        monkeypatch.setenv(SWITCH, "1")
    name, detail = ("plain Python", f"{SWITCH} is set") if pure else (form().name, form().detail)
    await pair.a.start()
    (line,) = [line for line in pair.a.log.splitlines() if " agent: starting " in line]
    assert f'form="{name}" detail="{detail}"'.replace('"compiled"', "compiled") in line
    assert (await pair.a.get("/v1/status"))["form"] == {"name": name, "detail": detail}
    assert f" ({name}), running, up " in pair.a.command("status").stdout


NO_NETWORK = "does not appear to be an IPv4 or IPv6 network; must be such as 10.64.0.0/26"


async def test_a_bad_question_is_answered_with_what_would_be_right(pair: Pair) -> None:
    await pair.a.start()
    store = pair.a.config["store"]
    for argv, text in (
        (("routes", "10.0.0.1/8"), "podroute: prefix: 10.0.0.1/8 has host bits set; must be such as 10.64.0.0/26"),
        (("routes", "nonsense"), f"podroute: prefix: 'nonsense' {NO_NETWORK}"),
        (("ipam", "show", "nonsense"), f"podroute: block: 'nonsense' {NO_NETWORK}"),
        (
            ("ipam", "pools", "set", "a/../b", "manual=true"),
            f"podroute: no pool a/../b in the store {store}; there are: pods4, pods6",
        ),
        (("wait-converged", "--timeout", "nan"), "podroute: timeout is 'nan', must be a number from 0 to 3600"),
        (("wait-converged", "--timeout", "inf"), "podroute: timeout is 'inf', must be a number from 0 to 3600"),
    ):
        done = pair.a.command(*argv)
        assert (done.returncode, done.stderr) == (1, text + "\n")


async def test_without_an_agent_the_command_line_says_what_to_do(pair: Pair) -> None:
    done = pair.a.command("status")
    assert done.returncode == 1
    assert done.stderr == (
        f"podroute: no agent answers on {pair.a.socket} (No such file or directory): "
        "start one with `podroute agent`, or name its socket with --socket\n"
    )


async def test_not_converged_says_what_it_waits_for(pair: Pair) -> None:
    await pair.a.start()
    done = pair.a.command("wait-converged", "--timeout", "0.2")
    assert done.returncode == 1
    assert "session with v4: " in done.stderr


async def test_a_wrong_as_shows_what_was_expected_and_received(pair: Pair) -> None:
    pair.a.config["peers"]["v4"]["as"] = 65000
    await asyncio.gather(pair.a.start(), pair.b.start())
    peer = await pair.a.until("expected", "", "v4")
    assert peer["as"] == 65000
    assert peer["receivedAs"] == 4200000002
    assert "expected AS 65000, received AS 4200000002" in peer["problem"]
    assert peer["state"] != "Established"


async def test_a_family_that_the_peer_does_not_offer_is_named(pair: Pair) -> None:
    pair.a.config["peers"]["v4"]["families"] = ["ipv4", "ipv6"]
    await asyncio.gather(pair.a.start(), pair.b.start())
    await pair.a.converged()
    peer = await pair.a.peer("v4")
    assert peer["families"]["ipv6"]["problem"] == "ipv6 not negotiated: the peer does not offer it"
    assert peer["families"]["ipv4"]["negotiated"] is True


async def test_an_unreachable_peer_says_so(pair: Pair) -> None:
    pair.a.config["peers"]["v4"]["address"] = "10.9.9.9"
    await pair.a.start()
    peer = await pair.a.until("10.9.9.9:179", "", "v4")
    assert peer["problem"] == "connect to 10.9.9.9:179: Network is unreachable"


async def test_port_179_taken(pair: Pair) -> None:
    await pair.a.start()
    second = Agent(pair.ns_a, pair.directory, "c", 4200000003)
    assert await second.refused() == (
        "podroute: cannot listen on 0.0.0.0:179: Address already in use "
        "(is another BGP speaker running? `ss -ltnp` shows it; bgp.listen chooses another address or port)"
    )


async def test_no_privileges_is_one_line(pair: Pair) -> None:
    refusal = await pair.a.refused(wrap=WITHOUT_CAPABILITIES)
    assert refusal == (
        "podroute: the agent needs CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_SYS_ADMIN "
        "to write routes and wire containers: run it as root"
    )


async def test_the_socket_of_another_agent_is_left_alone(pair: Pair) -> None:
    await pair.a.start()
    second = Agent(pair.ns_b, pair.directory, "c", 4200000003)
    second.config["api"]["socket"] = str(pair.a.socket)
    assert await second.refused() == (
        f"podroute: another agent answers on {pair.a.socket}: stop it first, or give this one an api.socket of its own"
    )
    assert (await pair.a.get("/v1/status"))["state"] == "running"


async def test_the_socket_of_a_dead_agent_is_replaced(pair: Pair) -> None:
    await pair.a.start()
    await pair.a.stop(signal.SIGKILL)
    assert pair.a.socket.exists()
    await pair.a.start()
    assert (await pair.a.get("/v1/status"))["state"] == "running"
    assert await pair.a.stop() == 0
    assert not pair.a.socket.exists()


async def test_a_second_node_under_the_same_name_is_refused(pair: Pair) -> None:
    await pair.a.start()
    pair.b.config["node"]["name"] = "a"
    refusal = await pair.b.refused()
    assert refusal.startswith("podroute: node name a is taken")


async def test_a_pool_that_overlaps_a_subnet_of_the_node(pair: Pair) -> None:
    pair.a.config["pools"]["pods4"]["cidr"] = "10.0.0.0/16"
    pair.a.config["peers"] = {}
    assert await pair.a.refused() == (
        "podroute: pools.pods4.cidr: 10.0.0.0/16 overlaps 10.0.0.0/24, a subnet of this node, "
        "must be addresses that no link uses"
    )


@pytest.mark.skipif(not (DEBIAN / "bridge").exists(), reason="needs Debian's containernetworking-plugins")
@pytest.mark.parametrize("more", [{"type": "ptp"}, {"type": "bridge", "bridge": "br0", "isGateway": True}], ids=str)
async def test_links_of_other_plugins_have_their_subnets_from_us(
    pair: Pair, netns: Callable[[], Netns], more: Mapping[str, Any]
) -> None:
    """An agent starts again beside them, and says nothing about them."""
    await pair.start()
    call(pair.a, "VERSION", pair.ns_a, "")  # installs podroute's
    pod = netns()
    config = {"cniVersion": "1.0.0", "name": "other", "ipam": {"type": "podroute"}, **more}
    environment = {"CNI_CONTAINERID": "c1", "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
    path = f"CNI_PATH={pair.a.config['cni']['binDir']}:{DEBIAN}"
    words = [f"{key}={value}" for key, value in environment.items()]

    def run(verb: str) -> str:
        command = pair.ns_a.command("env", path, *words, f"CNI_COMMAND={verb}", str(DEBIAN / more["type"]))
        return subprocess.run(command, input=json.dumps(config), capture_output=True, text=True, timeout=30).stdout

    added = [ip["address"].partition("/")[0] for ip in json.loads(run("ADD"))["ips"]]
    await pair.a.stop(signal.SIGKILL)
    await pair.a.start()
    await pair.a.converged()
    held = json.dumps(await pair.a.get("/v1/pods"))
    assert [address in held for address in added] == [True, True]
    assert "subnet of this node" not in json.dumps(await pair.a.get("/v1/status"))
    assert not run("DEL")


async def test_a_mistyped_key_names_its_place(pair: Pair) -> None:
    pair.a.config["pools"]["pods4"]["blocksize"] = 26
    assert await pair.a.refused() == (
        f"{pair.a.file}:pools.pods4.blocksize: is not a known key, did you mean blockSize?"
    )


async def test_a_corrupt_store_is_named(pair: Pair) -> None:
    store = pair.directory / "store.db"
    store.write_bytes(b"this is not a database, it only looks as long as one" * 100)
    refusal = await pair.a.refused()
    assert str(store) in refusal


async def test_a_read_only_store_is_named(pair: Pair) -> None:
    await pair.a.start()
    await pair.a.stop()
    # Root passes file modes: it takes a read-only file system to refuse it.
    steps = ("mount -t tmpfs none /mnt", f"cp {pair.directory}/store.db /mnt/", "mount -o remount,ro /mnt", 'exec "$@"')
    mount = " && ".join(steps)
    pair.b.config["store"] = "sqlite:///mnt/store.db"
    refusal = await pair.b.refused(wrap=("unshare", "--mount", "sh", "-c", mount, "sh"))
    assert "/mnt/store.db" in refusal
    assert "read-only" in refusal


async def test_sigkill_leaks_nothing_and_pods_go_on_talking(pair: Pair, netns: Callable[[], Netns]) -> None:
    await pair.start()
    one, mine = add_pod(pair.a, netns, "one")
    _, theirs = add_pod(pair.b, netns, "two")
    one.run("ping", "-c1", "-W5", theirs[0])
    before = pair.ns_a.run("ip", "route"), await pair.a.get("/v1/blocks")

    await pair.a.stop(signal.SIGKILL)
    kept = pair.ns_a.run("ip", "route")
    assert kept == before[0]

    await pair.a.start()
    await asyncio.gather(pair.a.converged(), pair.b.converged())
    assert pair.ns_a.run("ip", "route") == before[0]
    assert await pair.a.get("/v1/blocks") == before[1]
    one.run("ping", "-c1", "-W5", theirs[0])
    one.run("ping", "-c1", "-W5", theirs[1])
    _, more = add_pod(pair.a, netns, "three")
    assert not set(more) & set(mine)
    done = call(pair.a, "DEL", one, "one")
    assert done.returncode == 0, done.stdout
    assert [pod["containerId"] for pod in await pair.a.get("/v1/pods")] == ["three"]


async def test_sigkill_while_containers_come_and_go(pair: Pair, netns: Callable[[], Netns]) -> None:
    """Eight ADDs are under way when the agent dies; afterwards ledger, links and routes agree."""
    await pair.a.start()
    add_pod(pair.a, netns, "first")
    pods = [netns() for _ in range(8)]
    calls = [asyncio.create_task(asyncio.to_thread(call, pair.a, "ADD", pod, f"p{i}")) for i, pod in enumerate(pods)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    await pair.a.stop(signal.SIGKILL)
    results = await asyncio.gather(*calls)
    added = {f"p{i}" for i, done in enumerate(results) if done.returncode == 0} | {"first"}

    await pair.a.start()
    known = {pod["containerId"]: pod for pod in await pair.a.get("/v1/pods")}
    assert added <= known.keys()
    links = {item["ifname"] for item in json.loads(pair.ns_a.run("ip", "-j", "link"))} - {"lo", "eth0"}
    assert links == {pod["hostIfname"] for pod in known.values()}
    addresses = [address for pod in known.values() for address in pod["addresses"]]
    assert len(addresses) == len(set(addresses))
    routed = pair.ns_a.run("ip", "route") + pair.ns_a.run("ip", "-6", "route")
    assert all(f"{address} dev" in routed for address in addresses)


async def test_sigterm_leaves_routes_and_pods_in_place(pair: Pair, netns: Callable[[], Netns]) -> None:
    await pair.start()
    one, _ = add_pod(pair.a, netns, "one")
    before = pair.ns_a.run("ip", "route")
    assert await pair.a.stop() == 0
    assert pair.ns_a.run("ip", "route") == before
    assert "running" in pair.a.log
    assert "stopped" in pair.a.log
    done = call(pair.a, "DEL", one, "one")
    assert done.returncode == 0, done.stdout
    await pair.a.start()
    assert await pair.a.get("/v1/pods") == []


async def test_a_lost_peer_takes_its_routes_along(pair: Pair) -> None:
    """Without graceful restart, that is: with it they would stay for the peer's restart time."""
    pair.a.config["bgp"]["gracefulRestart"] = {"enabled": False}
    await pair.start()
    (block,) = [b["prefix"] for b in await pair.b.get("/v1/blocks") if b["family"] == "ipv4"]
    assert block in pair.ns_a.run("ip", "route")
    await pair.b.stop(signal.SIGKILL)
    await pair.a.until("'established': 0", "/v1/status")
    async with asyncio.timeout(PATIENCE):
        while block in await pair.a.routes() or block in pair.ns_a.run("ip", "route"):  # noqa: ASYNC110 -- no event tells
            await asyncio.sleep(0.02)


async def test_a_next_hop_of_our_own_that_appears_later_is_used(pair: Pair) -> None:
    """The session carries a family that our link has no address for, until somebody adds one."""
    for agent in (pair.a, pair.b):
        del agent.config["peers"]["v6"]
        agent.config["peers"]["v4"]["families"] = ["ipv4", "ipv6"]
    pair.ns_a.run("ip", "-6", "addr", "del", "fd00::1/64", "dev", "eth0")
    await pair.start()
    peer = await pair.a.peer("v4")
    assert peer["families"]["ipv6"]["problem"] == "ipv6 not advertised: no IPv6 address on the link"
    (block,) = [b["prefix"] for b in await pair.a.get("/v1/blocks") if b["family"] == "ipv6"]
    assert block not in await pair.b.routes(family="ipv6")
    pair.ns_a.run("ip", "-6", "addr", "add", "fd00::9/64", "dev", "eth0", "nodad")
    await pair.b.until(block, "/v1/routes?family=ipv6")
    assert (await pair.b.routes(family="ipv6"))[block]["paths"][0]["nextHop"] == "fd00::9"
