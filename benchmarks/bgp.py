"""`make bench-bgp`: the speaker beside BIRD, FRR and GoBGP on the same input, in turn, and its promises alone.

Every figure is the median of the rounds; goals are for podroute. Needs root (network namespaces). A rival that is not
installed is left out, as is the real table where $PODROUTE_DATA does not lead to it.
"""

from __future__ import annotations

import gc
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import click

from benchmarks import bgp_core
from benchmarks.daemons import DAEMON, RIVALS, BenchPeer, Daemon, Lab, Podroute
from benchmarks.injector import Injector
from benchmarks.report import Report, Row
from benchmarks.streams import Stream, real, synthetic
from tests.netns import Netns

LOCAL_AS, SENDER_AS, RECEIVER_AS = 65001, 65002, 65003
SENDER, RECEIVER, BYSTANDER = "10.0.4.1", "10.0.4.2", "10.0.4.3"
_LIMIT = 180.0
_POLL = 0.02
_BYSTANDER_HOLD = 3


@dataclass(frozen=True, slots=True)
class Transfer:
    """One table through one daemon. Seconds from the first octet sent."""

    received: float
    """Until the daemon's own counter stood at its last value."""
    out: float
    """Until the last prefix reached the other peer; 0: there was none."""
    cpu: float
    octets: float
    """Growth of the resident set per prefix."""


def transfer(kind: type[Daemon], stream: Stream, *, out: bool) -> Transfer:
    """Send a table to a fresh daemon, and with ``out`` have it pass it on."""
    lab = Lab()
    try:
        peers = [BenchPeer(SENDER, stream.asn)] + ([BenchPeer(RECEIVER, RECEIVER_AS, True)] if out else [])
        daemon = kind(lab, stream.local_as, peers)
        try:
            receiver = Injector(lab.injectors, RECEIVER, DAEMON, RECEIVER_AS) if out else None
            sender = Injector(lab.injectors, SENDER, DAEMON, stream.asn)
            memory, cpu, began = daemon.memory(), daemon.cpu(), time.monotonic()
            sender.send(stream.data)
            received = _settled(daemon, stream.prefixes, began)
            done = 0.0
            if receiver is not None:
                while receiver.wait(receiver.prefixes + 1, 1.0):
                    pass
                done = receiver.arrived - began
                if receiver.prefixes < stream.prefixes * 0.99:
                    raise AssertionError(f"{daemon.name} passed on {receiver.prefixes} of {stream.prefixes} prefixes")
            figures = daemon.cpu() - cpu, (daemon.memory() - memory) / stream.prefixes
            sender.close()
            return Transfer(received, done, *figures)
        finally:
            daemon.close()
    finally:
        lab.close()


def _settled(daemon: Daemon, expected: int, began: float) -> float:
    """Wait until the daemon's counter no longer moves; return when it came to its last value, counted from ``began``.

    A daemon may refuse some routes of a real table, so the count to reach is not known beforehand.
    """
    count, reached = -1, 0.0
    while (now := time.monotonic()) < began + _LIMIT:
        found = daemon.received()
        if found != count:
            count, reached = found, time.monotonic() - began
        if count == expected or (count >= expected * 0.99 and now - began > reached + 1):
            return reached
        time.sleep(_POLL)
    raise AssertionError(f"{daemon.name} has {count} of {expected} prefixes after {_LIMIT:g} s")


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
            _settled(daemon, count, began)
            _idle(daemon)
            arriving = daemon.ask(reset=True)
            sender.close()
            while daemon.ask()["received"]:
                time.sleep(_POLL)
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
    while not daemon.ask()["idle"]:
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
            _settled(daemon, peers * prefixes, time.monotonic())
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


def beside(stream: Stream, rivals: list[type[Daemon]], rounds: int, *, out: bool) -> list[Row]:
    """All daemons in turn, ``rounds`` times, on one stream."""
    runs: dict[str, list[Transfer]] = {}
    for _ in range(rounds):
        kinds: list[type[Daemon]] = [Podroute, *rivals]
        for kind in kinds:
            runs.setdefault(kind.name, []).append(transfer(kind, stream, out=out))

    def row(case: str, unit: str, read: Callable[[Transfer], float], rival: str, goal: float | None = None) -> Row:
        ours, theirs = (statistics.median(map(read, runs[name])) for name in (Podroute.name, rival))
        return Row(case, unit, ours, theirs, rival, goal)

    rows = []
    for rival in [kind.name for kind in rivals]:
        if out:
            rows.append(row(f"in and out, {stream.name}", "s", lambda run: run.out, rival))
            continue
        rows.append(row(f"received, {stream.name}", "s", lambda run: run.received, rival))
        rows.append(row(f"CPU, {stream.name}", "s", lambda run: run.cpu, rival))
        rows.append(row(f"memory, {stream.name}", "octets/prefix", lambda run: run.octets, rival))
    if not out:
        octets = statistics.median(run.octets for run in runs[Podroute.name])
        rows.append(Row(f"memory, {stream.name}", "octets/prefix", octets, goal=200.0))
    return rows


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
    if only in "core":
        rows += bgp_core.rows(rounds)
        gc.collect()
    if only in "loop":
        rows += loop_rows(prefixes)
    if only in "crowd":
        rows += crowd_rows(peers, 1000, 10.0)
    if only in "agent":
        rows.append(agent_row())
    if only in "beside":
        packed = synthetic(prefixes, 200, next_hop, asn=SENDER_AS, local_as=LOCAL_AS)
        rows += beside(packed, [kind for kind in rivals if kind.name != "GoBGP"], rounds, out=False)
        table = real(next_hop) or synthetic(prefixes // 2, 6, next_hop, asn=SENDER_AS, local_as=LOCAL_AS)
        rows += beside(table, rivals, rounds, out=False)
        rows += beside(table, rivals, rounds, out=True)
    versions = {kind.name: kind.version() for kind in rivals}
    report = Report("bgp", rows, {"rounds": rounds, "prefixes": prefixes, "peers": peers, "versions": versions})
    report.print()
    if write:
        click.echo(f"written: {report.write()}")


if __name__ == "__main__":
    main()
