"""What an OPEN must satisfy and what two of them agree on (RFC 4271 sections 4.2 and 6.2, RFC 5492, 6286, 6793, 9072).

The structure of a received OPEN is walked here, octet by octet; the values of its capabilities are decoded by the
codec behind it.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from struct import pack, unpack_from
from typing import NamedTuple, NoReturn

from bgp.framing import EXTENDED_LIMIT, STANDARD_LIMIT
from bgp.messages import BgpError, Negotiated, Open
from config.prefix import NAMES, Family

VERSION = 4
AS_TRANS = 23456
AFI: dict[Family, int] = {4: 1, 6: 2}
FAMILY_OF_AFI: dict[int, Family] = {1: 4, 2: 6}
UNICAST = 1

_FIXED = 10
_CAPABILITIES = 2
_EXTENDED = 255


class RawOpen(NamedTuple):
    """A well-formed OPEN before its capabilities are decoded."""

    asn: int
    """My Autonomous System as in the fixed part: two octets, AS_TRANS where the true one does not fit."""
    hold_time: int
    identifier: bytes
    capabilities: list[tuple[int, bytes]]


def parse_open(body: bytes) -> RawOpen:
    """Walk the body of an OPEN.

    Raises BgpError 2/1, 2/4 or 2/0 (RFC 4271 section 6.2); ``check_open`` judges what the fields say.
    """
    if body[:1] != bytes((VERSION,)):
        raise BgpError(
            2, 1, pack("!H", VERSION), f"expected BGP version {VERSION}, received {body[:1].hex() or 'none'}"
        )
    if len(body) < _FIXED:
        _malformed(f"body is {len(body)} octets long, expected at least {_FIXED}")
    asn, hold_time = unpack_from("!HH", body, 1)
    return RawOpen(asn, hold_time, body[5:9], _capabilities(body))


def check_open(asn: int, raw: RawOpen) -> None:
    """Judge the fixed fields of an OPEN against ``asn``, the true AS of its sender.

    Raises BgpError 2/2 for AS 0 (RFC 7607) or two AS numbers that contradict each other (RFC 6793), 2/6 for a hold
    time of 1 or 2 seconds, and 2/3 for identifier 0 (RFC 6286).
    """
    if asn == 0 or raw.asn == 0:
        raise BgpError(2, 2, reason="received AS 0, which RFC 7607 reserves")
    if raw.asn not in (asn, AS_TRANS):
        raise BgpError(2, 2, reason=f"received AS {raw.asn} in the OPEN and AS {asn} in its 4-octet AS capability")
    if raw.hold_time in (1, 2):
        raise BgpError(2, 6, reason=f"received hold time {raw.hold_time} s, expected 0 or at least 3")
    if not any(raw.identifier):
        raise BgpError(2, 3, reason="received BGP identifier 0.0.0.0")


def negotiate(local: Open, peer: Open, expected_as: int) -> Negotiated:
    """Return what a session between ``local`` (our OPEN) and ``peer`` (the one received) is made of.

    Raises BgpError 2/2 where the peer is not in ``expected_as``, 2/3 where an internal peer has our identifier
    (RFC 6286 section 2.2), 2/7 where no address family is in both OPENs (RFC 5492 section 3; the data are the
    capabilities that the peer lacks).
    """
    if peer.asn != expected_as:
        raise BgpError(2, 2, reason=f"expected AS {expected_as}, received AS {peer.asn}")
    if peer.asn == local.asn and peer.identifier == local.identifier:
        text = IPv4Address(peer.identifier)
        raise BgpError(2, 3, reason=f"internal peer has our own BGP identifier {text}")
    families = local.families & peer.families
    if not families:
        missing = b"".join(pack("!BBHBB", 1, 4, AFI[f], 0, UNICAST) for f in sorted(local.families))
        raise BgpError(
            2,
            7,
            missing,
            f"no common address family: we offer {_names(local.families)}, the peer {_names(peer.families)}",
        )
    extended = local.extended_message and peer.extended_message
    return Negotiated(
        local=local,
        peer=peer,
        hold_time=min(local.hold_time, peer.hold_time),
        families=families,
        four_octet_as=local.four_octet_as and peer.four_octet_as,
        receive_limit=EXTENDED_LIMIT if local.extended_message else STANDARD_LIMIT,
        send_limit=EXTENDED_LIMIT if extended else STANDARD_LIMIT,
    )


def _capabilities(body: bytes) -> list[tuple[int, bytes]]:
    """Return the capabilities of all optional parameters, as ``(code, value)`` in the order received."""
    length, start, head = body[9], _FIXED, 2
    if length and body[_FIXED : _FIXED + 1] == bytes((_EXTENDED,)):  # RFC 9072: the one-octet length says nothing
        if len(body) < _FIXED + 3:
            _malformed("extended optional parameters length is cut short")
        length, start, head = int.from_bytes(body[_FIXED + 1 : _FIXED + 3], "big"), _FIXED + 3, 3
    if start + length != len(body):
        _malformed(f"optional parameters length is {length}, {len(body) - start} octets follow")
    found: list[tuple[int, bytes]] = []
    while start < len(body):
        kind = body[start]
        value = start + head
        end = value + int.from_bytes(body[start + 1 : value], "big")
        if value > len(body) or end > len(body):
            _malformed(f"optional parameter of type {kind} overruns the message")
        if kind != _CAPABILITIES:
            raise BgpError(2, 4, reason=f"optional parameter of type {kind} is not supported")
        _walk_capabilities(body[value:end], found)
        start = end
    return found


def _walk_capabilities(value: bytes, found: list[tuple[int, bytes]]) -> None:
    at = 0
    while at < len(value):
        end = at + 2 + value[at + 1] if at + 2 <= len(value) else len(value) + 1
        if end > len(value):
            _malformed(f"capability {value[at]} overruns its optional parameter")
        found.append((value[at], value[at + 2 : end]))
        at = end


def _malformed(reason: str) -> NoReturn:
    raise BgpError(2, 0, reason=reason)


def _names(families: frozenset[Family]) -> str:
    return ", ".join(NAMES[f] for f in sorted(families)) or "none"
