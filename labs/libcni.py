"""A runtime's half of CNI, as the library that runtimes share does it (CNI 1.1.0, section 3).

Plugins of a list run in order for ADD and CHECK, in reverse for DEL; each of an ADD sees the result of the one before;
DEL and CHECK see the final result of ADD, which is kept in files until DEL has succeeded; the files are those that a
runtime writes and reads, so that one's attachments can be worked off by the other. Capability arguments go only
to plugins that declare them.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
CACHE = "var/lib/cni/results"
"""Where runtimes keep results, below the root directory."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a plugin's execution ended."""

    status: int
    stdout: bytes
    stderr: str


class Execute(Protocol):
    """Executes a plugin: its type, the environment's CNI_* variables, standard input."""

    async def __call__(self, plugin: str, environment: Mapping[str, str], stdin: bytes, /) -> Outcome: ...


class PluginError(Exception):
    """A plugin refused. ``code`` is the specification's, 0 where it did not say."""

    def __init__(self, verb: str, plugin: str, outcome: Outcome) -> None:
        try:
            said = json.loads(outcome.stdout)
            self.code, text = int(said["code"]), f"{said['msg']}: {said.get('details', '')}".rstrip(": ")
        except (ValueError, KeyError, TypeError):
            self.code, text = 0, (outcome.stdout.decode(errors="replace") + outcome.stderr).strip()
        super().__init__(f"{verb} by {plugin} failed with code {self.code}: {text}")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container's interface in a network."""

    container: str
    netns: str
    ifname: str = "eth0"
    args: str = ""
    """CNI_ARGS."""
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    """Capability arguments, by capability."""

    @property
    def key(self) -> tuple[str, str]:
        return self.container, self.ifname


class Network:
    """One network configuration list, and the containers in it.

    ``latest`` is the newest specification that this runtime knows: of a list's ``cniVersions`` it takes the newest up
    to there. ``path`` becomes CNI_PATH; ``cache`` is the directory for results.
    """

    def __init__(
        self, conflist: Mapping[str, Any], execute: Execute, *, path: str, cache: Path, latest: str = VERSIONS[-1]
    ) -> None:
        self.name = str(conflist["name"])
        self.version = _choose_version(conflist, latest)
        self.plugins: Sequence[Mapping[str, Any]] = conflist["plugins"]
        self._conflist = conflist
        self._execute = execute
        self._path = path
        self._cache = cache

    async def add(self, attachment: Attachment) -> dict[str, Any]:
        """Return the last plugin's result. Raises PluginError; then the caller deletes what there may be."""
        result: dict[str, Any] | None = None
        for plugin in self.plugins:
            result = await self._call("ADD", plugin, attachment, previous=result)
        assert result is not None
        self._keep(attachment, result)
        return result

    async def check(self, attachment: Attachment) -> None:
        """Raises PluginError."""
        if self._conflist.get("disableCheck") or self.version < "0.4.0":
            return
        for plugin in self.plugins:
            await self._call("CHECK", plugin, attachment, previous=self.result(attachment))

    async def delete(self, attachment: Attachment) -> None:
        """Raises PluginError; the result is kept then, for another attempt."""
        previous = self.result(attachment) if self.version >= "0.4.0" else None
        for plugin in reversed(self.plugins):
            await self._call("DEL", plugin, attachment, previous=previous)
        self._file(attachment).unlink(missing_ok=True)

    async def collect(self, valid: Iterable[Attachment]) -> None:
        """GC: delete what is kept here and not valid, then tell the plugins what is. Raises ExceptionGroup, last."""
        keep = [attachment.key for attachment in valid]
        failed: list[Exception] = []
        for attachment in self.attachments():
            if attachment.key not in keep:
                try:
                    await self.delete(attachment)
                except PluginError as error:
                    failed.append(error)
        if self.version >= "1.1.0" and not self._conflist.get("disableGC"):
            listed = [{"containerID": container, "ifname": ifname} for container, ifname in keep]
            more = {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}
            for plugin in self.plugins:
                try:
                    await self._call("GC", plugin, None, more=more)
                except PluginError as error:
                    failed.append(error)
        if failed:
            raise ExceptionGroup(f"GC of {self.name}", failed)

    async def status(self) -> None:
        """Raises PluginError with code 50 or 51 where a plugin cannot ADD."""
        if self.version >= "1.1.0":
            for plugin in self.plugins:
                await self._call("STATUS", plugin, None)

    def result(self, attachment: Attachment) -> dict[str, Any] | None:
        """Return the result that is kept of an ADD."""
        try:
            kept: dict[str, Any] = json.loads(self._file(attachment).read_text())["result"]
        except FileNotFoundError:
            return None
        return kept

    def attachments(self) -> list[Attachment]:
        """Return this network's attachments of which results are kept."""
        found = []
        for file in sorted(self._cache.glob(f"{self.name}-*")):
            kept = json.loads(file.read_text())
            if kept["networkName"] == self.name:
                args = ";".join("=".join(pair) for pair in kept.get("cniArgs", ()))
                capabilities = kept.get("capabilityArgs", {})
                found.append(Attachment(kept["containerId"], kept.get("netns", ""), kept["ifName"], args, capabilities))
        return found

    async def _call(
        self,
        verb: str,
        plugin: Mapping[str, Any],
        attachment: Attachment | None,
        *,
        previous: Mapping[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        config = {**plugin, "name": self.name, "cniVersion": self.version, **(more or {})}
        if previous is not None:
            config["prevResult"] = {**previous, "cniVersion": self.version}
        declared = plugin.get("capabilities", {})
        given = attachment.capabilities if attachment else {}
        runtime = {name: value for name, value in given.items() if declared.get(name)}
        if runtime:
            config["runtimeConfig"] = runtime
        outcome = await self._execute(
            str(plugin["type"]), environment(verb, attachment, self._path), json.dumps(config).encode()
        )
        if outcome.status:
            raise PluginError(verb, str(plugin["type"]), outcome)
        answer: dict[str, Any] = json.loads(outcome.stdout) if verb == "ADD" else {}
        return answer

    def _file(self, attachment: Attachment) -> Path:
        return self._cache / f"{self.name}-{attachment.container}-{attachment.ifname}"

    def _keep(self, attachment: Attachment, result: Mapping[str, Any]) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        kept = {
            "kind": "cniCacheV1",
            "containerId": attachment.container,
            "config": b64encode(json.dumps(dict(self._conflist)).encode()).decode(),
            "ifName": attachment.ifname,
            "networkName": self.name,
            "netns": attachment.netns,
            "cniArgs": [pair.split("=", 1) for pair in filter(None, attachment.args.split(";"))],
            "capabilityArgs": dict(attachment.capabilities),
            "result": dict(result),
        }
        self._file(attachment).write_text(json.dumps(kept))


def environment(verb: str, attachment: Attachment | None, path: str) -> dict[str, str]:
    """Return the variables of a call; all are set always, and empty where they mean nothing."""
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": attachment.container if attachment else "",
        "CNI_NETNS": attachment.netns if attachment else "",
        "CNI_IFNAME": attachment.ifname if attachment else "",
        "CNI_ARGS": attachment.args if attachment else "",
        "CNI_PATH": path,
    }


def _choose_version(conflist: Mapping[str, Any], latest: str) -> str:
    offered = [str(version) for version in conflist.get("cniVersions", ()) if version <= latest]
    return max([*offered, str(conflist.get("cniVersion", "0.1.0"))])
