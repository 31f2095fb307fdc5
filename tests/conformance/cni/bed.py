"""The plugin under test with a host and containers: network namespaces, calls, and what the host has afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labs.libcni import VERSIONS, Attachment, Network, Outcome, environment
from tests.conformance.cni.model import ConformanceError, NotApplicableError, expect
from tests.netns import Netns, output

PATIENCE = 60.0
"""Seconds for one call of a plugin."""
SOON = 10.0
"""Seconds for what a plugin does after its answer."""


@dataclass(frozen=True)
class Subject:
    """What is tested, as the command line names it."""

    plugin: Path
    config: Mapping[str, Any]
    """The plugin's object of a network configuration, with the network's ``name``."""
    path: str
    """CNI_PATH."""
    here: bool = False
    """The host is the namespace that the suite runs in: for plugins whose other half runs there already."""
    stop: Sequence[str] = ()
    start: Sequence[str] = ()
    """Commands that take the plugin's other half away and bring it back, empty where there is none."""
    pods: int = 50


@dataclass
class Pod:
    """A container: an identity and a network namespace."""

    container: str
    netns: Netns
    path: str

    @property
    def attachment(self) -> Attachment:
        return Attachment(self.container, self.path)

    def make_link(self, name: str) -> None:
        """Make an interface that has nothing to do with the plugin."""
        self.netns.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")

    def links(self) -> dict[str, dict[str, Any]]:
        """Return the interfaces by name."""
        return {link["ifname"]: link for link in json.loads(self.netns.run("ip", "-j", "address"))}

    def addresses(self, ifname: str = "eth0") -> set[str]:
        """Return an interface's addresses with prefix lengths, without link-local ones."""
        entries = self.links().get(ifname, {}).get("addr_info", [])
        return {f"{e['local']}/{e['prefixlen']}" for e in entries if e["scope"] == "global"}


