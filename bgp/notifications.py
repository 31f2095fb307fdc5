"""What the codes of a NOTIFICATION are called, and the data that RFC 9003 and RFC 8538 put into it."""

from __future__ import annotations

from types import MappingProxyType

from bgp.messages import Notification

_CODES = MappingProxyType(
    {
        1: "Message Header Error",
        2: "OPEN Message Error",
        3: "UPDATE Message Error",
        4: "Hold Timer Expired",
        5: "Finite State Machine Error",
        6: "Cease",
        7: "ROUTE-REFRESH Message Error",
        8: "Send Hold Timer Expired",
    }
)
"""RFC 4271 section 4.5, RFC 7313 section 5, RFC 9687 section 5."""

_SUBCODES = MappingProxyType(
    {
        (1, 1): "Connection Not Synchronized",
        (1, 2): "Bad Message Length",
        (1, 3): "Bad Message Type",
        (2, 1): "Unsupported Version Number",
        (2, 2): "Bad Peer AS",
        (2, 3): "Bad BGP Identifier",
        (2, 4): "Unsupported Optional Parameter",
        (2, 5): "Authentication Failure",
        (2, 6): "Unacceptable Hold Time",
        (2, 7): "Unsupported Capability",
        (2, 11): "Role Mismatch",
        (3, 1): "Malformed Attribute List",
        (3, 2): "Unrecognized Well-known Attribute",
        (3, 3): "Missing Well-known Attribute",
        (3, 4): "Attribute Flags Error",
        (3, 5): "Attribute Length Error",
        (3, 6): "Invalid ORIGIN Attribute",
        (3, 7): "AS Routing Loop",
        (3, 8): "Invalid NEXT_HOP Attribute",
        (3, 9): "Optional Attribute Error",
        (3, 10): "Invalid Network Field",
        (3, 11): "Malformed AS_PATH",
        (5, 1): "Unexpected Message in OpenSent State",
        (5, 2): "Unexpected Message in OpenConfirm State",
        (5, 3): "Unexpected Message in Established State",
        (6, 1): "Maximum Number of Prefixes Reached",
        (6, 2): "Administrative Shutdown",
        (6, 3): "Peer De-configured",
        (6, 4): "Administrative Reset",
        (6, 5): "Connection Rejected",
        (6, 6): "Other Configuration Change",
        (6, 7): "Connection Collision Resolution",
        (6, 8): "Out of Resources",
        (6, 9): "Hard Reset",
        (6, 10): "BFD Down",
        (7, 1): "Invalid Message Length",
    }
)
"""RFC 4271 section 4.5, 4486, 5492, 6608, 7313, 8538, 9234, 9384."""

SHUTDOWN, RESET, HARD_RESET = 2, 4, 9
"""Subcodes of Cease: RFC 4486 section 3 and RFC 8538 section 3."""

_TEXT_LIMIT = 255


def shutdown_text(text: str) -> bytes:
    """Return the data of Cease/Administrative Shutdown or Reset that carries ``text`` (RFC 9003 section 2).

    At most 255 octets of UTF-8 fit; a longer text is cut between two characters. No text is no data.
    """
    encoded = text.encode()[:_TEXT_LIMIT].decode(errors="ignore").encode()
    return bytes((len(encoded),)) + encoded if encoded else b""


def hard_reset(inner: Notification) -> Notification:
    """Return ``inner`` wrapped into a Hard Reset, which graceful restart does not survive (RFC 8538 section 3.1)."""
    return Notification(6, HARD_RESET, bytes((inner.code, inner.subcode)) + inner.data)


def describe(notification: Notification) -> str:
    """Return the names of a NOTIFICATION and what its data say: ``Cease/Administrative Shutdown: "maintenance"``."""
    code, subcode, data = notification.code, notification.subcode, notification.data
    name = _CODES.get(code, f"code {code}")
    if (code, subcode) in _SUBCODES:
        name = f"{name}/{_SUBCODES[code, subcode]}"
    elif subcode:
        name = f"{name}/subcode {subcode}"
    text = _data_text(code, subcode, data)
    return f"{name}: {text}" if text else name


def _data_text(code: int, subcode: int, data: bytes) -> str:
    if not data:
        return ""
    if code == 6 and subcode in (SHUTDOWN, RESET):
        size = data[0]
        if size and len(data) > size:
            text = data[1 : 1 + size].decode(errors="replace")
            return '"' + "".join(c if c.isprintable() else " " for c in text) + '"'
    if code == 6 and subcode == HARD_RESET and len(data) >= 2:
        return describe(Notification(data[0], data[1], data[2:]))
    if (code, subcode) == (2, 1) and len(data) == 2:
        return f"supports version {int.from_bytes(data, 'big')}"
    if (code, subcode) == (1, 2) and len(data) == 2:
        return f"length {int.from_bytes(data, 'big')}"
    return data.hex()
