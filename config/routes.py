"""How routes are written into the kernel, as an operator says it: parts of ``routes``."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from config.policy import Section
from config.values import Prefix, refused, wrong

_DEVICE = re.compile(r"[^\s/:%]{1,15}")


def _device(value: Any) -> str:
    if not isinstance(value, str) or not _DEVICE.fullmatch(value) or value in (".", "..", "lo"):
        raise wrong(value, 'the name of an interface that has neighbours such as "eth0"')
    return value


def _each_once(value: Any) -> Any:
    """Refuse one prefix in two spellings, of which a mapping would keep the last without a word."""
    spelled: dict[IPv4Network | IPv6Network, str] = {}
    for key in value if isinstance(value, dict) else ():
        try:
            network = ip_network(key)
        except ValueError:
            continue  # reported as what it is
        if network in spelled:
            raise refused(f"has {spelled[network]} and {key}, which are one prefix, must have it once: remove one")
        spelled[network] = key
    return value


OnLink = Annotated[dict[Prefix, Annotated[str, BeforeValidator(_device)]], BeforeValidator(_each_once)]
"""Prefixes whose addresses are taken as on-link where nothing else resolves them, and at which interface."""


class Resilient(Section):
    """Next-hop groups that keep their flows when they lose or gain members (Linux >= 5.13). Timers in seconds."""

    buckets: int = Field(default=128, ge=1, le=65535, description="1 to 65535 buckets in a group")
    idle_timer: int = Field(
        default=120, ge=0, le=86400, description="0 to 86400 seconds that a bucket must be idle to move"
    )
    unbalanced_timer: int = Field(
        default=0, ge=0, le=86400, description="0 (never) to 86400 seconds until buckets in use move too"
    )
