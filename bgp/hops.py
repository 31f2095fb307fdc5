"""Next hops as paths have them (RFC 4271 section 5.1.3)."""

from __future__ import annotations

from config.nexthop import Resolution


class Hop:
    """A next hop, shared by all its paths: resolution changes in one place."""

    __slots__ = ("__weakref__", "address", "device", "resolution")

    def __init__(self, address: bytes, device: str, resolution: Resolution | None) -> None:
        self.address = address
        self.device = device
        """Set for a link-local address only."""
        self.resolution = resolution
