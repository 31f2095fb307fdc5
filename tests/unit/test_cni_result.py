"""Answers validated against what each version of the specification allows, no more and no less."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from cni import plugin
from cni.errors import CniError, Code
from cni.result import Interface, Ip, Result, Route, encode_error, encode_result, encode_versions

RESULT = Result(
    interfaces=(
        Interface("pr0123456789abc", "02:70:72:68:6f:73", 1500),
        Interface("eth0", "0a:00:00:00:00:01", 1500, "/run/netns/x"),
    ),
    ips=(Ip(4, "10.64.0.5/32", "169.254.1.1", 1), Ip(6, "fd00::5/128", "fe80::1", 1)),
    routes=(Route("0.0.0.0/0", "169.254.1.1"), Route("::/0", "fe80::1")),
    dns={"nameservers": ["192.0.2.53"]},
)
TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
NUMBER = {"type": "integer"}


def closed(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def schema(version: str) -> dict[str, Any]:
    """The Success object, sections "Result" of the specification's versions."""
    interface_more: dict[str, Any] = {"sandbox": TEXT}
    route_more: dict[str, Any] = {"gw": TEXT}
    ip: dict[str, Any] = {"address": TEXT}
    if version >= "1.1.0":
        interface_more |= {"mtu": NUMBER, "socketPath": TEXT, "pciID": TEXT}
        route_more |= {"mtu": NUMBER, "advmss": NUMBER, "priority": NUMBER, "table": NUMBER, "scope": NUMBER}
    if version < "1.0.0":
        ip |= {"version": {"enum": ["4", "6"]}}
    lists = {
        "interfaces": {"type": "array", "items": closed({"name": TEXT, "mac": TEXT}, interface_more)},
        "ips": {"type": "array", "items": closed(ip, {"gateway": TEXT, "interface": NUMBER})},
        "routes": {"type": "array", "items": closed({"dst": TEXT}, route_more)},
        "dns": closed({}, {"nameservers": TEXTS, "domain": TEXT, "search": TEXTS, "options": TEXTS}),
    }
    return closed({"cniVersion": {"const": version}, **lists})


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_result(version: str) -> None:
    output = encode_result(RESULT, version)
    result = json.loads(output)
    jsonschema.validate(result, schema(version))
    assert output.endswith(b"\n")
    for ip in result["ips"]:
        assert result["interfaces"][ip["interface"]]["sandbox"] == "/run/netns/x"


def test_fields_by_version() -> None:
    results = {v: json.loads(encode_result(RESULT, v)) for v in ("0.3.1", "0.4.0", "1.0.0", "1.1.0")}
    assert {v for v, result in results.items() if "mtu" in result["interfaces"][0]} == {"1.1.0"}
    assert {v for v, result in results.items() if "version" in result["ips"][0]} == {"0.3.1", "0.4.0"}
    assert [ip["version"] for ip in results["0.4.0"]["ips"]] == ["4", "6"]


@pytest.mark.parametrize("version", ["0.3.1", "1.1.0"])
def test_error(version: str) -> None:
    error = json.loads(encode_error(CniError(Code.TRY_AGAIN_LATER, "no address", "all taken"), version))
    assert error == {"cniVersion": version, "code": 11, "msg": "no address", "details": "all taken"}


def test_error_without_details_and_with_octets_that_are_no_text() -> None:
    assert json.loads(encode_error(CniError(4, "name '\udc80'"), "1.1.0"))["msg"] == "name '\udc80'"
    assert b"details" not in encode_error(CniError(4, "x"), "1.1.0")


def test_plugin_and_agent_support_the_same_versions() -> None:
    versions = json.loads(encode_versions())
    assert versions == {"cniVersion": plugin.CURRENT, "supportedVersions": json.loads(plugin.SUPPORTED)}
