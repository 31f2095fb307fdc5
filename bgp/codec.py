"""The adapter around exabgp, and its only importer: every message but UPDATE, to and from the data of bgp.messages.

exabgp has no library API and no stable one, so its version is pinned and asserted. It validates little and may raise
anything on crafted input: structure and meaning are checked here or before (bgp.opening), and what still escapes
becomes the BgpError that RFC 4271 section 6 has for that message.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any

import exabgp.util.dns
import exabgp.version

from bgp.framing import frame
from bgp.messages import BgpError, GracefulRestart, MessageType, Notification, Open, RouteRefresh
from bgp.notifications import describe
from bgp.opening import AFI, FAMILY_OF_AFI, UNICAST, check_open, negotiate, parse_open
from bgp.update import encode_end_of_rib
from config.prefix import Family

# The order of what follows matters. HostName asks the resolver for our full name when its module is imported; the
# environment singleton reads a file of its own choice; the logger must exist before the first message is decoded.
exabgp.util.dns.__dict__.update({"__host_name": "localhost", "__domain_name": "localdomain"})

from exabgp.bgp.message import KeepAlive, Notify
from exabgp.bgp.message import Open as ExaOpen
from exabgp.bgp.message.direction import Direction
from exabgp.bgp.message.open import ASN, HoldTime, RouterID, Version
from exabgp.bgp.message.open.capability import (
    ASN4,
    AddPath,
    Capabilities,
    Capability,
    EnhancedRouteRefresh,
    Graceful,
    MultiProtocol,
    Negotiated,
)
from exabgp.bgp.message.open.capability import NextHop as ExtendedNextHop
from exabgp.bgp.message.open.capability import RouteRefresh as RefreshCapability
from exabgp.bgp.message.open.capability.extended import ExtendedMessage
from exabgp.bgp.message.open.capability.hostname import HostName
from exabgp.bgp.message.open.capability.software import Software
from exabgp.bgp.message.refresh import RouteRefresh as ExaRefresh
from exabgp.bgp.message.update.attribute import Attribute, Attributes
from exabgp.environment import getenv
from exabgp.logger import log
from exabgp.protocol.family import _AFI, SAFI
from exabgp.protocol.resource import Resource

EXABGP_RELEASE = "5.0.15"

__all__ = [
    "KEEPALIVE",
    "attributes_text",
    "decode_notification",
    "decode_open",
    "decode_route_refresh",
    "describe",
    "encode_end_of_rib",
    "encode_notification",
    "encode_open",
    "encode_route_refresh",
    "negotiate",
]


class _BoundedCache(dict[Any, Any]):
    """exabgp remembers every AS number it has ever decoded; a peer can name four thousand million."""

    _LIMIT = 4096

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self) >= self._LIMIT:
            self.clear()
        super().__setitem__(key, value)


def _set_up() -> None:
    if exabgp.version.release != EXABGP_RELEASE:
        raise ImportError(f"podroute needs exabgp {EXABGP_RELEASE}, found {exabgp.version.release}")
    before = os.environ.get("EXABGP_ENVFILE")
    os.environ["EXABGP_ENVFILE"] = os.devnull
    try:
        log.init(getenv())
    finally:
        if before is None:
            del os.environ["EXABGP_ENVFILE"]
        else:
            os.environ["EXABGP_ENVFILE"] = before
    for level in ("debug", "info", "warning"):  # log.disable() leaves functions that refuse some of its own calls
        setattr(log, level, staticmethod(lambda *args, **kwargs: None))
    Resource.cache[ASN] = _BoundedCache(Resource.cache.get(ASN, {}))


_set_up()

_CODE = Capability.CODE
_EXA_AFI = {4: _AFI(AFI[4]), 6: _AFI(AFI[6])}
_KNOWN = frozenset(
    (
        _CODE.MULTIPROTOCOL,
        _CODE.ROUTE_REFRESH,
        _CODE.ENHANCED_ROUTE_REFRESH,
        _CODE.NEXTHOP,
        _CODE.EXTENDED_MESSAGE,
        _CODE.GRACEFUL_RESTART,
        _CODE.FOUR_BYTES_ASN,
        _CODE.ADD_PATH,
    )
)
"""Capabilities whose values exabgp decodes; a malformed one is 2/0."""

_RESTARTING, _NOTIFICATION, _FORWARDING = 0x8, 0x4, 0x80

KEEPALIVE: bytes = KeepAlive().message()


@contextmanager
def _guarded(code: int, subcode: int) -> Iterator[None]:
    """Turn whatever exabgp raises into a BgpError."""
    try:
        yield
    except BgpError:
        raise
    except Notify as error:
        text = error.data.decode(errors="replace") if isinstance(error.data, bytes) else str(error.data)
        raise BgpError(error.code, error.subcode, reason=text) from error
    except Exception as error:
        raise BgpError(code, subcode, reason=f"malformed: {type(error).__name__}: {error}") from error


def encode_open(open: Open) -> bytes:
    """Return a framed OPEN; more than 255 octets of parameters take the form of RFC 9072."""
    capabilities = Capabilities()
    if open.multiprotocol:
        families = MultiProtocol()
        families.extend((_EXA_AFI[f], SAFI.unicast) for f in sorted(open.families))
        capabilities[_CODE.MULTIPROTOCOL] = families
    if open.route_refresh:
        capabilities[_CODE.ROUTE_REFRESH] = RefreshCapability()
    if open.extended_next_hop:
        pairs = [(_EXA_AFI[p], SAFI.unicast, _EXA_AFI[n]) for p, n in sorted(open.extended_next_hop)]
        capabilities[_CODE.NEXTHOP] = ExtendedNextHop(pairs)
    if open.extended_message:
        capabilities[_CODE.EXTENDED_MESSAGE] = ExtendedMessage()
    if open.graceful_restart is not None:
        capabilities[_CODE.GRACEFUL_RESTART] = _graceful(open.graceful_restart)
    if open.four_octet_as:
        capabilities[_CODE.FOUR_BYTES_ASN] = ASN4(open.asn)
    if open.add_path:
        add_path = AddPath()
        for family, mode in sorted(open.add_path.items()):
            add_path.add_path(_EXA_AFI[family], SAFI.unicast, mode)
        capabilities[_CODE.ADD_PATH] = add_path
    if open.enhanced_refresh:
        capabilities[_CODE.ENHANCED_ROUTE_REFRESH] = EnhancedRouteRefresh()
    if open.hostname:
        capabilities[_CODE.HOSTNAME] = HostName(open.hostname, "")
    if open.software:
        software = Software()
        software.software_version = open.software.encode("ascii", "replace")[:64].decode("ascii")
        capabilities[_CODE.SOFTWARE_VERSION] = software
    identifier = RouterID(str(IPv4Address(open.identifier)))
    message: bytes = ExaOpen(Version(4), ASN(open.asn), HoldTime(open.hold_time), identifier, capabilities).message()
    return message


def decode_open(body: bytes) -> Open:
    """Return an OPEN received, validated on its own; ``negotiate`` judges it against ours.

    Raises BgpError 2/0 to 2/6 (RFC 4271 section 6.2).
    """
    raw = parse_open(body)
    with _guarded(2, 0):
        capabilities = Capabilities()
        for code, value in raw.capabilities:
            if code in _KNOWN:
                capabilities[code] = Capability.unpack(code, capabilities, value)
        four_octet = capabilities.get(_CODE.FOUR_BYTES_ASN)
        asn = raw.asn if four_octet is None else int(four_octet)
        check_open(asn, raw)
        values = dict(raw.capabilities)
        families = capabilities.get(_CODE.MULTIPROTOCOL)
        restart = capabilities.get(_CODE.GRACEFUL_RESTART)
        add_path = capabilities.get(_CODE.ADD_PATH, {})
        return Open(
            asn=asn,
            hold_time=raw.hold_time,
            identifier=raw.identifier,
            families=frozenset((4,)) if families is None else frozenset(_families(families)),
            four_octet_as=four_octet is not None,
            multiprotocol=families is not None,
            route_refresh=_CODE.ROUTE_REFRESH in capabilities,
            enhanced_refresh=_CODE.ENHANCED_ROUTE_REFRESH in capabilities,
            extended_message=_CODE.EXTENDED_MESSAGE in capabilities,
            extended_next_hop=frozenset(_next_hop_pairs(capabilities.get(_CODE.NEXTHOP, ()))),
            graceful_restart=None if restart is None else _restart(restart),
            add_path={f: add_path[key] for key in add_path for f in _families([key]) if add_path[key] in (1, 2, 3)},
            hostname=_hostname(values.get(_CODE.HOSTNAME, b"")),
            software=_counted_text(values.get(_CODE.SOFTWARE_VERSION, b""))[0],
            other=tuple(sorted(values.keys() - _KNOWN - {_CODE.HOSTNAME, _CODE.SOFTWARE_VERSION})),
        )


def encode_notification(notification: Notification) -> bytes:
    """Return a framed NOTIFICATION; its data go out as they are."""
    message: bytes = Notify(notification.code, notification.subcode, notification.data).message()
    return message


def decode_notification(body: bytes) -> Notification:
    """Return a NOTIFICATION received. One without codes is 0/0: it must not be answered (RFC 4271 section 6.4)."""
    return Notification(body[0], body[1], body[2:]) if len(body) >= 2 else Notification(0, 0, body)


def encode_route_refresh(refresh: RouteRefresh) -> bytes:
    """Return a framed ROUTE-REFRESH (RFC 2918 section 3)."""
    message: bytes = ExaRefresh(_EXA_AFI[refresh.family], SAFI.unicast, refresh.subtype).message()
    return message


def decode_route_refresh(body: bytes) -> RouteRefresh | None:
    """Return a ROUTE-REFRESH received, None for a family or subtype that is to be ignored (RFC 7313 section 5).

    Raises BgpError 7/1, with the whole message as data, for one that is not four octets long.
    """
    if len(body) != 4:
        message = frame(MessageType.ROUTE_REFRESH, body)
        raise BgpError(7, 1, message, f"ROUTE-REFRESH is {len(body)} octets long, expected 4")
    family = FAMILY_OF_AFI.get(int.from_bytes(body[:2], "big"))
    if family is None or body[3] != UNICAST or body[2] > 2:
        return None
    return RouteRefresh(family, body[2])


def attributes_text(raw: bytes, *, four_octet_as: bool = True) -> list[tuple[str, str]]:
    """Return the names and values of a path attribute section, decoded by exabgp for people to read.

    Raises BgpError 3/x for a section that RFC 4271 section 6.3 rejects.
    """
    with _guarded(3, 1):
        negotiated = Negotiated({"capability": {"aigp": None}})
        negotiated.asn4 = four_octet_as
        attributes = Attributes.unpack(raw, Direction.IN, negotiated)
        return [(_attribute_name(code), str(attributes[code])) for code in sorted(attributes)]


def _attribute_name(code: int) -> str:
    return str(Attribute.CODE.names.get(code, f"attribute-{code}"))


def _graceful(restart: GracefulRestart) -> Any:
    flags = (_RESTARTING if restart.restarting else 0) | (_NOTIFICATION if restart.notification else 0)
    families = [
        (_EXA_AFI[f], SAFI.unicast, _FORWARDING if kept else 0) for f, kept in sorted(restart.forwarding.items())
    ]
    return Graceful().set(flags, restart.restart_time, families)


def _restart(capability: Any) -> GracefulRestart:
    flags = capability.restart_flag
    return GracefulRestart(
        restarting=bool(flags & _RESTARTING),
        notification=bool(flags & _NOTIFICATION),
        restart_time=capability.restart_time,
        forwarding={f: bool(capability[key] & _FORWARDING) for key in capability for f in _families([key])},
    )


def _families(pairs: Any) -> Iterator[Family]:
    for afi, safi in pairs:
        family = FAMILY_OF_AFI.get(int(afi))
        if family is not None and int(safi) == UNICAST:
            yield family


def _next_hop_pairs(entries: Any) -> Iterator[tuple[Family, Family]]:
    for afi, safi, next_hop_afi in entries:
        prefix, next_hop = FAMILY_OF_AFI.get(int(afi)), FAMILY_OF_AFI.get(int(next_hop_afi))
        if prefix is not None and next_hop is not None and int(safi) == UNICAST:
            yield prefix, next_hop


def _hostname(value: bytes) -> str:
    """FQDN capability (draft-walton-bgp-hostname-capability): for people, so never an error."""
    host, rest = _counted_text(value)
    domain, _ = _counted_text(rest)
    return f"{host}.{domain}" if domain else host


def _counted_text(value: bytes) -> tuple[str, bytes]:
    size = 1 + value[0] if value else 0
    text = value[1:size].decode(errors="replace")
    return "".join(c for c in text if c.isprintable()), value[size:]
