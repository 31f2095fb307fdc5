"""A runtime's call, parsed and validated (CNI 1.1.0, sections 2 and 3)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any, Final

from cni.errors import CniError, Code
from cni.hooks import Handle
from cni.wire import Message

VERSIONS: Final = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST: Final = "1.1.0"
PLUGIN: Final = "podroute"
"""``type`` in configurations."""

_SINCE = {
    "ADD": "0.3.1",
    "DEL": "0.3.1",
    "CHECK": "0.4.0",
    "GC": "1.1.0",
    "STATUS": "1.1.0",
    "VERSION": "0.3.1",
}
_NEEDS = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_MAC = re.compile(r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")


@dataclass(frozen=True, slots=True)
class Request:
    verb: str
    version: str
    """cniVersion of the configuration, the one to answer in."""
    network: str
    handle: Handle
    """Empty container id and interface name for GC, STATUS and VERSION."""
    netns: str = ""
    """CNI_NETNS as given, for people and results; podroute enters by descriptor."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """CNI_ARGS."""
    mtu: int | None = None
    """None: the agent's setting."""
    addresses: tuple[str, ...] = ()
    """Asked for by the runtime: capability ``ips``, ``args.cni.ips`` or ``IP`` in CNI_ARGS."""
    mac: bytes | None = None
    """Asked for by the runtime: capability ``mac``, ``args.cni.mac`` or ``MAC`` in CNI_ARGS."""
    dns: Mapping[str, Any] = field(default_factory=dict)
    previous: Mapping[str, Any] | None = None
    """prevResult."""
    plugin: str = PLUGIN
    """``type`` of the configuration."""
    delegated: bool = False
    """Another main plugin asks for addresses only: ``ipam.type`` is podroute, ``type`` is not."""
    pools: tuple[str, ...] = ()
    """``ipam.pools``: names of pools to take addresses from."""
    valid: frozenset[tuple[str, str]] = frozenset()
    """GC: (container id, interface name) of the attachments to keep."""


def version_of(stdin: bytes) -> str:
    """Return the version in which to answer, also for a call that is otherwise wrong."""
    try:
        version = json.loads(stdin)["cniVersion"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return LATEST
    return version if version in VERSIONS else LATEST


def parse(message: Message) -> Request:
    """Return the call. Raises CniError with the codes 1, 4, 6 and 7 of the specification."""
    environment = message.environment
    verb = environment.get("CNI_COMMAND", "")
    if verb not in _SINCE:
        raise CniError(Code.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND {verb!r}", f"known: {', '.join(_SINCE)}")
    missing = [name for name in _NEEDS.get(verb, ()) if not environment.get(name)]
    if missing:
        raise CniError(Code.INVALID_ENVIRONMENT, f"{verb} needs {', '.join(missing)} in the environment")
    container, ifname = "", ""
    if verb in _NEEDS:
        container, ifname = environment["CNI_CONTAINERID"], environment["CNI_IFNAME"]
        _check_container(container)
        _check_ifname(ifname)
    arguments = _arguments(environment.get("CNI_ARGS", ""))

    config = _config(message.stdin)
    version = _version(config, verb)
    if verb == "VERSION":
        return Request(verb, version, "", Handle("", "", ""))
    network = _network(config)
    runtime = _object(config, "runtimeConfig")
    asked = _object(_object(config, "args"), "cni")
    ipam = _object(config, "ipam")
    plugin = str(config.get("type", ""))
    previous = config.get("prevResult")
    if previous is not None and not isinstance(previous, dict):
        raise CniError(Code.INVALID_CONFIGURATION, "prevResult is not an object")
    return Request(
        verb=verb,
        version=version,
        network=network,
        handle=Handle(sys.intern(network), container, sys.intern(ifname)),  # a node's pods share these
        netns=environment.get("CNI_NETNS", ""),
        arguments=arguments,
        mtu=_mtu(config.get("mtu", "auto")),
        addresses=_addresses(runtime.get("ips") or asked.get("ips") or _split(arguments.get("IP", ""))),
        mac=_mac(runtime.get("mac") or asked.get("mac") or arguments.get("MAC", "")),
        dns=_dns(config, runtime),
        previous=previous,
        plugin=plugin,
        delegated=ipam.get("type") == PLUGIN and plugin != PLUGIN,
        pools=_pools(ipam.get("pools")),
        valid=_attachments(config) if verb == "GC" else frozenset(),
    )


def _config(stdin: bytes) -> dict[str, Any]:
    try:
        config = json.loads(stdin)
    except ValueError as error:
        raise CniError(Code.DECODING_FAILURE, "the configuration on standard input is not JSON", str(error)) from None
    except RecursionError:
        raise CniError(Code.DECODING_FAILURE, "the configuration on standard input is nested too deeply") from None
    if not isinstance(config, dict):
        raise CniError(Code.DECODING_FAILURE, "the configuration on standard input is not a JSON object")
    return config


def _version(config: dict[str, Any], verb: str) -> str:
    version = config.get("cniVersion", "0.1.0")
    if version not in VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION, f"cniVersion {version!r} is not supported", f"supported: {', '.join(VERSIONS)}"
        )
    if VERSIONS.index(version) < VERSIONS.index(_SINCE[verb]):
        raise CniError(Code.INCOMPATIBLE_VERSION, f"{verb} does not exist in cniVersion {version}")
    return str(version)


def _network(config: dict[str, Any]) -> str:
    name = config.get("name")
    if not name:
        raise CniError(Code.INVALID_CONFIGURATION, "the configuration has no network name", "set `name`")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CniError(
            Code.INVALID_CONFIGURATION,
            f"network name {name!r}",
            "letters, digits, `_`, `.` and `-` are allowed, a letter or digit first",
        )
    return name


def _check_container(container: str) -> None:
    if not _NAME.fullmatch(container):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID {container!r}",
            "letters, digits, `_`, `.` and `-` are allowed, a letter or digit first",
        )


