"""The runtime's half of CNI: what plugins of a list are told, in which order, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from labs.libcni import Attachment, Network, Outcome, PluginError

POD = Attachment("c1", "/run/netns/c1", args="K=V", capabilities={"mac": "02:00:00:00:00:01", "portMappings": [{}]})
FIRST = {"type": "first", "capabilities": {"mac": True, "ips": True}}
SECOND = {"type": "second", "capabilities": {"portMappings": True, "mac": False}, "own": 1}


class Call(NamedTuple):
    plugin: str
    environment: Mapping[str, str]
    config: dict[str, Any]

    @property
    def verb(self) -> str:
        return self.environment["CNI_COMMAND"]


class Plugins:
    """Plays every plugin: notes calls, answers ADD with its name, and fails where it is told to."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.failing: set[tuple[str, str]] = set()

    async def __call__(self, plugin: str, environment: Mapping[str, str], stdin: bytes) -> Outcome:
        config = json.loads(stdin)
        self.calls.append(Call(plugin, environment, config))
        verb = environment["CNI_COMMAND"]
        if (plugin, verb) in self.failing:
            return Outcome(1, b'{"cniVersion": "1.1.0", "code": 11, "msg": "later", "details": "busy"}', "")
        result = {"cniVersion": config["cniVersion"], "by": plugin}
        return Outcome(0, json.dumps(result).encode() if verb == "ADD" else b"", "")

    def order(self, verb: str) -> list[str]:
        return [call.plugin for call in self.calls if call.verb == verb]

    def last(self, verb: str) -> list[dict[str, Any]]:
        return [call.config for call in self.calls if call.verb == verb]


@pytest.fixture
def plugins() -> Plugins:
    return Plugins()


