"""Communities of all kinds between text and octets: standard (RFC 1997), extended (RFC 4360), large (RFC 8092)."""

from __future__ import annotations

WELL_KNOWN_COMMUNITIES: dict[str, tuple[int, int]] = {
    "graceful-shutdown": (65535, 0),  # RFC 8326
    "blackhole": (65535, 666),  # RFC 7999
    "no-export": (65535, 0xFF01),  # RFC 1997
    "no-advertise": (65535, 0xFF02),
    "no-export-subconfed": (65535, 0xFF03),
    "no-peer": (65535, 0xFF04),  # RFC 3765
}

_EXTENDED_KINDS = {"rt": 2, "so": 3}
"""Subtypes of route target and route origin (RFC 4360)."""


def parse_community(text: str) -> tuple[int, ...]:
    """Return two integers for a community (RFC 1997), three for a large one (RFC 8092); else ValueError.

    Those of an extended community, ``rt:65000:1`` or ``so:65000:1`` (RFC 4360), come from parse_extended_community.
    """
    if text in WELL_KNOWN_COMMUNITIES:
        return WELL_KNOWN_COMMUNITIES[text]
    parts = text.split(":")
    if not all(part.isascii() and part.isdigit() for part in parts) or len(parts) not in (2, 3):
        raise ValueError(f"{text!r} is not a community")
    numbers = tuple(int(part) for part in parts)
    if max(numbers) >= (1 << 16 if len(parts) == 2 else 1 << 32):
        raise ValueError(f"{text!r} is out of range")
    return numbers


def parse_extended_community(text: str) -> bytes | None:
    """Return the eight octets of ``rt:AS:NUMBER`` or ``so:AS:NUMBER``, None for what is no extended community.

    An AS of two octets leaves four for the number (RFC 4360), one of four octets two (RFC 5668). Raises ValueError.
    """
    kind, _, rest = text.partition(":")
    if kind not in _EXTENDED_KINDS:
        return None
    asn, number = parse_numbers(rest)
    if asn < 1 << 16:
        if number >= 1 << 32:
            raise ValueError(f"{text!r} is out of range")
        return bytes((0, _EXTENDED_KINDS[kind])) + asn.to_bytes(2, "big") + number.to_bytes(4, "big")
    if asn >= 1 << 32 or number >= 1 << 16:
        raise ValueError(f"{text!r} is out of range")
    return bytes((2, _EXTENDED_KINDS[kind])) + asn.to_bytes(4, "big") + number.to_bytes(2, "big")


def community_text(octets: bytes) -> str:
    """Return a community of 4, 8 (extended) or 12 (large) octets as ``community_octets`` takes it.

    An extended one of another kind than route target and route origin is ``ext:`` and its octets in hexadecimal.
    """
    if len(octets) == 8:
        kind = {subtype: name for name, subtype in _EXTENDED_KINDS.items()}.get(octets[1])
        if kind is None or octets[0] not in (0, 2):
            return f"ext:{octets.hex()}"
        width = 2 if octets[0] == 0 else 4
        asn, number = int.from_bytes(octets[2 : 2 + width], "big"), int.from_bytes(octets[2 + width :], "big")
        return f"{kind}:{asn}:{number}"
    width = 2 if len(octets) == 4 else 4
    numbers = tuple(int.from_bytes(octets[at : at + width], "big") for at in range(0, len(octets), width))
    name = next((name for name, known in WELL_KNOWN_COMMUNITIES.items() if known == numbers), "")
    return name or ":".join(map(str, numbers))


def parse_numbers(text: str) -> tuple[int, int]:
    """Return the numbers of ``65000:1``. Raises ValueError."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not of the form AS:NUMBER")
    return int(parts[0]), int(parts[1])


def community_octets(text: str) -> bytes:
    """Return a community of any kind as 4, 8 (extended) or 12 (large) octets. Raises ValueError."""
    extended = parse_extended_community(text)
    if extended is not None:
        return extended
    numbers = parse_community(text)
    width = 2 if len(numbers) == 2 else 4
    return b"".join(number.to_bytes(width, "big") for number in numbers)
