"""The daemons under test, each a process in a network namespace: podroute's speaker, BIRD, FRR's bgpd, GoBGP.

All hold their tables in memory only: what the kernel takes is another benchmark's business.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.netns import Netns, link

DAEMON = "10.0.0.1"
PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class BenchPeer:
    """A neighbour of the daemon. Who ``receives`` is told everything, everybody else nothing learned."""

    address: str
    asn: int
    receives: bool = False
    hold_time: int = 90


class Lab:
    """A daemon's network namespace and the injectors', joined by a link; 10.0.4.0/22 is for injectors."""

    def __init__(self) -> None:
        self.daemon, self.injectors = Netns(), Netns()
        link(self.daemon, "eth0", self.injectors, "eth0")
        self.daemon.run("ip", "address", "add", f"{DAEMON}/16", "dev", "eth0")
        self.injectors.run("ip", "address", "add", "10.0.0.2/16", "dev", "eth0")
        self.injectors.run("ip", "route", "add", "local", "10.0.4.0/22", "dev", "lo")

    def close(self) -> None:
        self.daemon.close()
        self.injectors.close()


class Daemon(ABC):
    """One run of a daemon; ``received`` asks it how many prefixes it has, every ``interval`` seconds."""

    name = ""
    interval = 0.02

    def __init__(self, lab: Lab, asn: int, peers: Sequence[BenchPeer]) -> None:
        self.lab = lab
        self.asn = asn
        self.peers = peers
        self.directory = Path(tempfile.mkdtemp(prefix="podroute-bench-"))
        self._started: list[subprocess.Popen[str]] = []
        try:
            self.process = self._spawn()
        except BaseException:
            self.close()
            raise

    @classmethod
    @abstractmethod
    def version(cls) -> str | None:
        """Return the daemon's version, None where it is not installed."""

    @abstractmethod
    def received(self) -> int:
        """Return how many prefixes its peers have announced to it, by its own counters."""

    def memory(self) -> int:
        """Return the resident set in octets."""
        return _status(self.process.pid, "VmRSS") * 1024

    def cpu(self) -> float:
        """Return the seconds of CPU used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @abstractmethod
    def _spawn(self) -> subprocess.Popen[str]:
        """Start the daemon, and return when it takes connections."""

    def _start(self, *argv: str, pipes: bool = False) -> subprocess.Popen[str]:
        with open(self.directory / "log", "ab") as log:
            process = subprocess.Popen(
                self.lab.daemon.command(*argv),
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else log,
                stderr=log,
                text=True,
            )
        self._started.append(process)
        return process

    def _listening(self) -> None:
        """Wait until port 179 takes connections."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if ":179 " in self.lab.daemon.run("ss", "-Htln", "sport", "=", ":179"):
                return
            time.sleep(0.05)
        raise AssertionError(f"{self.name} does not listen: {(self.directory / 'log').read_text()}")


