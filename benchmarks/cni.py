"""`make bench-cni`: podroute's plugin in turn with Debian's ptp and bridge (host-local), on this machine, in one run.

    python -m benchmarks.cni [--rounds N] [--calls N] [--burst N] [--pods N]

All calls are made as a runtime makes them, one process each, inside one network namespace that stands for the host,
with an uplink that has an address: without one the kernel looks for a source address at every interface when it adds a
route. Pods' addresses are IPv4, because the peers wait seconds for duplicate address detection. In each round the
systems take turns in changing order: first ``--calls`` ADDs and DELs one after the other, then ``--burst`` of each at
once. podroute is measured as `podroute cni install` installs it, which is the compiled plugin where there is a C
compiler; beside it, for information, the plugin that a host without one gets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cni_systems import DEBIAN, IN_PYTHON, OURS, Agent, BenchmarkError, System, debian
from benchmarks.report import Report, Row
from tests.netns import Netns

PLACE = "/var/tmp"
"""A disk, not a tmpfs: podroute's ledger is durable, and pays for it."""
FILL = 16
"""Calls side by side while the node is filled."""


@dataclass
class Samples:
    """Of one system; seconds."""

    add: list[list[float]] = field(default_factory=list)
    """Per round."""
    delete: list[list[float]] = field(default_factory=list)
    add_burst: list[float] = field(default_factory=list)
    delete_burst: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Per ADD, plugin and agent."""


@dataclass(frozen=True)
class Density:
    first: float
    """Seconds of an ADD on an empty node, median."""
    last: float
    memory: float
    """Octets of the agent per pod; 0 where there is no agent."""

    @property
    def growth(self) -> float:
        return self.last / self.first


def main() -> int:
    parser = argparse.ArgumentParser(description="podroute's CNI plugin beside Debian's ptp and bridge.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=40, help="calls one after the other, per round")
    parser.add_argument("--burst", type=int, default=100, help="calls at once")
    parser.add_argument("--pods", type=int, default=2000, help="pods on one node; 0: leave that out")
    arguments = parser.parse_args()
    if os.geteuid() or not (DEBIAN / "ptp").exists():
        print("benchmarks.cni needs root and Debian's containernetworking-plugins", file=sys.stderr)
        return 1
    try:
        with tempfile.TemporaryDirectory(prefix="podroute-bench-", dir=PLACE) as directory, _host():
            report = measure(Path(directory), arguments)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    report.print()
    print(f"\nwritten to {report.write()}")
    return 0


def measure(directory: Path, arguments: argparse.Namespace) -> Report:
    """Run everything in the calling thread's network namespace. Raises BenchmarkError."""
    samples, plugin = in_turn(directory, arguments.rounds, arguments.calls, arguments.burst)
    rows = list(_rows(samples, arguments.burst))
    if arguments.pods:
        rows += _density_rows(*densities(directory / "density", arguments.pods), arguments.pods)
    settings = {
        "rounds": arguments.rounds,
        "calls": arguments.calls,
        "burst": arguments.burst,
        "pods": arguments.pods,
        "peers": _version(),
        "plugin": plugin,
    }
    missed = any(row.holds is False for row in rows)
    profile = profiled(directory / "profile", arguments.calls) if missed else []
    return Report("cni", rows, settings, profile)


def in_turn(directory: Path, rounds: int, calls: int, burst: int) -> tuple[dict[str, Samples], str]:
    """Return what each system took, and which plugin podroute has installed."""
    agent = Agent(directory / "podroute")
    with ExitStack() as stack:
        pods = _pods(stack, max(calls, burst))
        stack.callback(agent.stop)
        peers = [("ptp", "10.98.0.0/16"), ("bridge", "10.99.0.0/16")]
        systems = [
            agent.start(),
            agent.in_python(),
            *(debian(name, directory / name, subnet) for name, subnet in peers),
        ]
        samples = {system.name: Samples() for system in systems}
        for system in systems:
            system.prepare()
            _round(system, agent, pods, 3, 3, Samples())  # files and caches
        for number in range(rounds):
            turn = number % len(systems)
            for system in systems[turn:] + systems[:turn]:
                _round(system, agent, pods, calls, burst, samples[system.name])
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
        script = systems[0].binary.read_bytes().startswith(b"#!")
    return samples, "python" if script else "compiled"


