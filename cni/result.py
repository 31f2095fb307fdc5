"""Answers in exactly the version that was asked for (CNI 1.1.0, section 5; conversions of the earlier versions)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cni.errors import CniError
from cni.request import LATEST, VERSIONS
from config.prefix import Family


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    mac: str
    mtu: int
    sandbox: str = ""
    """CNI_NETNS of the pod's end, empty for the host's."""


@dataclass(frozen=True, slots=True)
class Ip:
    family: Family
    address: str
    """With prefix length, ``10.64.0.5/32``."""
    gateway: str
    interface: int | None
    """Index into the result's interfaces; None where another plugin makes them."""


@dataclass(frozen=True, slots=True)
class Route:
    destination: str
    gateway: str
    """Empty: the address's."""


@dataclass(frozen=True, slots=True)
class Result:
    interfaces: Sequence[Interface]
    ips: Sequence[Ip]
    routes: Sequence[Route]
    dns: Mapping[str, Any] = field(default_factory=dict)


def encode_result(result: Result, version: str) -> bytes:
    """Return what ADD prints: without the fields that came later, with those that went."""
    interfaces: list[dict[str, Any]] = []
    for interface in result.interfaces:
        entry: dict[str, Any] = {"name": interface.name, "mac": interface.mac}
        if version >= "1.1.0":
            entry["mtu"] = interface.mtu
        if interface.sandbox:
            entry["sandbox"] = interface.sandbox
        interfaces.append(entry)
    ips: list[dict[str, Any]] = []
    for ip in result.ips:
        entry = {"address": ip.address}
        if ip.gateway:
            entry["gateway"] = ip.gateway
        if ip.interface is not None:
            entry["interface"] = ip.interface
        if version < "1.0.0":
            entry["version"] = str(ip.family)
        ips.append(entry)
    routes = [{"dst": r.destination, "gw": r.gateway} if r.gateway else {"dst": r.destination} for r in result.routes]
    shown: dict[str, Any] = {"cniVersion": version}
    if interfaces:
        shown["interfaces"] = interfaces
    return _json({**shown, "ips": ips, "routes": routes, "dns": dict(result.dns)})


def encode_error(error: CniError, version: str) -> bytes:
    shown = {"cniVersion": version, "code": error.code, "msg": error.message}
    if error.details:
        shown["details"] = error.details
    return _json(shown)


def encode_versions() -> bytes:
    return _json({"cniVersion": LATEST, "supportedVersions": list(VERSIONS)})


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
