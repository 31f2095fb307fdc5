"""The keys of containerlab's format: which ones are built here, which are refused, and how levels are merged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from labs.checks import Checker
from labs.source import Value

LINUX, BRIDGE = "linux", "bridge"
KINDS = frozenset({LINUX, BRIDGE})
LINK_WORDS = frozenset({"host", "macvlan", "mgmt-net"})
"""Names that turn a brief link into another type; containerlab gives them this meaning."""

TOP = frozenset({"name", "prefix", "topology"})
TOP_REFUSED = frozenset({"mgmt", "settings", "debug"})
TOPOLOGY = frozenset({"defaults", "kinds", "groups", "nodes", "links"})

COMMANDS = ("entrypoint", "cmd")
SCALARS = ("kind", "image", "group", "network-mode", "startup-delay", *COMMANDS)
LISTS = ("exec", "binds", "env-files")
MAPS = ("env", "sysctls", "labels")
NODE = frozenset({*SCALARS, *LISTS, *MAPS})
NODE_REFUSED = frozenset(
    {
        "aliases",
        "auto-remove",
        "cap-add",
        "certificate",
        "cgroup-parent",
        "cgroupns-mode",
        "components",
        "config",
        "cpu",
        "cpu-set",
        "credentials",
        "devices",
        "dns",
        "enforce-startup-config",
        "extras",
        "healthcheck",
        "hostname",
        "image-pull-policy",
        "license",
        "link-apply-mode",
        "memory",
        "mgmt-ipv4",
        "mgmt-ipv6",
        "pid-mode",
        "ports",
        "privileged",
        "restart-policy",
        "runtime",
        "security-opts",
        "shm-size",
        "stages",
        "startup-config",
        "suppress-startup-config",
        "tmpfs",
        "type",
        "user",
        "volumes",
    }
)
LINK_BRIEF = frozenset({"endpoints", "mtu"})
LINK_VETH = frozenset({"type", "endpoints", "mtu", "labels"})
ENDPOINT = frozenset({"node", "interface", "mac"})
LINK_REFUSED = frozenset({"ipv4", "ipv6", "vars"})
"""For nodes of kind linux containerlab reads these and does nothing with them."""


class Given(NamedTuple):
    """A value and where it stands."""

    text: str
    place: str


@dataclass(slots=True)
class Definition:
    """The keys of one node, group or kind, or of the defaults."""

    scalars: dict[str, Given] = field(default_factory=dict)
    lists: dict[str, list[Given]] = field(default_factory=dict)
    maps: dict[str, dict[str, str]] = field(default_factory=dict)

    def first(self, key: str) -> str | None:
        """Return a scalar, None where it is not set."""
        given = self.scalars.get(key)
        return given.text if given else None

    def place(self, key: str) -> str | None:
        given = self.scalars.get(key)
        return given.place if given else None


def definition(check: Checker, place: str, given: Mapping[str, Value]) -> Definition:
    """Read the keys of one level; their values are checked as far as they stand alone."""
    made = Definition()
    for key in SCALARS:
        if key in given and (text := check.text(f"{place}.{key}", given[key])):
            made.scalars[key] = Given(text, f"{place}.{key}")
    for key in LISTS:
        for index, item in enumerate(check.list(f"{place}.{key}", given.get(key))):
            where = f"{place}.{key}[{index}]"
            if text := check.text(where, item, required="remove the empty item"):
                made.lists.setdefault(key, []).append(Given(text, where))
    for key in MAPS:
        if key in given:
            made.maps[key] = check.texts(f"{place}.{key}", given[key])
    if (mode := made.first("network-mode")) not in (None, "none"):
        right = "`none`, or leave it out: nodes have the links of the file and no management network"
        check.fault(f"{place}.network-mode", f"`{mode}` cannot be built here", right)
    for name in made.maps.get("sysctls", {}):
        if not re.fullmatch(r"net(\.[\w-]+)+", name):
            check.fault(f"{place}.sysctls.{name}", "not a setting of the network namespace", "only `net.*` can be set")
    return made


def merge(levels: Sequence[Definition]) -> Definition:
    """Merge levels, most specific first: scalars from the first that sets them, maps key by key, lists added up.

    Lists run from the least specific level to the most specific; an item that stands there already is dropped.
    """
    merged = Definition()
    for level in reversed(levels):
        merged.scalars.update(level.scalars)
        for key, values in level.maps.items():
            merged.maps.setdefault(key, {}).update(values)
        for key, items in level.lists.items():
            known = merged.lists.setdefault(key, [])
            present = {item.text for item in known}
            known += [item for item in items if item.text not in present]
    return merged