def _round(system: System, agent: Agent, pods: Sequence[str], calls: int, burst: int, samples: Samples) -> None:
    ours = system.name in (OURS, IN_PYTHON)
    one_by_one = {f"{system.name}-{number}": pod for number, pod in enumerate(pods[:calls])}
    before = agent.cpu() if ours else 0.0
    added = [system.call("ADD", container, pod) for container, pod in one_by_one.items()]
    agents = agent.cpu() - before if ours else 0.0
    deleted = [system.call("DEL", container, pod) for container, pod in one_by_one.items()]
    agent.settle()
    at_once = {f"{system.name}-{number}": pod for number, pod in enumerate(pods[:burst])}
    samples.add_burst.append(system.at_once("ADD", at_once)[0])
    agent.settle()
    samples.delete_burst.append(system.at_once("DEL", at_once)[0])
    agent.settle()
    samples.add.append([call.seconds for call in added])
    samples.delete.append([call.seconds for call in deleted])
    samples.cpu.append((sum(call.cpu for call in added) + agents) / calls)


def densities(directory: Path, count: int) -> tuple[Density, Density]:
    """Fill a node with pods of podroute, and then with ptp's: what the kernel takes for many, both pay."""
    agent = Agent(directory)
    with ExitStack() as stack:
        pods = _pods(stack, count)
        with ExitStack() as running:
            running.callback(agent.stop)
            ours = fill(agent.start(), pods, agent)
        return ours, fill(debian("ptp", directory / "ptp", "10.98.0.0/16"), pods, None)


