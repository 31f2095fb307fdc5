"""The scalar types of the schema: each takes what an operator writes, and says what would be right where it cannot."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

from config.communities import WELL_KNOWN_COMMUNITIES, community_octets
from config.problems import shown
from config.remote_as import RemoteAs

FamilyName = Literal["ipv4", "ipv6"]

MAX_SOCKET_PATH = 107
"""Octets of a Unix socket's path (``sun_path`` less its end, unix(7))."""

RESERVED_NETWORK = "-"
"""Stands for the name of a network, and is none: its handles keep addresses of a block from containers."""

GATEWAY = "gateway"
"""What the address of a block that another main plugin's links have is kept for."""

_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_KEY = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,251}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LISTEN = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<four>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
_DEVICE = re.compile(r"[^\s/:%]{1,15}")

_AS_SPAN = re.compile(r"([0-9]{1,10})-([0-9]{1,10})")
_LARGEST_AS = 4294967294
_ONE_AS = f"an AS number, 1 to {_LARGEST_AS} as one integer"
_SEVERAL_AS = f'external, internal, {_ONE_AS}, or a list of numbers and ranges such as [65011, "65020-65029"]'

# 0: RFC 7607; 23456: AS_TRANS, RFC 6793; 65535 and 4294967295: RFC 7300
_REFUSED_AS = {
    0: "0 is reserved by RFC 7607",
    23456: "23456 is AS_TRANS of RFC 6793",
    65535: "65535 is reserved by RFC 7300",
    4294967295: "4294967295 is reserved by RFC 7300",
}


def wrong(value: object, right: str) -> PydanticCustomError:
    """Return the error ``is VALUE, must be RIGHT``."""
    return refused(f"is {shown(value)}, must be {right}")


def refused(text: str) -> PydanticCustomError:
    return PydanticCustomError("podroute", "{text}", {"text": text})


def address_with_device(text: str) -> tuple[IPv4Address | IPv6Address, str]:
    """Return the address and interface of ``"10.1.1.1"`` or ``"fe80::1%eth0"``; ValueError for anything else."""
    bare, percent, device = text.partition("%")
    if percent and not _DEVICE.fullmatch(device):
        raise ValueError(f"{text!r} does not name an interface")
    return ip_address(bare), device