@dataclass
class Bed:
    subject: Subject
    directory: Path
    """For files; empty at first."""
    host: Netns | None
    supported: Sequence[str] = VERSIONS
    """Versions that the plugin and this suite know; the runner asks the plugin first."""
    _pods: list[Pod] = field(default_factory=list)
    _added: set[tuple[str, str]] = field(default_factory=set)
    """(container, interface) of ADDs that no DEL has followed."""
    _count: int = 0

    @property
    def version(self) -> str:
        return self.supported[-1]

    @property
    def network(self) -> str:
        return str(self.subject.config["name"])

    def needs(self, version: str) -> None:
        """Raises NotApplicableError where the plugin knows nothing as new as ``version``."""
        if self.version < version:
            raise NotApplicableError(f"the plugin supports nothing newer than {self.version}")

    # Containers

    def pod(self, container: str = "") -> Pod:
        """Return a new container that no network knows; what it leaves is cleared away after the check."""
        self._count += 1
        netns = new_netns()
        pod = Pod(container or f"conformance-{os.getpid()}-{self._count}", netns, netns.path)
        self._pods.append(pod)
        return pod

    async def clear(self) -> None:
        """Delete what a check has left, and its containers."""
        pods = {pod.container: pod for pod in self._pods}
        for container, ifname in list(self._added):
            if container in pods:
                await self.call("DEL", pods[container], ifname=ifname)
        self._added.clear()
        for pod in self._pods:
            # With the namespace they would go too, but some time later, when the next check looks at the host.
            for _, name in pod.netns.call(socket.if_nameindex):
                if name != "lo":
                    pod.netns.run("ip", "link", "delete", name, check=False)
            pod.netns.close()
        self._pods.clear()

    # Calls

    async def call(
        self,
        verb: str,
        pod: Pod | None = None,
        *,
        ifname: str = "eth0",
        version: str = "",
        previous: Mapping[str, Any] | None = None,
        env: Mapping[str, str | None] | None = None,
        stdin: bytes | None = None,
        path: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Run the plugin. ``env`` and ``config`` change single values; a value of None takes a variable away."""
        attachment = Attachment(pod.container, pod.path, ifname) if pod else None
        variables: dict[str, str | None] = {**environment(verb, attachment, path or self.subject.path), **(env or {})}
        if stdin is None:
            whole = {**self.subject.config, "cniVersion": version or self.version, **(config or {})}
            if previous is not None:
                whole["prevResult"] = dict(previous)
            stdin = json.dumps({key: value for key, value in whole.items() if value is not None}).encode()
        return await self._execute(variables, stdin)

    async def _execute(self, variables: Mapping[str, str | None], stdin: bytes, plugin: Path | None = None) -> Outcome:
        """Run the plugin, or another one, to its end; note what ADD may have added."""
        key = variables.get("CNI_CONTAINERID") or "", variables.get("CNI_IFNAME") or ""
        verb = variables["CNI_COMMAND"]
        if verb == "ADD":
            self._added.add(key)
        async with self.running(variables, stdin, plugin) as process:
            try:
                async with asyncio.timeout(PATIENCE):
                    stdout, stderr = await process.communicate(stdin)
            except TimeoutError:
                raise ConformanceError(f"an answer within {PATIENCE:g} s", "none") from None
        assert process.returncode is not None
        if verb == "DEL" and plugin is None and not process.returncode:
            self._added.discard(key)
        return Outcome(process.returncode, stdout, stderr.decode(errors="replace"))

    @asynccontextmanager
    async def running(
        self, variables: Mapping[str, str | None], stdin: bytes, plugin: Path | None = None
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Start the plugin (or another one) in the host; it is killed at the end if it runs still."""
        argv = [str(plugin or self.subject.plugin)]
        process = await asyncio.create_subprocess_exec(
            *(self.host.command(*argv) if self.host else argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath), **{k: v for k, v in variables.items() if v is not None}},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                # Not process.kill(), which may collect the exit status that asyncio waits for.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with the plugins that it waits for
                await process.wait()

    async def add(self, pod: Pod, **more: Any) -> dict[str, Any]:
        """Return ADD's result. Raises ConformanceError where ADD does."""
        outcome = await self.call("ADD", pod, **more)
        expect(outcome.status == 0, "ADD succeeds", show(outcome))
        return answer(outcome)

    async def succeeds(self, verb: str, pod: Pod | None = None, **more: Any) -> None:
        """Hold that a call other than ADD succeeds, which says nothing then."""
        outcome = await self.call(verb, pod, **more)
        expect(outcome.status == 0, f"{verb} succeeds", show(outcome))
        expect(not outcome.stdout.strip(), f"{verb} prints nothing on standard output", outcome.stdout)

    async def fails(self, verb: str, pod: Pod | None = None, *, codes: Sequence[int] = (), **more: Any) -> None:
        """Hold that a call fails with an error object, and with one of ``codes`` if any are named."""
        outcome = await self.call(verb, pod, **more)
        wanted = f"code {' or '.join(map(str, codes))}" if codes else "an error"
        expect(outcome.status != 0, f"{verb} fails with {wanted}", show(outcome))
        error = answer(outcome)
        expect(isinstance(error.get("code"), int) and isinstance(error.get("msg"), str), "an error object", error)
        expect(not codes or error["code"] in codes, wanted, error)

    def chain(self, *behind: Mapping[str, Any]) -> Network:
        """Return a network whose list has others behind the plugin. Raises NotApplicableError where one is missing."""
        directories = [Path(directory) for directory in self.subject.path.split(":")]
        for plugin in behind:
            if not any((directory / plugin["type"]).exists() for directory in directories):
                raise NotApplicableError(f"no plugin {plugin['type']} in {self.subject.path}")
        first = {key: value for key, value in self.subject.config.items() if key not in ("name", "cniVersion")}

        async def execute(plugin: str, variables: Mapping[str, str], stdin: bytes) -> Outcome:
            files = [directory / plugin for directory in directories]
            file = None if plugin == first["type"] else next(file for file in files if file.exists())
            return await self._execute(variables, stdin, file)

        # Plugins of Debian 12 stop at 1.0.0.
        conflist = {"name": self.network, "cniVersion": min(self.version, "1.0.0"), "plugins": [first, *behind]}
        return Network(conflist, execute, path=self.subject.path, cache=self.directory / "results")

    # The host

    def run(self, *argv: str) -> str:
        """Run a command in the host's namespace and return its output."""
        return self.host.run(*argv) if self.host else output(*argv)

    def traces(self) -> set[str]:
        """Return the host's interfaces, and its routes to interfaces by destination: pods could leave some behind.

        A plugin may keep routes that lead nowhere (`unreachable`) for ranges that it gives addresses from.
        """
        found = {f"link {link['ifname']}" for link in json.loads(self.run("ip", "-j", "link"))}
        for family in ("-4", "-6"):
            for route in json.loads(self.run("ip", "-j", family, "route")):
                if route.get("type", "unicast") == "unicast" and not route["dst"].startswith("fe80:"):
                    found.add(f"route {route['dst']} dev {route.get('dev', '-')}")
        return found

    async def unplugged(self, pod: Pod) -> None:
        """Hold that a container has no interface, or soon will have none: a plugin may answer once it is cut off."""
        deadline = time.monotonic() + SOON
        while "eth0" in pod.links() and time.monotonic() < deadline:  # noqa: ASYNC110 -- no event tells
            await asyncio.sleep(0.05)
        expect("eth0" not in pod.links(), f"no interface in the container, within {SOON:g} s", sorted(pod.links()))

    async def same(self, before: set[str]) -> None:
        """Hold that the host is as it was, or soon will be: a plugin may answer before the last of it has gone."""
        deadline = time.monotonic() + SOON
        while (now := self.traces()) != before and time.monotonic() < deadline:  # noqa: ASYNC110 -- no event tells
            await asyncio.sleep(0.05)
        difference = f"more: {sorted(now - before)}, less: {sorted(before - now)}"
        expect(now == before, f"the host as it was before, within {SOON:g} s", difference)


def new_netns() -> Netns:
    """Return a namespace whose IPv6 addresses are usable at once: nobody else is on its links."""
    netns = Netns()
    for which in ("all", "default"):
        netns.call(lambda which=which: Path(f"/proc/sys/net/ipv6/conf/{which}/accept_dad").write_text("0"))  # type: ignore[misc]
    return netns


def answer(outcome: Outcome) -> dict[str, Any]:
    """Return what a plugin printed. Raises ConformanceError where that is not one JSON object."""
    try:
        said = json.loads(outcome.stdout)
    except ValueError:
        said = None
    expect(isinstance(said, dict), "one JSON object on standard output", show(outcome))
    return dict(said)


def show(outcome: Outcome) -> str:
    said = outcome.stdout.decode(errors="replace").strip() or outcome.stderr.strip() or "nothing printed"
    return f"exit status {outcome.status}, {' '.join(said.split())}"
