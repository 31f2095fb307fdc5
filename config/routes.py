"""How routes are written into the kernel, as an operator says it: parts of ``routes``."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any

from pydantic import BeforeValidator

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
