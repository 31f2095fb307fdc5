"""A router with two uplinks in namespaces of its own, fed by raw senders and watched in the kernel."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from benchmarks.fib_streams import KEEPALIVE, Stream, open_message
from config.compiled import SWITCH
from config.prefix import FAMILIES, Family
from routes import netlink
from routes.messages import AF, RTA_DST, RTA_OIF, RTMSG, decode_route, match_request, routes_request
from tests.frr import Frr
from tests.netns import Netns, link

ROUTER_AS = 65001
PEER_AS = (65010, 65011)
PATIENCE = 60.0
"""Seconds that one step may take before the run is given up."""
_TREE = Path(__file__).resolve().parent.parent
_TICK = os.sysconf("SC_CLK_TCK")


def own_address(family: Family, number: int) -> str:
    return f"10.0.{number}.1" if family == 4 else f"fd00:{number}::1"


def peer_address(family: Family, number: int) -> str:
    return f"10.0.{number}.2" if family == 4 else f"fd00:{number}::2"


def own_addresses(number: int) -> list[str]:
    return [own_address(family, number) for family in FAMILIES]


def peer_addresses(number: int) -> list[str]:
    return [peer_address(family, number) for family in FAMILIES]


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


class Kernel:
    """What the kernel of the router's namespace holds: looked up there, never asked of a daemon."""

    def __init__(self, ns: Netns) -> None:
        self._sock = ns.call(lambda: netlink.open_socket(receive_buffer=8 << 20))

    def close(self) -> None:
        self._sock.close()

    def has(self, family: Family, prefix: bytes) -> bool:
        answer = netlink.ask(self._sock, netlink.RTM_GETROUTE, match_request(family, prefix))
        if family == 6:
            # Of routes that share a next-hop object the kernel names the one that was first looked up. No prefix of a
            # stream holds another, so that there is an answer suffices.
            return answer is not None
        route = decode_route(*answer) if answer is not None else None
        return route is not None and route.prefix == prefix

    def way(self, destination: bytes) -> int:
        """Return the interface that packets to an address leave by, 0 where it is unreachable."""
        octets = len(destination)
        head = RTMSG.pack(AF[4 if octets == 4 else 6], octets * 8, 0, 0, 0, 0, 0, 0, 0)
        request = head + netlink.attribute(RTA_DST, destination)
        answer = netlink.ask(self._sock, netlink.RTM_GETROUTE, request)
        if answer is None:
            return 0
        data, msg = answer
        return int.from_bytes(netlink.attributes(data, msg.start + 12, msg.end).get(RTA_OIF, b""), sys.byteorder)

    def count(self, family: Family, protocol: int) -> int:
        try:
            entries = netlink.dump(self._sock, netlink.RTM_GETROUTE, routes_request(family, 254, protocol))
            return sum(1 for _ in entries)
        except netlink.DumpInterruptedError:
            return -1

    def wait(self, stream: Stream, *, there: bool) -> float:
        """Return the time at which the last of a stream's sample is there, or gone."""
        deadline = time.perf_counter() + PATIENCE
        pending = list(stream.sample)
        while pending:
            if self.has(stream.family, pending[-1]) is there:
                pending.pop()
            elif time.perf_counter() > deadline:
                raise TimeoutError(f"{len(pending)} of {len(stream.sample)} prefixes {there=} are still to come")
            else:
                time.sleep(0.002)
        return time.perf_counter()

    def settle(self, family: Family, protocol: int, least: int, most: int) -> float:
        """Return the time at which the whole count is right: 0 if it is now."""
        deadline = time.perf_counter() + PATIENCE
        late = 0.0
        while not least <= (count := self.count(family, protocol)) <= most:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{count} routes in the kernel, expected {least} to {most}")
            time.sleep(0.02)
            late = time.perf_counter()
        return late


