"""The keys of containerlab's format: which ones are built here, which are refused, and how levels are merged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from labs import health_keys, stage_keys
from labs.checks import Checker, Given
from labs.source import Value
from labs.stages import Stage
from labs.topology import Healthcheck

LINUX, BRIDGE = "linux", "bridge"
KINDS = frozenset({LINUX, BRIDGE})
KINDS_HERE = "`linux` and `bridge` can"

TOP = frozenset({"name", "prefix", "topology"})
TOP_REFUSED = frozenset({"mgmt", "settings", "debug"})
TOPOLOGY = frozenset({"defaults", "kinds", "groups", "nodes", "links"})

COMMANDS = ("entrypoint", "cmd")
SCALARS = ("kind", "image", "group", "network-mode", "startup-delay", "hostname", *COMMANDS)
LISTS = ("exec", "binds", "env-files")
MAPS = ("env", "sysctls", "labels")
NODE = frozenset({*SCALARS, *LISTS, *MAPS, "healthcheck", "stages"})
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
        "startup-config",
        "suppress-startup-config",
        "tmpfs",
        "type",
        "user",
        "volumes",
    }
)


@dataclass(slots=True)
class Definition:
    """The keys of one node, group or kind, or of the defaults."""

    scalars: dict[str, Given] = field(default_factory=dict)
    lists: dict[str, list[Given]] = field(default_factory=dict)
    maps: dict[str, dict[str, str]] = field(default_factory=dict)
    stages: dict[Stage, stage_keys.Written] = field(default_factory=dict)
    healthcheck: Healthcheck | None = None

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
    if not re.fullmatch(r"|none|host|container:\S+", mode := made.first("network-mode") or ""):
        right = "`none`, `host` and `container:NODE` can; without it a node has the links of the file and no others"
        check.fault(f"{place}.network-mode", f"`{mode}` cannot be built here", right)
    for name in made.maps.get("sysctls", {}):
        if not re.fullmatch(r"net(\.[\w-]+)+", name):
            check.fault(f"{place}.sysctls.{name}", "not a setting of the network namespace", "only `net.*` can be set")
    if "healthcheck" in given:
        with check.collecting():
            made.healthcheck = health_keys.read(check, f"{place}.healthcheck", given["healthcheck"])
    if "stages" in given:
        made.stages = stage_keys.read(check, f"{place}.stages", given["stages"])
    return made


def merge(levels: Sequence[Definition]) -> Definition:
    """Merge levels, most specific first: scalars from the first that sets them, maps key by key, lists added up.

    Lists run from the least specific level to the most specific; an item that stands there already is dropped. A
    healthcheck is taken whole from the first level that has one; in stages, waits and commands are added up.
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
        for stage, written in level.stages.items():
            merged.stages[stage] = merged.stages.get(stage, stage_keys.Written()).plus(written)
        merged.healthcheck = level.healthcheck or merged.healthcheck
    return merged
