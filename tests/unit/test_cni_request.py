"""Calls parsed and validated, with the specification's error codes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.errors import CniError
from cni.hooks import Handle
from cni.request import Request, parse, version_of
from cni.wire import Message

ENVIRONMENT = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0"}
CONFIG = {"cniVersion": "1.1.0", "name": "podroute", "type": "podroute"}


def call(verb: str = "ADD", environment: Mapping[str, str | None] | None = None, **config: Any) -> Request:
    return parse(message(verb, environment, config))


def collect(config: Mapping[str, Any]) -> Request:
    return parse(message("GC", {}, config))


def message(verb: str, environment: Mapping[str, str | None] | None, config: Mapping[str, Any]) -> Message:
    merged = {"CNI_COMMAND": verb, **ENVIRONMENT, **(environment or {})}
    present = {key: value for key, value in merged.items() if value is not None}
    stdin = json.dumps({key: value for key, value in {**CONFIG, **config}.items() if value is not ...})
    return Message(present, stdin.encode())


def code_of(*arguments: Any, **config: Any) -> int:
    with pytest.raises(CniError) as caught:
        call(*arguments, **config)
    return caught.value.code


def test_add() -> None:
    request = call()
    assert request == Request("ADD", "1.1.0", "podroute", Handle("podroute", "c1", "eth0"), "/run/netns/x")


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_versions(version: str) -> None:
    assert call(cniVersion=version).version == version


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "", "x", 1, None, ["1.0.0"], ...])
def test_versions_that_are_not_supported(version: object) -> None:
    assert code_of(cniVersion=version) == 1


@pytest.mark.parametrize(("verb", "first"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
def test_verbs_exist_since_a_version(verb: str, first: str) -> None:
    for version in ("0.3.1", "0.4.0", "1.0.0", "1.1.0"):
        if version < first:
            assert code_of(verb, cniVersion=version) == 1
        else:
            config: dict[str, Any] = {"cniVersion": version, "cni.dev/valid-attachments": []}
            assert parse(message(verb, {}, config)).verb == verb


@pytest.mark.parametrize("verb", ["add", "BUY", "ADD ", ""])
def test_unknown_verbs(verb: str) -> None:
    assert code_of(verb) == 4


@pytest.mark.parametrize(
    ("verb", "needed"),
    [
        ("ADD", {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}),
        ("CHECK", {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}),
        ("DEL", {"CNI_CONTAINERID", "CNI_IFNAME"}),
    ],
)
@pytest.mark.parametrize("value", [None, ""])
def test_missing_variables(verb: str, needed: set[str], value: str | None) -> None:
    for name in ENVIRONMENT:
        if name in needed:
            assert code_of(verb, {name: value}) == 4
        else:
            assert call(verb, {name: value}).verb == verb


@pytest.mark.parametrize("verb", ["GC", "STATUS", "VERSION"])
def test_verbs_that_need_no_container(verb: str) -> None:
    request = parse(message(verb, dict.fromkeys(ENVIRONMENT), {"cni.dev/valid-attachments": []}))
    assert request.handle.container_id == ""


@pytest.mark.parametrize("name", ["c1", "0", "a.b-c_d", "x" * 200])
def test_container_ids(name: str) -> None:
    assert call(environment={"CNI_CONTAINERID": name}).handle.container_id == name


@pytest.mark.parametrize("name", ["-c", ".c", "_c", "a/b", "a b", "a\n", "ä", "a:b", "\udc80"])
def test_names_that_are_none(name: str) -> None:
    assert code_of(environment={"CNI_CONTAINERID": name}) == 4
    assert code_of(name=name) == 7


@pytest.mark.parametrize("name", ["eth0", "e", "x" * 15, "...", "net\u00e9"])
def test_interface_names(name: str) -> None:
    assert call(environment={"CNI_IFNAME": name}).handle.ifname == name


@pytest.mark.parametrize("name", [".", "..", "a/b", "a:b", "a b", "a\t", "x" * 16, "é" * 8, "eth%d", "a\u00a0b"])
def test_interface_names_that_are_none(name: str) -> None:
    assert code_of(environment={"CNI_IFNAME": name}) == 4


@pytest.mark.parametrize("name", [..., None, "", 5, ["n"]])
def test_network_name_missing(name: object) -> None:
    assert code_of(name=name) == 7


def test_arguments() -> None:
    request = call(
        environment={"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web=1;IP=10.0.0.5,fd00::5;MAC=02:00:00:00:00:01;"}
    )
    assert request.arguments["K8S_POD_NAME"] == "web=1"
    assert request.addresses == ("10.0.0.5", "fd00::5")
    assert request.mac == bytes.fromhex("020000000001")


@pytest.mark.parametrize("text", ["x", "=1", "a=1;b"])
def test_arguments_that_are_none(text: str) -> None:
    assert code_of(environment={"CNI_ARGS": text}) == 4


def test_capabilities_come_before_arguments() -> None:
    request = call(
        environment={"CNI_ARGS": "IP=10.0.0.5;MAC=02:00:00:00:00:01"},
        runtimeConfig={"ips": ["10.0.0.6/24"], "mac": "02:00:00:00:00:02"},
        args={"cni": {"ips": ["10.0.0.7"], "mac": "02:00:00:00:00:03"}},
    )
    assert request.addresses == ("10.0.0.6",)
    assert request.mac == bytes.fromhex("020000000002")


def test_dns() -> None:
    configured = {"nameservers": ["192.0.2.53"], "domain": "example.net", "search": [], "other": 1}
    assert call(dns=configured).dns == {"nameservers": ["192.0.2.53"], "domain": "example.net"}
    injected = {"servers": ["192.0.2.54"], "searches": ["a.example"], "options": ["ndots:5"]}
    assert call(dns=configured, runtimeConfig={"dns": injected}).dns == {
        "nameservers": ["192.0.2.54"],
        "search": ["a.example"],
        "options": ["ndots:5"],
    }


@pytest.mark.parametrize(("mtu", "expected"), [("auto", None), (0, None), (68, 68), (9000, 9000), (..., None)])
def test_mtu(mtu: object, expected: int | None) -> None:
    assert call(mtu=mtu).mtu == expected


@pytest.mark.parametrize(
    "config",
    [
        {"mtu": "1500"},
        {"mtu": 67},
        {"mtu": 65536},
        {"mtu": True},
        {"mtu": None},
        {"runtimeConfig": []},
        {"runtimeConfig": {"ips": "10.0.0.5"}},
        {"runtimeConfig": {"ips": ["10.0.0.500"]}},
        {"runtimeConfig": {"ips": [5]}},
        {"runtimeConfig": {"mac": "02:00"}},
        {"runtimeConfig": {"mac": "01:00:00:00:00:00"}},
        {"runtimeConfig": {"mac": "00:00:00:00:00:00"}},
        {"runtimeConfig": {"mac": 5}},
        {"runtimeConfig": {"dns": 5}},
        {"args": 5},
        {"args": {"cni": 5}},
        {"dns": []},
        {"prevResult": []},
    ],
)
def test_wrong_configuration(config: dict[str, Any]) -> None:
    assert code_of(**config) == 7


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b"null", b"\xff", b'"x"', b"[" * 100000])
def test_what_is_no_configuration(stdin: bytes) -> None:
    with pytest.raises(CniError) as caught:
        parse(Message({"CNI_COMMAND": "ADD", **ENVIRONMENT}, stdin))
    assert caught.value.code == 6
    assert version_of(stdin) == "1.1.0"


def test_attachments() -> None:
    valid = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        assert collect({key: valid}).valid == {("a", "eth0"), ("b", "eth1")}
        assert collect({key: None}).valid == frozenset()
        for wrong in ([{"containerID": "a"}], "x", 5):
            with pytest.raises(CniError, match="not a list of objects"):
                collect({key: wrong})
    with pytest.raises(CniError, match="GC needs"):
        collect({})


def test_version_of() -> None:
    assert version_of(b'{"cniVersion":"0.4.0"}') == "0.4.0"
    assert version_of(b'{"cniVersion":"9"}') == "1.1.0"
    assert version_of(b'{"cniVersion":["0.4.0"]}') == "1.1.0"


JSON = st.recursive(
    st.sampled_from([None, True, 0, -1, 1 << 70, 0.5, "", "x", "10.0.0.1", "02:00:00:00:00:01"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["cni", "ips", "mac", "dns", "ifname", "containerID"]), inner, max_size=2)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["cniVersion", "name", "mtu", "dns", "args", "runtimeConfig", "prevResult", "cni.dev/valid-attachments"]
)


@given(st.sampled_from(["ADD", "DEL", "GC", "STATUS"]), st.dictionaries(KEYS, JSON, max_size=4))
def test_no_configuration_causes_another_error(verb: str, config: dict[str, Any]) -> None:
    try:
        call(verb, **config)
    except CniError as error:
        assert error.code in (1, 7)  # noqa: PT017
