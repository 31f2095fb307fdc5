"""Kernel settings: those routing cannot do without are set, those that would break it are named (ip-sysctl.rst).

/proc/sys/net shows the network namespace of the thread that reads it. Everything here blocks.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from config.kernel import MAIN_TABLE
from routes import netlink
from routes.dumps import read_routes

_RTPROT_RA = 9
_NEEDED = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # Hash ports too: by addresses alone all connections of two pods share one path.
    "net/ipv4/fib_multipath_hash_policy": "1",
    "net/ipv6/fib_multipath_hash_policy": "1",
}
_STRICT = 1
_TIMEOUT = 5.0
_NETWORKD = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")


class Settings(NamedTuple):
    changed: list[str]
    """``net.ipv4.ip_forward=1 (was 0)`` for each."""
    problems: list[str]


def set_needed(root: Path = Path("/proc/sys")) -> Settings:
    """Set what routing needs. What cannot be set is a problem with a text that says what to do; nothing is raised.

    Where the IPv6 default route comes from router advertisements, ``accept_ra`` becomes 2 first: a router ignores them
    otherwise, and turning forwarding on would cost the node its default route.
    """
    settings = Settings([], [])
    for device in _advertised_defaults():
        _set(root, f"net/ipv6/conf/{device}/accept_ra", "2", settings)
    for name, value in _NEEDED.items():
        _set(root, name, value, settings)
    return settings


def findings(uplinks: Collection[str], root: Path = Path("/")) -> list[str]:
    """Return what would break routing though it is not ours to change, each with its cure.

    ``uplinks`` are the interfaces towards peers.
    """
    found = [*_needed_lost(root / "proc/sys"), *_reverse_path(uplinks, root / "proc/sys"), *_networkd(root)]
    ruleset = _ruleset()
    if ruleset is not None:
        found += forward_policies(ruleset)
    return found


def forward_policies(ruleset: dict[str, Any]) -> list[str]:
    """Return findings for chains that drop forwarded packets by policy, out of `nft -j list ruleset`."""
    found = []
    for entry in ruleset.get("nftables", ()):
        chain = entry.get("chain", {})
        if chain.get("hook") == "forward" and chain.get("type") == "filter" and chain.get("policy") == "drop":
            name = f"{chain.get('family')} {chain.get('table')} {chain.get('name')}"
            found.append(
                f"firewall chain `{name}` has policy drop: traffic from and to pods is dropped; "
                f"add a rule there that accepts it, or set the policy to accept"
            )
    return found


def _set(root: Path, name: str, value: str, settings: Settings) -> None:
    path, shown = root / name, name.replace("/", ".")
    try:
        before = path.read_text().strip()
        if before != value:
            path.write_text(value)
            settings.changed.append(f"{shown}={value} (was {before})")
    except FileNotFoundError:
        return  # IPv6 is off, or the kernel has no such choice
    except OSError as error:
        settings.problems.append(f"cannot set {shown}={value}: {error.strerror}; set it on the host")


def _advertised_defaults() -> list[str]:
    """Return the interfaces whose IPv6 default route was learned from router advertisements."""
    devices: set[str] = set()
    with netlink.open_socket() as sock, suppress(netlink.DumpInterruptedError):
        for route in read_routes(sock, 6, MAIN_TABLE, protocol=_RTPROT_RA):
            if route.prefix == b"\0":
                devices.update(_name(path.ifindex) for path in route.paths)
    return sorted(devices - {""})


def _name(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _needed_lost(root: Path) -> Iterator[str]:
    for name, value in _NEEDED.items():
        now = _read(root / name)
        if now not in ("", value):
            shown = name.replace("/", ".")
            yield f"{shown} is {now} and has to be {value}: something set it back after podroute had set it"


def _reverse_path(uplinks: Collection[str], root: Path) -> Iterator[str]:
    """Strict reverse path filtering drops what comes in by another uplink than the answer would take (RFC 3704)."""
    if len(uplinks) < 2:
        return
    for device in sorted(uplinks):
        values = {name: _read(root / f"net/ipv4/conf/{name}/rp_filter") for name in ("all", device)}
        numbers = [int(value) for value in values.values() if value.isdigit()]
        if numbers and max(numbers) == _STRICT:
            name = device if values[device] == str(_STRICT) else "all"
            yield (
                f"net.ipv4.conf.{name}.rp_filter is 1 (strict): on a node with several uplinks {device} drops packets "
                f"whose answer leaves by another; set it to 2 (loose)"
            )


def _networkd(root: Path) -> Iterator[str]:
    """systemd-networkd removes routes that it does not know, unless told not to (networkd.conf(5))."""
    if (root / "run/systemd/netif").is_dir() and _manages_foreign_routes(root):
        yield (
            "systemd-networkd runs with ManageForeignRoutes=yes and deletes routes of others when a link changes; "
            "set ManageForeignRoutes=no in /etc/systemd/networkd.conf.d/podroute.conf, section [Network]"
        )


def _manages_foreign_routes(root: Path) -> bool:
    main = next((path for place in _NETWORKD if (path := root / place / "networkd.conf").is_file()), None)
    drop_ins: dict[str, Path] = {}
    for place in reversed(_NETWORKD):
        drop_ins.update({path.name: path for path in (root / place / "networkd.conf.d").glob("*.conf")})
    value = "yes"
    for path in [*([main] if main is not None else []), *(drop_ins[name] for name in sorted(drop_ins))]:
        for line in _read(path).splitlines():
            key, _, text = line.partition("=")
            if key.strip() == "ManageForeignRoutes":
                value = text.strip().lower()
    return value in ("yes", "true", "on", "1")


def _ruleset() -> dict[str, Any] | None:
    """Return nftables' rules, iptables' in their nft form included; None where they cannot be read."""
    nft = shutil.which("nft")
    if nft is None:
        return None
    try:
        done = subprocess.run([nft, "-j", "list", "ruleset"], capture_output=True, timeout=_TIMEOUT, check=True)
        ruleset = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return ruleset if isinstance(ruleset, dict) else None