def parse_listen(text: str) -> tuple[str, int]:
    """Return ``(address, port)`` of ``"0.0.0.0:179"`` or ``"[::]:179"``; ValueError for anything else."""
    match = _LISTEN.fullmatch(text)
    if not match or not 1 <= int(match["port"]) <= 65535:
        raise ValueError(f"{text!r} is not address:port")
    host = IPv6Address(match["six"]) if match["six"] else IPv4Address(match["four"])
    return str(host), int(match["port"])


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Tell whether a node with these labels is selected: every label must have its value; no label: all nodes."""
    return all(labels.get(label) == value for label, value in selector.items())


def _as_number(value: int) -> int:
    if value in _REFUSED_AS:
        raise refused(f"is {value}, must be an AS number that may be used: {_REFUSED_AS[value]}")
    return value


def _remote_as(value: Any) -> RemoteAs:
    if value in ("internal", "external"):
        return RemoteAs(kind=value)
    if isinstance(value, list) and value:
        return RemoteAs(tuple(sorted(_as_span(item) for item in value)))
    if isinstance(value, int) and not isinstance(value, bool):
        return RemoteAs.of(_as_in(value, value))
    raise wrong(value, _SEVERAL_AS if isinstance(value, list) else _ONE_AS)


def _as_span(item: Any) -> tuple[int, int]:
    found = _AS_SPAN.fullmatch(item) if isinstance(item, str) else None
    if found:
        first, last = _as_in(int(found[1]), item), _as_in(int(found[2]), item)
        if first < last:
            return first, last
    elif isinstance(item, int) and not isinstance(item, bool):
        return _as_in(item, item), item
    raise wrong(item, 'an AS number or a range of them in quotes, "65020-65029"')


def _as_in(number: int, value: Any) -> int:
    if number in _REFUSED_AS:
        raise refused(f"is {number}, must be an AS number that may be used: {_REFUSED_AS[number]}")
    if not 1 <= number <= _LARGEST_AS:
        raise wrong(value, _ONE_AS)
    return number


def _router_id(value: Any) -> str:
    try:
        number = int(IPv4Address(value)) if isinstance(value, str) else 0
    except ValueError:
        number = 0
    if not number:
        raise wrong(value, 'four octets such as "10.1.1.11", not all zero (RFC 6286); usually the node\'s IPv4 address')
    return str(value)


def _hold_time(value: int) -> int:
    if value in (1, 2):
        raise wrong(value, "0 (no keepalives) or 3 to 65535 seconds (RFC 4271 section 4.2)")
    return value


def _prefix(value: Any) -> str:
    right = 'a prefix such as "10.64.0.0/16" or "fd00:64::/48"'
    if not isinstance(value, str) or "/" not in value:
        raise wrong(value, right)
    try:
        network = ip_network(value, strict=False)
    except ValueError:
        raise wrong(value, right) from None
    if str(network.network_address) != str(ip_address(value.partition("/")[0])):
        raise wrong(value, f'a prefix without host bits: "{network}"')
    return str(network)


def _peer_address(value: Any) -> str:
    right = 'one IPv4 or IPv6 address such as "10.1.1.1" or "fd00:1::1"'
    if not isinstance(value, str):
        raise wrong(value, right)
    try:
        address, device = address_with_device(value)
    except ValueError:
        raise wrong(value, right + '; a link-local one names its interface: "fe80::1%eth0"') from None
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        raise wrong(value, "the address of one host")
    link_local = address.version == 6 and address.is_link_local
    if link_local and not device:
        raise wrong(value, f'a link-local address with its interface: "{address}%eth0"')
    if device and not link_local:
        raise wrong(value, f'"{address}": an interface belongs to IPv6 link-local addresses only')
    return f"{address}%{device}" if device else str(address)


def _host_address(value: Any) -> str:
    found = _peer_address(value)
    if "%" in found or ip_address(found).is_loopback:
        raise wrong(value, "an address that other nodes reach, neither link-local nor of the loopback")
    return found


def _listen(value: Any) -> str:
    try:
        host, port = parse_listen(value)
    except (ValueError, TypeError):
        raise wrong(value, 'address:port such as "0.0.0.0:179" or "[::]:179"') from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _community(value: Any) -> str:
    try:
        community_octets(value)
    except (ValueError, AttributeError):
        names = ", ".join(WELL_KNOWN_COMMUNITIES)
        right = f'"65000:100" (each 0 to 65535), "4200000001:1:2" (large) or one of {names}'
        raise wrong(value, right) from None
    return str(value)


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise wrong(value, "an absolute path")
    return value


def _socket(value: Any) -> str:
    path = _path(value)
    if len(path.encode()) > MAX_SOCKET_PATH or path.endswith("/"):
        raise wrong(value, f"the path of a Unix socket, of at most {MAX_SOCKET_PATH} octets")
    return path


def _patience(value: Any) -> Any:
    if value == "never" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 86400):
        return value
    raise wrong(value, "never, or 0 to 86400 seconds")


def _mtu(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool) and 576 <= value <= 65535
    if value != "auto" and not number:
        raise wrong(value, "auto (the uplink's) or 576 to 65535 octets")
    return value


def _path_count(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 64
    if value != "all" and not number:
        raise wrong(value, "all, 1 to 64 paths to a prefix, or 0 (the best one alone, as without add-path)")
    return value


def _pattern(pattern: re.Pattern[str], right: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not isinstance(value, str):
            plain = isinstance(value, (int, float))
            raise wrong(value, f'{right}; put it in quotes: "{str(value).lower()}"' if plain else right)
        if not pattern.fullmatch(value):
            raise wrong(value, right)
        return value

    return BeforeValidator(check)


NodeName = Annotated[
    str, _pattern(_NODE_NAME, "a host name: lower-case letters, digits, - and . with a letter or digit at both ends")
]
Name = Annotated[
    str, _pattern(_NAME, "a name of up to 63 letters, digits, -, _ and . with a letter or digit at both ends")
]
LabelKey = Annotated[
    str, _pattern(_LABEL_KEY, "a label's name: letters, digits, -, _, . and / with a letter or digit at both ends")
]
LabelValue = Annotated[str, _pattern(_LABEL_VALUE, "a label's value: up to 63 letters, digits, -, _ and . as a string")]
Labels = dict[LabelKey, LabelValue]
AsNumber = Annotated[int, Field(ge=0, le=4294967295), AfterValidator(_as_number)]
RouterId = Annotated[str, BeforeValidator(_router_id)]
HoldTime = Annotated[int, Field(ge=0, le=65535), AfterValidator(_hold_time)]
Prefix = Annotated[str, BeforeValidator(_prefix)]
PeerAddress = Annotated[str, BeforeValidator(_peer_address)]
HostAddress = Annotated[str, BeforeValidator(_host_address)]
Listen = Annotated[str, BeforeValidator(_listen)]
Community = Annotated[str, BeforeValidator(_community)]
AbsolutePath = Annotated[str, BeforeValidator(_path)]
SocketPath = Annotated[str, BeforeValidator(_socket)]
Mtu = Annotated[int | Literal["auto"], BeforeValidator(_mtu)]
PathCount = Annotated[int | Literal["all"], BeforeValidator(_path_count)]
Patience = Annotated[int | Literal["never"], BeforeValidator(_patience)]
RemoteAsNumbers = Annotated[RemoteAs, PlainValidator(_remote_as), PlainSerializer(lambda value: value.written)]