class Podroute(Daemon):
    name = "podroute"

    @classmethod
    def version(cls) -> str | None:
        return "here"

    def __init__(self, lab: Lab, asn: int, peers: Sequence[BenchPeer], *, own_only: bool = False) -> None:
        self._own_only = own_only
        super().__init__(lab, asn, peers)

    def _spawn(self) -> subprocess.Popen[str]:
        config = {
            "as": self.asn,
            "ownOnly": self._own_only,
            "address": DAEMON,
            "peers": [
                {"address": p.address, "as": p.asn, "receives": p.receives, "holdTime": p.hold_time} for p in self.peers
            ],
        }
        process = self._start(sys.executable, "-m", "benchmarks.bgp_speaker", json.dumps(config), pipes=True)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise AssertionError(f"the speaker does not start: {(self.directory / 'log').read_text()}")
        return process

    def ask(self, **command: Any) -> dict[str, Any]:
        """Have the speaker obey a command, and return its figures."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def received(self) -> int:
        count: int = self.ask()["received"]
        return count


class Bird(Daemon):
    name = "BIRD"

    @classmethod
    def version(cls) -> str | None:
        return _version("bird", "--version")

    def _spawn(self) -> subprocess.Popen[str]:
        parts = [f'log "{self.directory}/bird.log" all;', f"router id {DAEMON};", "protocol device {}"]
        parts += [
            f"protocol bgp p{n} {{ local {DAEMON} as {self.asn}; neighbor {p.address} as {p.asn}; passive;"
            f" ipv4 {{ import {'none' if p.receives else 'all'}; export {'all' if p.receives else 'none'}; }}; }}"
            for n, p in enumerate(self.peers)
        ]
        config = self.directory / "bird.conf"
        config.write_text("\n".join(parts) + "\n")
        process = self._start("bird", "-f", "-c", str(config), "-s", str(self.directory / "bird.ctl"))
        self._listening()
        return process

    def received(self) -> int:
        text = self._ask("show route count")
        return int(text.split(" of ")[1].split()[0])

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(PATIENCE)
            control.connect(str(self.directory / "bird.ctl"))
            control.recv(4096)
            control.sendall(f"{command}\n".encode())
            text = ""
            while "\n0000" not in text and " of " not in text:
                more = control.recv(4096)
                if not more:
                    raise OSError(f"BIRD closed its socket after {text!r}")
                text += more.decode()
            return text


class Frr(Daemon):
    name = "FRR"

    @classmethod
    def version(cls) -> str | None:
        return _version("/usr/lib/frr/bgpd", "--version")

    def _spawn(self) -> subprocess.Popen[str]:
        lines = [
            "route-map ALL permit 10",
            "route-map NONE deny 10",
            f"router bgp {self.asn}",
            f" bgp router-id {DAEMON}",
            " no bgp ebgp-requires-policy",
        ]
        lines += [" no bgp network import-check", " bgp disable-ebgp-connected-route-check"]
        for p in self.peers:
            lines += [f" neighbor {p.address} remote-as {p.asn}", f" neighbor {p.address} passive"]
            lines += [f" neighbor {p.address} disable-connected-check", f" neighbor {p.address} timers connect 1"]
        lines += [" address-family ipv4 unicast"]
        for p in self.peers:
            lines += [f"  neighbor {p.address} route-map {'NONE' if p.receives else 'ALL'} in"]
            lines += [f"  neighbor {p.address} route-map {'ALL' if p.receives else 'NONE'} out"]
        lines += [" exit-address-family"]
        config = self.directory / "bgpd.conf"
        config.write_text("\n".join(lines) + "\n")
        argv = ["/usr/lib/frr/bgpd", "-Z", "-S", "-f", str(config), "-i", str(self.directory / "pid")]
        argv += ["--vty_socket", str(self.directory), "-A", "127.0.0.1", "-P", "0"]
        process = self._start(*argv)
        self._listening()
        return process

    def received(self) -> int:
        answer = json.loads(self._ask("show bgp ipv4 unicast summary json"))
        return sum(peer["pfxRcd"] for peer in answer.get("peers", {}).values())

    def _ask(self, command: str) -> str:
        """Ask as vtysh does, without a process for each question: an answer ends with three zeros and a status."""
        text = b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as terminal:
            terminal.settimeout(PATIENCE)
            terminal.connect(str(self.directory / "bgpd.vty"))
            for line in ("enable", command):
                terminal.sendall(line.encode() + b"\0")
                text = b""
                while text[-4:-1] != bytes(3):
                    more = terminal.recv(1 << 16)
                    if not more:
                        raise OSError(f"bgpd closed its terminal after {text!r}")
                    text += more
        return text[:-4].decode()


class Gobgp(Daemon):
    name = "GoBGP"
    interval = 0.2  # each question costs a process

    @classmethod
    def version(cls) -> str | None:
        return _version("gobgpd", "--version")

    def _spawn(self) -> subprocess.Popen[str]:
        lines = ["[global.config]", f"as = {self.asn}", f'router-id = "{DAEMON}"', f'local-address-list = ["{DAEMON}"]']
        for p in self.peers:
            lines += ["[[neighbors]]", "[neighbors.config]", f'neighbor-address = "{p.address}"', f"peer-as = {p.asn}"]
            lines += ["[neighbors.transport.config]", "passive-mode = true"]
        config = self.directory / "gobgpd.toml"
        config.write_text("\n".join(lines) + "\n")
        process = self._start("gobgpd", "-f", str(config), "--pprof-disable", "-l", "error")
        self._listening()
        return process

    def received(self) -> int:
        command = self.lab.daemon.command("gobgp", "-j", "global", "rib", "summary")
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found: dict[str, Any] = json.loads(text)
        return int(found.get("num_path", 0))


RIVALS: tuple[type[Daemon], ...] = (Bird, Frr, Gobgp)


def _version(*argv: str) -> str | None:
    if shutil.which(argv[0]) is None:
        return None
    done = subprocess.run(argv, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0