def _check_ifname(ifname: str) -> None:
    """Also refuses ``%``, which the kernel takes for a template."""
    octets = len(ifname.encode(errors="surrogateescape"))
    if octets > 15 or ifname in (".", "..") or re.search(r"[/:%\s\0]", ifname):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME {ifname!r}",
            "an interface name has 1 to 15 octets without `/`, `:`, `%` and blanks, and is not `.` or `..`",
        )


def _arguments(text: str) -> dict[str, str]:
    arguments = {}
    for pair in filter(None, text.split(";")):
        key, found, value = pair.partition("=")
        if not found or not key:
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {pair!r} is not KEY=VALUE")
        arguments[key] = value
    return arguments


def _object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CniError(Code.INVALID_CONFIGURATION, f"`{key}` is not an object")
    return value


def _mtu(value: object) -> int | None:
    if value in ("auto", 0):  # 0 is what other plugins' configurations say for "choose"
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 68 <= value <= 65535:
        raise CniError(Code.INVALID_CONFIGURATION, f"mtu {value!r}", 'it is "auto" or a number from 68 to 65535')
    return value


def _split(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _pools(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise CniError(Code.INVALID_CONFIGURATION, f"`ipam.pools` {value!r}", "a list of pools' names is wanted")
    return tuple(value)


def _addresses(value: object) -> tuple[str, ...]:
    """Return bare addresses; a prefix length is accepted and means nothing, a pod has its address alone."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise CniError(Code.INVALID_CONFIGURATION, "the addresses asked for are not a list of texts", repr(value))
    try:
        return tuple(str(ip_interface(text).ip) for text in value)
    except ValueError as error:
        raise CniError(Code.INVALID_CONFIGURATION, "an address asked for is none", str(error)) from None


def _mac(value: object) -> bytes | None:
    if not value:
        return None
    if isinstance(value, str) and _MAC.fullmatch(value):
        mac = bytes.fromhex(value.replace(":", ""))
        if any(mac) and not mac[0] & 1:
            return mac
    raise CniError(Code.INVALID_CONFIGURATION, f"MAC address {value!r}", "a unicast one is wanted: 02:00:00:00:00:01")


def _dns(config: dict[str, Any], runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result's ``dns``: the capability's, whose keys differ, else the configuration's."""
    injected = _object(runtime, "dns")
    if injected:
        names = (("nameservers", "servers"), ("search", "searches"), ("options", "options"))
        return {key: injected[source] for key, source in names if injected.get(source)}
    configured = _object(config, "dns")
    return {key: configured[key] for key in ("nameservers", "domain", "search", "options") if configured.get(key)}


def _attachments(config: dict[str, Any]) -> frozenset[tuple[str, str]]:
    """Return what GC keeps. The key must be there, lest a runtime that forgets it have everything deleted."""
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if key in config:
            break
    else:
        raise CniError(Code.INVALID_CONFIGURATION, "GC needs `cni.dev/valid-attachments`")
    entries = config[key] or []  # libcni writes an empty list as null
    try:
        return frozenset((str(entry["containerID"]), str(entry["ifname"])) for entry in entries)
    except (TypeError, KeyError):
        raise CniError(
            Code.INVALID_CONFIGURATION, f"`{key}` is not a list of objects with containerID and ifname"
        ) from None