def fill(system: System, namespaces: Sequence[str], agent: Agent | None) -> Density:
    """Fill a node with pods; compare the first ADDs with the last, and the agent's memory."""
    pods = {f"pod-{number}": namespace for number, namespace in enumerate(namespaces)}
    names, count = list(pods), len(pods)
    probes = min(50, count // 4)
    system.prepare()

    def all_of(verb: str, some: Sequence[str]) -> None:
        for start in range(0, len(some), FILL):
            system.at_once(verb, {name: pods[name] for name in some[start : start + FILL]})
        if agent:
            agent.settle()

    def probe(some: Sequence[str]) -> float:
        return statistics.median(system.call("ADD", name, pods[name]).seconds for name in some)

    all_of("ADD", names[:FILL])  # what is loaded or started at first use is no pod's
    first = probe(names[FILL : FILL + probes])
    before = agent.memory() if agent else 0
    middle = names[FILL + probes : -probes]
    all_of("ADD", middle)
    last = probe(names[-probes:])
    memory = ((agent.memory() if agent else 0) - before) / (len(middle) + probes)
    all_of("DEL", names)
    return Density(first, last, memory)


def profiled(directory: Path, calls: int) -> list[str]:
    """Return where an ADD's and a DEL's time goes, one line each."""
    agent = Agent(directory, debug=True)
    with ExitStack() as stack:
        pods = _pods(stack, calls)
        stack.callback(agent.stop)
        system = agent.start()
        system.prepare()
        bare = statistics.median(_timed(["/bin/true"]) for _ in range(calls))
        trip = statistics.median(system.call("STATUS", "pod", "").seconds for _ in range(calls))
        whole = {
            verb: statistics.median(system.call(verb, f"pod-{n}", pod).seconds for n, pod in enumerate(pods))
            for verb in ("ADD", "DEL")
        }
    lines = [
        "Where the time goes, one caller, medians in ms:",
        f"  a process that does nothing:                   {bare * 1e3:6.2f}",
        f"  + the plugin, asking the agent (STATUS):       {(trip - bare) * 1e3:6.2f}",
    ]
    for verb, seconds in whole.items():
        lines.append(f"  + carrying out {verb}:                           {(seconds - trip) * 1e3:6.2f}")
        steps = _steps(agent.log, verb)
        lines += [f"      {name:<44}{statistics.median(values):6.2f}" for name, values in steps.items()]
    return lines


def _steps(log: Path, verb: str) -> dict[str, list[float]]:
    """Return the durations that the agent's debug log tells of, in ms by step."""
    found: dict[str, list[float]] = {}
    for line in log.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("message") == f"{verb} took":
            for name, value in entry.items():
                if name.endswith("_ms"):
                    found.setdefault(name.removesuffix("_ms"), []).append(float(value))
    return found


def _rows(samples: dict[str, Samples], burst: int) -> Iterator[Row]:
    def per_round(select: Callable[[Samples], list[list[float]]]) -> Callable[[Samples], float]:
        return lambda one: statistics.median(statistics.median(values) for values in select(one)) * 1e3

    def worst(one: Samples) -> float:
        values = sorted(value for values in one.add for value in values)
        return values[min(len(values) - 1, int(len(values) * 0.99))] * 1e3

    cases: list[tuple[str, str, Callable[[Samples], float], float]] = [
        ("ADD p50", "ms", per_round(lambda one: one.add), 1.25),
        ("ADD p99", "ms", worst, 1.5),
        ("DEL p50", "ms", per_round(lambda one: one.delete), 0.6),
        (f"{burst} at once: ADD", "s", lambda one: statistics.median(one.add_burst), 0.8),
        (f"{burst} at once: DEL", "s", lambda one: statistics.median(one.delete_burst), 0.5),
        ("CPU per ADD", "ms", lambda one: statistics.median(one.cpu) * 1e3, 1.1),
    ]
    for name, unit, select, goal in cases:
        for peer in ("ptp", "bridge"):
            ours, theirs = select(samples[OURS]), select(samples[peer])
            yield Row(name, unit, ours, theirs, f"{peer} + host-local", goal if peer == "ptp" else None)
        theirs = select(samples["ptp"])
        yield Row(f"{name}, plugin in Python", unit, select(samples[IN_PYTHON]), theirs, "ptp + host-local")


def _density_rows(ours: Density, ptp: Density, pods: int) -> Iterator[Row]:
    case = f"ADD on a node with {pods} pods"
    yield Row(case, "ms", ours.last * 1e3, ours.first * 1e3, "empty node", 1.3)
    yield Row(case, "ms", ours.last * 1e3, ptp.last * 1e3, "ptp + host-local")
    yield Row(f"{case}, in those on an empty one", "", ours.growth, ptp.growth, "ptp + host-local")
    yield Row("agent RSS per pod", "KB", ours.memory / 1024, goal=2.0)


def _pods(stack: ExitStack, count: int) -> list[str]:
    """Return the paths of as many network namespaces, which go with the stack."""
    made = []
    for _ in range(count):
        pod = Netns()
        stack.callback(pod.close)
        made.append(pod.path)
    return made


@contextmanager
def _host() -> Iterator[None]:
    """Put this thread, and what it starts, into a namespace that stands for the host."""
    host = Netns()
    try:
        host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        host.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "fabric")
        host.run("ip", "address", "add", "192.0.2.1/24", "dev", "uplink")
        with host.entered():
            yield
    finally:
        host.close()


def _timed(command: Sequence[str]) -> float:
    start = time.perf_counter()
    os.waitpid(os.posix_spawn(command[0], list(command), {}), 0)
    return time.perf_counter() - start


def _version() -> str:
    query = ["dpkg-query", "-W", "-f", "${Package} ${Version}", "containernetworking-plugins"]
    return subprocess.run(query, capture_output=True, text=True).stdout or "unknown"


if __name__ == "__main__":
    sys.exit(main())
