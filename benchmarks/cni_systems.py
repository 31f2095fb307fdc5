"""The systems that ``benchmarks.cni`` compares, each driven as a runtime does: one process per call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEBIAN = Path("/usr/lib/cni")
ROOT = Path(__file__).parents[1]
_AGENT = "from agent.cli import main; main()"
_PATIENCE = 30.0
OURS = "podroute"
IN_PYTHON = "podroute, plugin in Python"


class BenchmarkError(Exception):
    """A call failed or the agent does not run: no figure means anything then."""


@dataclass(frozen=True, slots=True)
class Call:
    """A plugin's process, from its start to its exit."""

    seconds: float
    cpu: float
    """Seconds, with those of the processes that it started and waited for."""


@dataclass(frozen=True, slots=True)
class System:
    """A plugin and its configuration."""

    name: str
    binary: Path
    directory: Path
    """For this system's files: configuration and what its calls say."""
    config: Mapping[str, Any]

    def call(self, verb: str, container: str, netns: str) -> Call:
        """Run one call. Raises BenchmarkError where it fails."""
        start = time.perf_counter()
        pid = self._spawn(verb, container, netns)
        return self._wait(pid, start, container)

    def at_once(self, verb: str, pods: Mapping[str, str]) -> tuple[float, float]:
        """Start calls for all pods (container id to namespace) together; return the seconds and CPU seconds of all."""
        start = time.perf_counter()
        pids = {self._spawn(verb, container, netns): container for container, netns in pods.items()}
        calls = [self._wait(pid, start, container) for pid, container in pids.items()]
        return time.perf_counter() - start, sum(call.cpu for call in calls)

    def prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._stdin.write_text(json.dumps(self.config))

    @property
    def _stdin(self) -> Path:
        return self.directory / "config.json"

    def _spawn(self, verb: str, container: str, netns: str) -> int:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.binary.parent),
        }
        output = str(self.directory / f"{container}.out")
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, str(self._stdin), os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        ]
        return os.posix_spawn(self.binary, [str(self.binary)], environment, file_actions=actions)

    def _wait(self, pid: int, start: float, container: str) -> Call:
        _, status, used = os.wait4(pid, 0)
        seconds = time.perf_counter() - start
        if status:
            said = (self.directory / f"{container}.out").read_text()
            raise BenchmarkError(f"{self.name} failed for {container}: {said}")
        return Call(seconds, used.ru_utime + used.ru_stime)


def debian(plugin: str, directory: Path, subnet: str) -> System:
    """Return one of Debian's main plugins with host-local, which keeps its files in ``directory``."""
    ipam = {
        "type": "host-local",
        "dataDir": str(directory / "host-local"),
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    config: dict[str, Any] = {"cniVersion": "1.0.0", "name": f"bench-{plugin}", "type": plugin, "ipam": ipam}
    if plugin == "bridge":
        config |= {"bridge": "bench0", "isGateway": True}
    return System(plugin, DEBIAN / plugin, directory, config)


class Agent:
    """`podroute agent` with one IPv4 pool and no peers, in the calling thread's network namespace."""

    def __init__(self, directory: Path, *, debug: bool = False) -> None:
        self.directory = directory
        self.socket = directory / "cni.sock"
        self.log = directory / "agent.log"
        self.config = directory / "podroute.yaml"
        self._debug = debug
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> System:
        """Start the agent, install the plugin, and return it for calling. Raises BenchmarkError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.config.write_text(json.dumps(self._settings()))  # JSON is YAML
        self._run("cni", "install", "--config", str(self.config))
        with self.log.open("wb") as log:
            command = [sys.executable, "-c", _AGENT, "agent", "--config", str(self.config)]
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"the agent does not run:\n{self.log.read_text()}")
            time.sleep(0.02)
        return self._system(OURS, "bin")

    def in_python(self) -> System:
        """Install the plugin in Python beside the other, for the same agent."""
        settings = self._settings()
        settings["cni"] |= {"binDir": f"{self.directory}/script", "confDir": f"{self.directory}/script.d"}
        config = self.directory / "script.yaml"
        config.write_text(json.dumps(settings))
        self._run("cni", "install", "--plugin", "python", "--config", str(config))
        return self._system(IN_PYTHON, "script")

    def _system(self, name: str, place: str) -> System:
        config = {"cniVersion": "1.1.0", "name": "podroute", "type": "podroute"}
        return System(name, self.directory / place / "podroute", self.directory / f"{place}-calls", config)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
            self._process = None

    def cpu(self) -> float:
        """Return the CPU seconds that the agent's threads have used (proc(5), schedstat)."""
        tasks = Path(f"/proc/{self._pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def settle(self) -> None:
        """Wait until the agent has nothing to do."""
        before = -1.0
        while (now := self.cpu()) - before > 0.002:
            before = now
            time.sleep(0.25)

    def memory(self) -> int:
        """Return the resident octets."""
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _settings(self) -> dict[str, Any]:
        where = str(self.directory)
        return {
            "apiVersion": "podroute/v1",
            "node": {"name": "bench", "as": 64512, "routerId": "192.0.2.1"},
            "stateDir": f"{where}/state",
            "store": f"sqlite://{where}/store.db",
            "pools": {"pods4": {"cidr": "10.64.0.0/16"}},
            "bgp": {"listen": []},
            "cni": {"socket": str(self.socket), "binDir": f"{where}/bin", "confDir": f"{where}/net.d"},
            "api": {"socket": f"{where}/api.sock"},
            "log": {"level": "debug" if self._debug else "info", "format": "json"},
        }

    def _run(self, *arguments: str) -> None:
        command = [sys.executable, "-c", _AGENT, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"podroute {' '.join(arguments)}: {done.stderr}")
