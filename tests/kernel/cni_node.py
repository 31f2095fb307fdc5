"""A node as the CNI tests see it: a host namespace, the agent's CNI server, the installed plugin, a runtime's calls."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from cni.hooks import AddressError, Assignment, Attachment, Handle
from cni.install import InstallSettings, install
from cni.podnet import PodNetwork
from cni.server import CniServer
from config import prefix
from config.prefix import BITS, Family
from tests.netns import Netns

INTERPRETER = "/usr/bin/python3"


@dataclass(frozen=True)
class Given:
    family: Family
    address: str

    @property
    def prefix(self) -> bytes:
        return prefix.of_address(self.address)[1]

    @property
    def block(self) -> bytes:
        return prefix.make(self.family, int(ip_address(self.address)), BITS[self.family] - 8)


class Ledger:
    """Addresses in memory, and in a file if given one: one per family, never the same twice at a time."""

    def __init__(self, families: Sequence[Family] = (4, 6), *, file: Path | None = None, size: int = 200) -> None:
        self.families = families
        self.file = file
        self.size = size
        self.trouble: AddressError | None = None
        self.hangs = False
        self.held: dict[Handle, Attachment] = {}
        if file and file.exists():
            for handle, addresses, attributes in json.loads(file.read_text()):
                given = [Given(*prefix.of_address(address)[:1], address) for address in addresses]
                self.held[Handle(*handle)] = Attachment(Handle(*handle), given, attributes)

    async def allocate(
        self,
        handle: Handle,
        *,
        addresses: Sequence[str],
        attributes: Mapping[str, Any],
        pools: Sequence[str] = (),
        families: Collection[Family] | None = None,
    ) -> Sequence[Assignment]:
        if self.hangs:
            await asyncio.Event().wait()
        if handle not in self.held:
            given = [Given(*prefix.of_address(a)[:1], a) for a in addresses] or self._free()
            if families is not None:
                given = [one for one in given if one.family in families or one.address in addresses]
            for held in self.held.values():
                if taken := {g.address for g in given} & {a.address for a in held.assignments}:
                    raise AddressError(f"{min(taken)} is in use by {held.handle}", retry=False)
            self.held[handle] = Attachment(handle, given, attributes)
        self.held[handle] = Attachment(handle, self.held[handle].assignments, attributes)
        self._save()
        return self.held[handle].assignments

    def _free(self) -> list[Given]:
        taken = {assignment.address for held in self.held.values() for assignment in held.assignments}
        for number in range(1, self.size + 1):
            found = [Given(4, f"10.64.0.{number}")] if 4 in self.families else []
            found += [Given(6, f"fd00:64::{number:x}")] if 6 in self.families else []
            if not taken & {given.address for given in found}:
                return found
        raise AddressError("10.64.0.0/24 is full", retry=False)

    async def release(self, handle: Handle) -> Sequence[Assignment]:
        held = self.held.pop(handle, None)
        self._save()
        return held.assignments if held else ()

    async def lookup(self, handle: Handle) -> Attachment | None:
        if self.trouble:
            raise self.trouble
        return self.held.get(handle)

    async def attachments(self) -> Sequence[Attachment]:
        return list(self.held.values())

    def _save(self) -> None:
        if self.file:
            rows = [(h, [a.address for a in held.assignments], dict(held.attributes)) for h, held in self.held.items()]
            hidden = self.file.with_suffix(".new")
            hidden.write_text(json.dumps(rows))
            hidden.rename(self.file)


class Hooks:
    def __init__(self) -> None:
        self.pods: dict[Handle, str] = {}
        self.restored: list[Handle] = []
        self.trouble: tuple[int, str] | None = None
        self.ways: list[str] = []

    async def pod_added(
        self, handle: Handle, assignments: Sequence[Assignment], host_ifname: str, *, restored: bool
    ) -> None:
        self.pods[handle] = host_ifname
        if restored:
            self.restored.append(handle)

    async def pod_removed(self, handle: Handle, assignments: Sequence[Assignment], host_ifname: str) -> None:
        self.pods.pop(handle, None)

    def bridged(self, assignments: Sequence[Assignment]) -> None:
        pass

    async def advertised(self, assignments: Sequence[Assignment]) -> None:
        pass

    def ready(self, pools: Sequence[str]) -> tuple[int, str] | None:
        return self.trouble

    def uplinks(self) -> Sequence[str]:
        return self.ways


class Outcome(NamedTuple):
    status: int
    stdout: bytes
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def addresses(self) -> list[str]:
        """Of a successful ADD."""
        assert self.status == 0, self
        return [ip["address"].partition("/")[0] for ip in self.json["ips"]]


class Node:
    def __init__(self, directory: Path, host: Netns, *, ledger: Ledger | None = None) -> None:
        self.directory = directory
        self.host = host
        self.ledger = ledger or Ledger()
        self.hooks = Hooks()
        self.network = PodNetwork()
        self.installed = InstallSettings(
            directory / "run" / "cni.sock", directory / "notes", directory / "bin", directory / "net.d"
        )
        self.server: CniServer | None = None
        install(self.installed, interpreter=INTERPRETER, plugin="python")  # compiling takes half a second
        host.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
        host.run("ip", "link", "add", "uplink", "mtu", "1400", "type", "veth", "peer", "name", "far", "mtu", "1400")
        host.run("ip", "link", "set", "uplink", "up")
        host.run("ip", "link", "set", "far", "up")
        host.run("ip", "address", "add", "192.0.2.1/24", "dev", "uplink")
        host.run("ip", "address", "add", "2001:db8::1/64", "dev", "uplink", "nodad")

    async def start(self) -> None:
        self.server = CniServer(
            self.installed.socket,
            self.ledger,
            self.hooks,
            notes=self.installed.notes,
            network=self.network,
            host=self.host.fd,
        )
        await self.server.start()

    async def stop(self) -> None:
        if self.server:
            await self.server.stop()
            self.server = None

    async def call(
        self,
        verb: str,
        container: str = "c1",
        netns: str = "",
        *,
        ifname: str = "eth0",
        network: str = "podroute",
        version: str = "1.1.0",
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        user: int | None = None,
        also: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> Outcome:
        """Run the plugin as a runtime does."""
        environment = {"PATH": "/usr/bin:/bin", "CNI_COMMAND": verb, "CNI_PATH": str(self.installed.bin_dir)}
        environment |= {"CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifname}
        environment |= env or {}
        if stdin is None:
            stdin = json.dumps(
                {"cniVersion": version, "name": network, "type": "podroute", **config, **(also or {})}
            ).encode()
        process = await asyncio.create_subprocess_exec(
            str(self.installed.binary),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={key: value for key, value in environment.items() if value},
            user=user,
        )
        stdout, stderr = await process.communicate(stdin)
        assert process.returncode is not None
        return Outcome(process.returncode, stdout, stderr.decode())

    async def add(self, container: str, pod: Netns, **more: Any) -> Outcome:
        return await self.call("ADD", container, pod.path, **more)

    async def delete(self, container: str, pod: Netns | None = None, **more: Any) -> Outcome:
        return await self.call("DEL", container, pod.path if pod else "", **more)

    async def settled(self) -> None:
        """Wait for deletions that were answered for and are still under way."""
        if self.server:
            await self.server.settled()

    async def remains(self) -> list[str]:
        """Return what pods have left once deletions are through."""
        await self.settled()
        return self.traces()

    def traces(self) -> list[str]:
        """Return what pods have left in the host's kernel and in the ledger."""
        found = [line for line in self.host.run("ip", "-o", "link").splitlines() if ": pr" in line]
        for family in ("-4", "-6"):
            found += self.host.run("ip", family, "route", "show", "table", "all", "proto", "201").splitlines()
            found += self.host.run("ip", family, "neigh", "show", "nud", "permanent").splitlines()
        found += [str(handle) for handle in self.ledger.held]
        found += [f"hook: {handle}" for handle in self.hooks.pods]
        return found


def pings(source: Netns, *addresses: str) -> bool:
    """Tell whether every address answers a single packet."""
    return all("bytes from" in source.run("ping", "-c1", "-W5", a, check=False) for a in addresses)


@contextmanager
def open_descriptors() -> Iterator[None]:
    """Hold that a block leaves as many descriptors open as it found; what other tests have left goes before."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