class Feeder:
    """One eBGP or iBGP peer: connects, opens, then says exactly what it is told."""

    def __init__(self, fabric: Netns, family: Family, number: int, asn: int) -> None:
        self._fabric, self._family, self._number, self._asn = fabric, family, number, asn
        self._sock: socket.socket | None = None

    def connect(self) -> None:
        """Establish the session, trying until the daemon listens."""
        deadline = time.perf_counter() + PATIENCE
        af = socket.AF_INET if self._family == 4 else socket.AF_INET6
        while True:
            sock = self._fabric.call(lambda: socket.socket(af, socket.SOCK_STREAM))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(5)
            try:
                sock.bind((peer_address(self._family, self._number), 0))
                sock.connect((own_address(self._family, self._number), 179))
                identifier = bytes((192, 0, 2, 100 + self._number))
                sock.sendall(open_message(self._asn, identifier, self._family) + KEEPALIVE)
                self._await_keepalive(sock)
                break
            except OSError:
                sock.close()
                if time.perf_counter() > deadline:
                    raise
                time.sleep(0.1)
        sock.settimeout(None)
        self._sock = sock
        threading.Thread(target=self._drain, args=(sock,), daemon=True).start()

    def send(self, data: bytes) -> None:
        assert self._sock is not None
        self._sock.sendall(data)

    def send_later(self, data: bytes) -> threading.Thread:
        thread = threading.Thread(target=self.send, args=(data,), daemon=True)
        thread.start()
        return thread

    def reset(self) -> None:
        """End the session with a TCP reset."""
        sock, self._sock = self._sock, None
        assert sock is not None
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):  # close() alone would wait for the reader; the other side may be gone
            sock.shutdown(socket.SHUT_RD)
        sock.close()

    def close(self) -> None:
        if self._sock is not None:
            self.reset()

    @staticmethod
    def _await_keepalive(sock: socket.socket) -> None:
        data = b""
        while True:
            while len(data) >= 19 and len(data) >= (size := int.from_bytes(data[16:18], "big")):
                if data[18] == 4:
                    return
                if data[18] == 3:
                    raise ConnectionError("NOTIFICATION")
                data = data[size:]
            fresh = sock.recv(4096)
            if not fresh:
                raise ConnectionError("closed")
            data += fresh

    @staticmethod
    def _drain(sock: socket.socket) -> None:
        try:
            while sock.recv(65536):
                pass
        except OSError:
            pass


