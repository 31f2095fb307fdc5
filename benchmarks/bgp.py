"""`make bench-bgp`: the speaker beside BIRD, FRR and GoBGP on the same input, in turn, and its promises alone.

Every figure is the median of the rounds; goals are for podroute. Needs root (network namespaces). A rival that is not
installed is left out, as is the real table where $PODROUTE_DATA does not lead to it. A part that fails is named at the
end, and in the file; the others are measured all the same.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from benchmarks import bgp_core
from benchmarks.bgp_transfer import BYSTANDER, FAILURES, RECEIVER_AS, SENDER, beside, settled
from benchmarks.daemons import DAEMON, RIVALS, BenchPeer, Gobgp, Lab, Podroute
from benchmarks.injector import Injector
from benchmarks.report import Report, Row
from benchmarks.streams import real, synthetic
from tests.netns import Netns

LOCAL_AS, SENDER_AS = 65001, 65002
_LIMIT = 60.0
_POLL = 0.02
_BYSTANDER_HOLD = 3


def loop_rows(count: int) -> list[Row]:
    """A large table arrives while another peer wants its keepalives, and then the session that brought it is lost."""
    lab = Lab()
    try:
        daemon = Podroute(
            lab,
            LOCAL_AS,
            [BenchPeer(SENDER, SENDER_AS), BenchPeer(BYSTANDER, RECEIVER_AS, hold_time=_BYSTANDER_HOLD)],
        )
        try:
            bystander = Injector(lab.injectors, BYSTANDER, DAEMON, RECEIVER_AS, hold_time=_BYSTANDER_HOLD)
            sender = Injector(lab.injectors, SENDER, DAEMON, SENDER_AS)
            stream = synthetic(count, 200, ip_address(SENDER).packed, asn=SENDER_AS, local_as=LOCAL_AS)
            daemon.ask(reset=True)
            began = time.monotonic()
            sender.send(stream.data)
            settled(daemon, count, began)
            _idle(daemon)
            arriving = daemon.ask(reset=True)
            sender.close()
            _until(daemon, lambda figures: not figures["received"])
            _idle(daemon)
            leaving = daemon.ask()
            times = bystander.keepalives
            late = max((b - a for a, b in pairwise(times)), default=0.0) - _BYSTANDER_HOLD / 3
        finally:
            daemon.close()
    finally:
        lab.close()
    return [
        Row(f"loop held at most, {count} prefixes arrive", "ms", arriving["longest"] * 1000, goal=50.0),
        Row("  the same, CPU of the loop's thread", "ms", arriving["longestCpu"] * 1000),
        Row(f"loop held at most, a session with {count} is lost", "ms", leaving["longest"] * 1000, goal=50.0),
        Row("  the same, CPU of the loop's thread", "ms", leaving["longestCpu"] * 1000),
        Row("keepalive to another peer late by at most", "ms", max(late, 0.0) * 1000, goal=100.0),
    ]


def _idle(daemon: Podroute) -> None:
    _until(daemon, lambda figures: bool(figures["idle"]))


def _until(daemon: Podroute, holds: Callable[[dict[str, Any]], bool]) -> None:
    deadline = time.monotonic() + _LIMIT
    while not holds(daemon.ask()):
        if time.monotonic() > deadline:
            raise AssertionError(f"podroute is not done after {_LIMIT:g} s: {daemon.ask()}")
        time.sleep(_POLL)


def crowd_rows(peers: int, prefixes: int, seconds: float) -> list[Row]:
    """Many established peers with a few prefixes each: a new prefix to all of them, and the cost of doing nothing."""
    lab = Lab()
    try:
        members = [BenchPeer(str(ip_address("10.0.4.1") + n), SENDER_AS + n, True) for n in range(peers)]
        daemon = Podroute(lab, LOCAL_AS, members, own_only=True)
        try:
            injectors = [Injector(lab.injectors, p.address, DAEMON, p.asn) for p in members]
            for n, (member, injector) in enumerate(zip(members, injectors, strict=True)):
                next_hop = ip_address(member.address).packed
                first = (1 << 16) + n * prefixes
                injector.send(synthetic(prefixes, 200, next_hop, asn=member.asn, local_as=LOCAL_AS, first=first).data)
            settled(daemon, peers * prefixes, time.monotonic())
            _idle(daemon)
            began = time.monotonic()
            daemon.ask(originate="18c63364")  # 198.51.100.0/24
            for injector in injectors:
                if not injector.wait(1, 10):
                    raise AssertionError("a prefix did not reach every peer")
            latency = max(injector.arrived for injector in injectors) - began
            daemon.ask(watch=False)
            cpu = daemon.cpu()
            time.sleep(seconds)
            idle = (daemon.cpu() - cpu) / seconds
        finally:
            daemon.close()
    finally:
        lab.close()
    case = f"{peers} peers with {prefixes} prefixes each"
    return [
        Row(f"{case}: a new prefix on every wire", "ms", latency * 1000, goal=250.0),
        Row(f"{case}: CPU of a core when idle", "%", idle * 100, goal=2.0),
    ]


def agent_row() -> Row:
    """An idle agent's resident set."""
    ns = Netns()
    try:
        with tempfile.TemporaryDirectory(prefix="podroute-bench-") as directory:
            path = Path(directory)
            config = path / "podroute.yaml"
            config.write_text(
                "apiVersion: podroute/v1\nnode: {name: bench, as: 65001, routerId: 10.0.0.1}\n"
                f"stateDir: {path}/state\nstore: sqlite://{path}/store.db\napi: {{socket: {path}/api.sock}}\n"
                f"cni: {{socket: {path}/cni.sock, binDir: {path}/bin, confDir: {path}/net.d}}\n"
            )
            command = ns.command(sys.executable, "-c", "from agent.cli import main; main()", "agent")
            process = subprocess.Popen([*command, "--config", str(config)], stderr=subprocess.PIPE, text=True)
            try:
                assert process.stderr is not None
                for line in process.stderr:
                    if "running" in line:
                        break
                else:
                    raise AssertionError("the agent does not start")
                time.sleep(1)
                found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            finally:
                process.kill()
                process.wait()
                assert process.stderr is not None
                process.stderr.close()
    finally:
        ns.close()
    assert found is not None
    return Row("idle agent, resident set", "MB", int(found[1]) / 1024, goal=75.0)


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--prefixes", default=1_000_000, show_default=True, help="Size of the synthetic table.")
@click.option("--peers", default=500, show_default=True, help="Established peers in the crowd.")
@click.option("--only", default="", help="Run the parts whose name holds this: core, loop, crowd, agent, beside.")
@click.option("--write/--no-write", default=True, help="Write results/bgp.json.")
def main(rounds: int, prefixes: int, peers: int, only: str, write: bool) -> None:
    """Measure the speaker, print the table and write benchmarks/results/bgp.json."""
    if os.geteuid():
        raise click.ClickException("network namespaces need root")
    rivals = [kind for kind in RIVALS if kind.version() is not None]
    next_hop = ip_address(SENDER).packed
    rows: list[Row] = []
    failures: list[str] = []
    alone: dict[str, Callable[[], list[Row]]] = {
        "core": lambda: bgp_core.rows(rounds),
        "loop": lambda: loop_rows(prefixes),
        "crowd": lambda: crowd_rows(peers, 1000, 10.0),
        "agent": lambda: [agent_row()],
    }
    for name, measure in alone.items():
        if only in name:
            try:
                rows += measure()
            except FAILURES as error:
                failures.append(f"{name}: {error}")
            gc.collect()
    if only in "beside":
        packed = synthetic(prefixes, 200, next_hop, asn=SENDER_AS, local_as=LOCAL_AS)
        single = synthetic(prefixes // 5, 1, next_hop, asn=SENDER_AS, local_as=LOCAL_AS)
        table = real(next_hop) or synthetic(prefixes // 2, 6, next_hop, asn=SENDER_AS, local_as=LOCAL_AS)
        quicker = [kind for kind in rivals if kind is not Gobgp]  # a minute is not enough for the largest two
        for stream, kinds, out in (
            (packed, quicker, False),
            (single, rivals, False),
            (table, rivals, False),
            (table, quicker, True),
        ):
            found, failed = beside(stream, kinds, rounds, out=out)
            rows += found
            failures += failed
            rows += [
                replace(row, peer=None, peer_name="", goal=200.0)
                for row in found[-1:]
                if stream is table and not out  # the promise is for what peers announce, stored and decided over
            ]
    versions = {kind.name: kind.version() for kind in rivals}
    settings = {"rounds": rounds, "prefixes": prefixes, "peers": peers, "versions": versions, "failures": failures}
    report = Report("bgp", rows, settings)
    report.print()
    for failure in failures:
        click.echo(f"failed: {failure}", err=True)
    if write:
        click.echo(f"written: {report.write()}")
    if any(not failure.startswith(tuple(versions)) for failure in failures):
        sys.exit(1)


if __name__ == "__main__":
    main()
