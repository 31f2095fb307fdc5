"""The agent changes for another release and back, and restarts with its store away."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import agent
from labs.node import Node
from labs.pods import Pod
from labs.scenarios.files import Given, configured
from labs.scenarios.looking import ended
from labs.scenarios.story import Scenario, Story
from labs.scenarios.watch import Watch
from labs.topology import Endpoint, Link, Topology

PACKAGES = ("agent", "bgp", "cni", "config", "ipam", "routes")
NEXT = "opt/podroute-next"
LEDGER = "/var/lib/podroute/ledger.db"
LAUNCHER = '''"""The next release: this one from a place of its own, whose ledger has a table more."""

import dataclasses
import sys

sys.path.insert(0, {place!r})

from agent.cli import main
from ipam import ledger

step = ("CREATE TABLE next_release (noted TEXT)",)
ledger.KIND = dataclasses.replace(ledger.KIND, steps=(*ledger.KIND.steps, step))
main()
'''


async def _upgraded(story: Story) -> None:
    n1 = story.node("n1")
    schema, pod, old = _schema(n1), story.pod("n1").addresses, n1.command
    place = n1.root / NEXT
    for package in PACKAGES:
        shutil.copytree(Path(agent.__file__).parents[1] / package, place / package)
    (place / "launch.py").write_text(LAUNCHER.format(place=f"/{NEXT}"))
    story.event(f"another release is put into /{NEXT}, whose ledger has schema {schema + 1} instead of {schema}")
    async with Watch(n1, story.node("n2"), story.node("tor1")) as watch:
        await story.stop(n1, signal.SIGTERM)
        n1.command = (sys.executable, "-P", f"/{NEXT}/launch.py", *old[1:])
        await story.start(n1)
        await story.settle()
    watch.judge(story, "upgrade")
    story.check(_schema(n1) == schema + 1, f"the ledger has schema {_schema(n1)}")
    kept = [address for address in pod if await story.pod("n2").ping(address)]
    story.check(kept == pod, "the pod on n1 has the addresses that it had, and answers")
    await _one_more(story, n1, "new")
    async with Watch(n1, story.node("n2"), story.node("tor1")) as watch:
        await story.stop(n1, signal.SIGTERM)
        n1.command = old
        n1.start()
        story.event("the release from before is started on what the other one left")
        await story.until("it has ended", partial(ended, n1))
        last = n1.log.read_text().strip().splitlines()[-1]
        story.check("newer podroute" in last, f"it says why: {last}")
        n1.command = (sys.executable, "-P", f"/{NEXT}/launch.py", *old[1:])
        await story.start(n1)
        await story.settle()
    watch.judge(story, "attempt to go back")


def _schema(node: Node) -> int:
    def ask() -> int:
        with closing(sqlite3.connect(LEDGER)) as database:
            return int(database.execute("PRAGMA user_version").fetchone()[0])

    return node.call(ask)


async def _one_more(story: Story, node: Node, name: str) -> None:
    pod = Pod(node, name)
    await pod.start()
    answered = [address for address in pod.addresses if await story.pod("n2").ping(address)]
    story.check(bool(answered) and answered == pod.addresses, f"another pod starts on {node.name}, and answers")


STORE = "etcd"
ETCD = (
    "etcd",
    "--data-dir=/run/etcd",
    "--listen-client-urls=http://0.0.0.0:2379",
    "--advertise-client-urls=http://0.0.0.0:2379",
    "--logger=zap",
    "--log-outputs=stderr",
)


def _with_etcd(plan: Topology, directory: Path) -> Topology:
    """Put etcd beside the fabric, with a link of its own to every node."""

    def change(name: str, given: Given) -> None:
        given["store"] = f"etcd://10.9.{name.removeprefix('n')}.1"

    plan = configured(plan, directory, change)
    nodes, links = dict(plan.nodes), list(plan.links)
    words: list[tuple[str, ...]] = []
    for number, name in enumerate((name for name in plan.nodes if name.startswith("n")), 1):
        ends = (Endpoint(STORE, f"eth{number}", f"02:00:09:00:{number:02x}:01"), Endpoint(name, "eth9", ""))
        ends = (ends[0], replace(ends[1], mac=f"02:00:09:00:{number:02x}:02"))
        links.append(Link(*ends, mtu=1500, place=f"{STORE}-{name}"))
        words.append(("ip", "addr", "add", f"10.9.{number}.1/30", "dev", f"eth{number}"))
        own = ("ip", "addr", "add", f"10.9.{number}.2/30", "dev", "eth9")
        nodes[name] = replace(nodes[name], exec=(*nodes[name].exec, own))
    # A node without BGP, as the client is.
    nodes[STORE] = replace(
        plan.nodes["client"],
        name=STORE,
        image="quay.io/coreos/etcd:v3.4.23",
        hostname=STORE,
        command=ETCD,
        exec=tuple(words),
        place=STORE,
    )
    return replace(plan, nodes=nodes, links=tuple(links))


async def _store_down(story: Story) -> None:
    n1, store = story.node("n1"), story.node(STORE)
    pod = story.pod("n1").addresses
    await store.stop(signal.SIGKILL)
    story.event("etcd is killed")
    async with Watch(n1, story.node("n2"), story.node("tor1")) as watch:
        await story.stop(n1, signal.SIGTERM)
        await story.start(n1)
        await story.settle()
    watch.judge(story, "restart")
    told = (await n1.agent.get("/v1/status"))["store"]
    story.check(told["state"] == "away" and bool(told["problem"]), f"n1 says so: {json.dumps(told['problem'])}")
    kept = [address for address in pod if await story.pod("n2").ping(address)]
    story.check(kept == pod, "the pod on n1 has the addresses that it had, and answers")
    await _one_more(story, n1, "meanwhile")
    store.start()
    story.event("etcd is started")
    await story.until("n1 has its store again", partial(_connected, n1))
    await story.settle()


async def _connected(node: Node) -> bool:
    return bool((await node.agent.get("/v1/status"))["store"]["state"] == "connected")


SCENARIOS = (
    Scenario(
        name="agent-upgrade",
        promise="Another release takes over state and routes of the one before: no packet is lost, and no route "
        "changes. The one before refuses newer state, says so, and still interrupts nothing.",
        topology="one-tor",
        steps=_upgraded,
    ),
    Scenario(
        name="restart-without-store",
        promise="An agent that restarts while its store is away has its blocks, announces them and starts pods; no "
        "packet is lost, and no route changes.",
        topology="one-tor",
        steps=_store_down,
        prepare=_with_etcd,
    ),
)