class Router(ABC):
    """A daemon under test in a fresh namespace; ``protocol`` is how the kernel marks its routes."""

    name = ""
    protocol = 0

    def __init__(self, *, family: Family = 4, ibgp: bool = False) -> None:
        self.family = family
        self.asns = (ROUTER_AS, ROUTER_AS) if ibgp else PEER_AS
        self._stack = ExitStack()
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-fib-")))
        self.ns, self.fabric = Netns(), Netns()
        self._stack.callback(self.ns.close)
        self._stack.callback(self.fabric.close)
        for number in (0, 1):
            link(self.ns, f"up{number}", self.fabric, f"down{number}")
            for ns, name, own in ((self.ns, f"up{number}", True), (self.fabric, f"down{number}", False)):
                for address in own_addresses(number) if own else peer_addresses(number):
                    length, flags = ("64", ["nodad"]) if ":" in address else ("24", [])
                    ns.run("ip", "address", "add", f"{address}/{length}", "dev", name, *flags)
        self.ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.fib_multipath_hash_policy=1")
        self.kernel = Kernel(self.ns)
        self._stack.callback(self.kernel.close)
        self.feeders = [Feeder(self.fabric, family, number, self.asns[number]) for number in (0, 1)]
        self._start()
        for feeder in self.feeders:
            self._stack.callback(feeder.close)

    def close(self) -> None:
        self._stack.close()

    def cpu(self) -> float:
        """Return the CPU seconds used so far by the daemon's processes."""
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICK

    def settled_cpu(self) -> float:
        """Return the CPU seconds used when the daemon has come to rest."""
        last = self.cpu()
        for _ in range(100):
            time.sleep(0.2)
            now = self.cpu()
            if now - last <= 0.02:
                return now
            last = now
        return last

    def peak(self) -> float:
        """Return the peak resident memory of the daemon's processes, in MB."""
        size = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    size += int(line.split()[1])
        return size / 1024

    def pids(self) -> list[int]:
        inside = os.fstat(self.ns.fd).st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if os.stat(entry / "ns/net").st_ino == inside and (entry / "comm").read_text() not in _BYSTANDERS:
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    @abstractmethod
    def _start(self) -> None:
        """Start the daemon, with both uplinks as its peers."""

    def _run(self, *argv: str, **options: Any) -> None:
        with (self.directory / "output").open("wb") as log:
            process = subprocess.Popen(
                self.ns.command(*argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
            )
        self._stack.callback(_end, process)


class Podroute(Router):
    name = "podroute"
    protocol = 201
    environment: Mapping[str, str] = MappingProxyType({})

    def _start(self) -> None:
        peers = {
            f"peer{number}": {
                "address": peer_address(self.family, number),
                "as": self.asns[number],
                "passive": True,
                "families": ["ipv4" if self.family == 4 else "ipv6"],
                "import": "accept",
                "export": "reject",
            }
            for number in (0, 1)
        }
        config = {
            "apiVersion": "podroute/v1",
            "node": {"name": "bench", "as": ROUTER_AS, "routerId": "192.0.2.1"},
            "stateDir": str(self.directory / "state"),
            "store": f"sqlite://{self.directory}/store.db",
            "api": {"socket": str(self.directory / "api.sock")},
            "cni": {key: str(self.directory / key) for key in ("socket", "binDir", "confDir")},
            "peers": peers,
        }
        file = self.directory / "podroute.yaml"
        file.write_text(yaml.safe_dump(config))
        command = (sys.executable, "-c", "from agent.cli import main; main()", "agent", "--config", str(file))
        self._run(*command, env={**os.environ, "PYTHONPATH": str(_TREE), **self.environment})


class PlainPodroute(Podroute):
    """The same, nothing of it compiled."""

    name = "podroute, plain Python"
    environment = MappingProxyType({SWITCH: "1"})


class Bird(Router):
    name = "BIRD"
    protocol = 12

    def _start(self) -> None:
        channel = f"ipv{self.family}"
        # Internal sessions are multihop unless said otherwise, and their next hops recursive.
        direct, gateway = ("direct; ", "gateway direct; ") if self.asns[0] == ROUTER_AS else ("", "")
        lines = [
            "router id 192.0.2.1;",
            f'log "{self.directory}/bird.log" all;',
            "protocol device {}",
            "protocol direct { ipv4; ipv6; }",
            f"protocol kernel {{ merge paths on; {channel} {{ import none; export where source = RTS_BGP; }}; }}",
        ]
        for number in (0, 1):
            lines.append(
                f"protocol bgp peer{number} {{ local {own_address(self.family, number)} as {ROUTER_AS}; "
                f"neighbor {peer_address(self.family, number)} as {self.asns[number]}; {direct}passive on; "
                f"{channel} {{ {gateway}import all; export none; }}; }}"
            )
        file = self.directory / "bird.conf"
        file.write_text("\n".join(lines) + "\n")
        self._run("bird", "-f", "-c", str(file), "-s", str(self.directory / "ctl"), "-P", str(self.directory / "pid"))


class FrrRouter(Router):
    name = "FRR"
    protocol = 186

    def _start(self) -> None:
        af = f"ipv{self.family} unicast"
        lines = [
            f"router bgp {ROUTER_AS}",
            "bgp router-id 192.0.2.1",
            "no bgp ebgp-requires-policy",
            "no bgp default ipv4-unicast",
            "bgp bestpath as-path multipath-relax",
        ]
        activated = [f"address-family {af}", "maximum-paths 64"]
        for number in (0, 1):
            peer = peer_address(self.family, number)
            lines += [f"neighbor {peer} remote-as {self.asns[number]}", f"neighbor {peer} passive"]
            activated += [f"neighbor {peer} activate", f"neighbor {peer} route-map none out"]
        config = [*lines, *activated, "exit-address-family", "exit", "route-map none deny 10", "exit"]
        router = Frr(self.ns, "\n".join(config), options={"zebra": ("-s", str(90 << 20))})
        self._stack.callback(router.close)


ROUTERS: tuple[type[Router], ...] = (Podroute, Bird, FrrRouter)
_BYSTANDERS = ("sh\n", "sleep\n", "nsenter\n", "unshare\n")


@contextmanager
def running(make: Callable[[], Router], *feeders: int) -> Iterator[Router]:
    """Start a router with sessions to these feeders."""
    router = make()
    try:
        for number in feeders:
            router.feeders[number].connect()
        yield router
    finally:
        router.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