def _network(plugins: Plugins, cache: Path, latest: str = "1.1.0", **more: Any) -> Network:
    conflist = {"cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "net", "plugins": [FIRST, SECOND]}
    return Network({**conflist, **more}, plugins, path="/opt/cni/bin", cache=cache, latest=latest)


class TestAdd:
    async def test_in_order_each_with_the_result_before(self, plugins: Plugins, tmp_path: Path) -> None:
        result = await _network(plugins, tmp_path).add(POD)
        assert result == {"cniVersion": "1.1.0", "by": "second"}
        assert plugins.order("ADD") == ["first", "second"]
        one, other = plugins.last("ADD")
        assert "prevResult" not in one
        assert other["prevResult"] == {"cniVersion": "1.1.0", "by": "first"}
        assert (one["name"], one["cniVersion"], other["own"]) == ("net", "1.1.0", 1)

    async def test_capabilities_go_where_they_are_declared(self, plugins: Plugins, tmp_path: Path) -> None:
        await _network(plugins, tmp_path).add(POD)
        one, other = plugins.last("ADD")
        assert one["runtimeConfig"] == {"mac": "02:00:00:00:00:01"}
        assert other["runtimeConfig"] == {"portMappings": [{}]}

    async def test_nobody_who_asks_no_runtime_config(self, plugins: Plugins, tmp_path: Path) -> None:
        await _network(plugins, tmp_path).add(Attachment("c1", "/run/netns/c1"))
        assert all("runtimeConfig" not in config for config in plugins.last("ADD"))

    async def test_environment(self, plugins: Plugins, tmp_path: Path) -> None:
        await _network(plugins, tmp_path).add(POD)
        assert plugins.calls[0].environment == {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/run/netns/c1",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "K=V",
            "CNI_PATH": "/opt/cni/bin",
        }

    async def test_a_failure_ends_it_and_nothing_is_kept(self, plugins: Plugins, tmp_path: Path) -> None:
        plugins.failing = {("second", "ADD")}
        network = _network(plugins, tmp_path)
        with pytest.raises(PluginError, match="ADD by second failed with code 11: later: busy") as caught:
            await network.add(POD)
        assert caught.value.code == 11
        assert network.result(POD) is None


class TestDelete:
    async def test_in_reverse_with_the_final_result(self, plugins: Plugins, tmp_path: Path) -> None:
        await _network(plugins, tmp_path).add(POD)
        network = _network(plugins, tmp_path)  # as in another process of the runtime
        await network.delete(POD)
        assert plugins.order("DEL") == ["second", "first"]
        assert [config["prevResult"]["by"] for config in plugins.last("DEL")] == ["second", "second"]
        assert network.attachments() == []

    async def test_without_a_result_too(self, plugins: Plugins, tmp_path: Path) -> None:
        await _network(plugins, tmp_path).delete(POD)
        assert all("prevResult" not in config for config in plugins.last("DEL"))

    async def test_a_failure_keeps_the_result(self, plugins: Plugins, tmp_path: Path) -> None:
        network = _network(plugins, tmp_path)
        await network.add(POD)
        plugins.failing = {("first", "DEL")}
        with pytest.raises(PluginError):
            await network.delete(POD)
        assert network.result(POD) is not None
        assert network.attachments() == [POD]


class TestCheck:
    async def test_in_order_with_the_final_result(self, plugins: Plugins, tmp_path: Path) -> None:
        network = _network(plugins, tmp_path)
        await network.add(POD)
        await network.check(POD)
        assert plugins.order("CHECK") == ["first", "second"]
        assert [config["prevResult"]["by"] for config in plugins.last("CHECK")] == ["second", "second"]

    async def test_where_it_may_not(self, plugins: Plugins, tmp_path: Path) -> None:
        for network in (
            _network(plugins, tmp_path, disableCheck=True),
            _network(plugins, tmp_path, cniVersion="0.3.1", cniVersions=[]),
        ):
            await network.check(POD)
        assert plugins.calls == []


class TestUpkeep:
    async def test_gc_deletes_what_is_not_valid_and_tells_the_rest(self, plugins: Plugins, tmp_path: Path) -> None:
        network = _network(plugins, tmp_path)
        other = Attachment("c2", "/run/netns/c2")
        for attachment in (POD, other):
            await network.add(attachment)
        await network.collect([other])
        assert [call.environment["CNI_CONTAINERID"] for call in plugins.calls if call.verb == "DEL"] == ["c1", "c1"]
        assert plugins.order("GC") == ["first", "second"]
        listed = [{"containerID": "c2", "ifname": "eth0"}]
        assert [config["cni.dev/valid-attachments"] for config in plugins.last("GC")] == [listed, listed]

    async def test_gc_goes_on_past_failures(self, plugins: Plugins, tmp_path: Path) -> None:
        network = _network(plugins, tmp_path)
        await network.add(POD)
        plugins.failing = {("second", "DEL"), ("first", "GC")}
        with pytest.raises(ExceptionGroup) as caught:
            await network.collect([])
        assert len(caught.value.exceptions) == 2
        assert plugins.order("GC") == ["first", "second"]

    async def test_gc_that_is_off(self, plugins: Plugins, tmp_path: Path) -> None:
        await _network(plugins, tmp_path, disableGC=True).collect([])
        assert plugins.order("GC") == []

    async def test_status(self, plugins: Plugins, tmp_path: Path) -> None:
        await _network(plugins, tmp_path).status()
        assert plugins.order("STATUS") == ["first", "second"]
        plugins.failing = {("first", "STATUS")}
        with pytest.raises(PluginError):
            await _network(plugins, tmp_path).status()


@pytest.mark.parametrize(
    ("latest", "offered", "chosen"),
    [("1.1.0", ["1.0.0", "1.1.0"], "1.1.0"), ("1.0.0", ["1.0.0", "1.1.0"], "1.0.0"), ("1.1.0", [], "1.0.0")],
)
def test_the_newest_version_that_both_know(
    plugins: Plugins, tmp_path: Path, latest: str, offered: list[str], chosen: str
) -> None:
    assert _network(plugins, tmp_path, latest, cniVersions=offered).version == chosen
