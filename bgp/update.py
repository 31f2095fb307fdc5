"""UPDATE messages: taking one apart, and packing many routes into few."""

from __future__ import annotations

from struct import pack

from bgp.framing import frame
from bgp.messages import MessageType
from bgp.opening import AFI, UNICAST
from config.prefix import Family


def encode_end_of_rib(family: Family) -> bytes:
    """Return the framed End-of-RIB marker of a family (RFC 4724 section 2)."""
    if family == 4:
        return frame(MessageType.UPDATE, bytes(4))
    value = pack("!HB", AFI[family], UNICAST)
    return frame(MessageType.UPDATE, pack("!HHBBB", 0, 3 + len(value), 0x80, 15, len(value)) + value)
