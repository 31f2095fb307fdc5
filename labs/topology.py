"""Topology files in containerlab's format (https://containerlab.dev/manual/topo-def-file/), read and checked.

``load`` returns the nodes with everything inherited and expanded, or raises one TopologyError that holds every fault.
What this runner does not build is refused by the name of its key, before anything is created.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labs import keys
from labs.checks import Checker, UnusableError
from labs.envfiles import EnvFileError, read_env
from labs.errors import TopologyError
from labs.keys import BRIDGE
from labs.source import Value, read

DEFAULT_MTU = 9500
"""containerlab's MTU of links that state none."""
MAC_PREFIX = "aa:c1:ab"
"""containerlab's prefix of made-up MAC addresses."""
LONGEST_BRIDGE = 15
"""Characters of an interface's name."""
KINDS_HERE = "`linux` and `bridge` can"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Bind:
    source: Path
    """Absolute path on the host."""
    target: str
    """Absolute path in the node."""
    read_only: bool
    place: str
    """``file:path.to.key`` of its definition, for errors."""
    make: bool
    """The source lies in the lab's own directory: the runner makes it, as a directory, where it is absent."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node with what it inherits from its group, its kind and the defaults."""

    name: str
    kind: str
    image: str
    group: str | None
    command: tuple[str, ...]
    """``entrypoint`` and ``cmd`` split into words; empty: what the image does by itself."""
    exec: tuple[tuple[str, ...], ...]
    """Commands to run in the node, in order, once its links are up."""
    binds: tuple[Bind, ...]
    env: Mapping[str, str]
    sysctls: Mapping[str, str]
    labels: Mapping[str, str]
    place: str
    startup_delay: int = 0
    """Seconds to wait before its command or daemons start."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    node: str
    interface: str
    mac: str

    def __str__(self) -> str:
        return f"{self.node}:{self.interface}"


@dataclass(frozen=True, slots=True)
class Link:
    """A veth pair between two nodes."""

    a: Endpoint
    z: Endpoint
    mtu: int
    place: str


@dataclass(frozen=True, slots=True)
class Topology:
    path: Path
    name: str
    prefix: str
    directory: Path
    """The lab's own directory (``__clabDir__``), which the runner makes and removes."""
    nodes: Mapping[str, Node]
    links: tuple[Link, ...]


def load(
    path: Path, *, directories: Path, name: str | None = None, environ: Mapping[str, str] | None = None
) -> Topology:
    """Read a topology file. ``name`` replaces the name in the file, so that one file makes several labs.

    ``directories`` is where the runner keeps one directory per lab; the lab's own is ``NAME/clab`` below it.
    Raises TopologyError.
    """
    environ = os.environ if environ is None else environ
    document = read(path, environ)
    check = Checker(str(path))
    top = check.map("", document)
    check.keys("", top, keys.TOP, keys.TOP_REFUSED)
    lab = name or check.text("name", top.get("name"), required="lab names are letters, digits, `.`, `_` and `-`")
    if lab and not NAME.fullmatch(lab):
        check.fault("name", f"`{lab}` is not a lab name", "begin with a letter or digit, then also `.`, `_` and `-`")
    if "topology" not in top:
        check.fault("topology", "missing", "it holds `nodes` and `links`")
    body = check.map("topology", top.get("topology"))
    check.keys("topology", body, keys.TOPOLOGY, frozenset())
    builder = _Builder(check, path, lab, directories / (lab or "unnamed") / "clab", environ)
    nodes = builder.nodes(body)
    links = builder.links(body.get("links"), nodes)
    if check.faults:
        raise TopologyError(check.faults)
    prefix = check.text("prefix", top.get("prefix")) if "prefix" in top else "clab"
    return Topology(path, lab, prefix, builder.directory, nodes, links)


class _Builder:
    """The checks of one file. Faults go to the checker; what is returned counts only where there is none."""

    def __init__(self, check: Checker, path: Path, lab: str, directory: Path, environ: Mapping[str, str]) -> None:
        self.check = check
        self.path = path
        self.lab = lab
        self.directory = directory
        self.environ = environ

    # Nodes

    def nodes(self, body: Mapping[str, Value]) -> dict[str, Node]:
        defaults = self._definition("topology.defaults", body.get("defaults"))
        kinds = self._definitions("topology.kinds", body.get("kinds"))
        groups = self._definitions("topology.groups", body.get("groups"))
        for kind in kinds:
            if kind not in keys.KINDS:
                self.check.fault(
                    f"topology.kinds.{kind}", f"kind `{kind}` cannot be built here", "`linux` and `bridge` can"
                )
        given = self.check.map("topology.nodes", body.get("nodes"))
        if not given:
            self.check.fault("topology.nodes", "no nodes", "name at least one")
        nodes = {}
        for name, value in given.items():
            place = f"topology.nodes.{name}"
            if not NAME.fullmatch(name) or len(name) > 63:
                right = "begin with a letter or digit, then also `.`, `_` and `-`, at most 63 characters"
                self.check.fault(place, f"`{name}` is not a node name", right)
            elif name in keys.LINK_WORDS:
                self.check.fault(place, f"`{name}` means something else in links", "choose another name")
            nodes[name] = self._node(name, place, self._definition(place, value), groups, kinds, defaults)
        return nodes

    def _definitions(self, place: str, value: Value) -> dict[str, keys.Definition]:
        given = self.check.map(place, value)
        return {name: self._definition(f"{place}.{name}", child) for name, child in given.items()}

    def _definition(self, place: str, value: Value) -> keys.Definition:
        given = self.check.map(place, value)
        self.check.keys(place, given, keys.NODE, keys.NODE_REFUSED)
        return keys.definition(self.check, place, given)

    def _node(
        self,
        name: str,
        place: str,
        own: keys.Definition,
        groups: Mapping[str, keys.Definition],
        kinds: Mapping[str, keys.Definition],
        defaults: keys.Definition,
    ) -> Node:
        empty = keys.Definition()
        # The kind is looked up before the kind's own values are known, and a kind may name a group.
        kind = own.first("kind") or groups.get(own.first("group") or "", empty).first("kind") or defaults.first("kind")
        of_kind = kinds.get(kind or "", empty)
        group = own.first("group") or of_kind.first("group") or defaults.first("group")
        if group and group not in groups:
            known = ", ".join(sorted(groups)) or "none"
            self.check.fault(f"{place}.group", f"no group `{group}` in topology.groups", f"groups there: {known}")
        levels = (own, groups.get(group or "", empty), of_kind, defaults)
        if not kind:
            self.check.fault(f"{place}.kind", "missing here, in its group and in topology.defaults", "write `linux`")
        elif kind not in keys.KINDS and kind not in kinds:
            self.check.fault(f"{place}.kind", f"kind `{kind}` cannot be built here", KINDS_HERE)
        merged = keys.merge(levels)
        image = merged.first("image")
        if kind == BRIDGE and len(name) > LONGEST_BRIDGE:
            right = f"a bridge is an interface: at most {LONGEST_BRIDGE} characters"
            self.check.fault(place, f"`{name}` is not a bridge's name", right)
        if not image and kind != BRIDGE:
            right = "`frrouting/frr:v8.4.4` runs this host's FRR, `localhost/podroute:dev` this podroute"
            self.check.fault(f"{place}.image", "missing here, in its group, its kind and topology.defaults", right)
        binds = {}
        for given in merged.lists.get("binds", ()):
            with self.check.collecting():
                bind = self._bind(given.place, self._magic(given.text, name))
                binds[bind.target] = bind
        env = {**self._env_files(merged.lists.get("env-files", ())), **merged.maps.get("env", {})}
        if env.pop("__IMPORT_ENVS", "").lower() == "true":
            env = {**self.environ, **env}
        words = {key: self.check.words(merged.place(key) or place, merged.first(key) or "") for key in keys.COMMANDS}
        return Node(
            name=name,
            kind=kind or "",
            image=image or "",
            group=group,
            command=words["entrypoint"] + words["cmd"],
            exec=tuple(
                self.check.words(given.place, self._magic(given.text, name)) for given in merged.lists.get("exec", ())
            ),
            binds=tuple(sorted(binds.values(), key=lambda bind: bind.target)),
            env=env,
            sysctls=merged.maps.get("sysctls", {}),
            labels=merged.maps.get("labels", {}),
            place=f"{self.check.file}:{place}",
            startup_delay=self.check.integer(
                merged.place("startup-delay") or place, merged.first("startup-delay"), 0, 3600, 0
            ),
        )

    def _env_files(self, files: Iterable[keys.Given]) -> dict[str, str]:
        """Return the variables of all files; those of later files win, and `env` wins over all."""
        env: dict[str, str] = {}
        for given in files:
            try:
                env |= read_env(self.path.absolute().parent / Path(given.text).expanduser())
            except EnvFileError as error:
                self.check.fault(given.place, str(error), "write lines of `NAME=value`")
        return env

    def _magic(self, text: str, node: str) -> str:
        for word, value in (
            ("__clabNodeDir__", str(self.directory / node)),
            ("__clabDir__", str(self.directory)),
            ("__clabNodeName__", node),
            ("__clabLabName__", self.lab),
        ):
            text = text.replace(word, value)
        return text

    def _bind(self, place: str, text: str) -> Bind:
        source, separator, rest = text.partition(":")
        target, _, option = rest.partition(":")
        if not source or not separator:
            raise UnusableError(place, f"`{text}` is not a bind", "write `source:target` or `source:target:ro`")
        if option not in ("", "rw", "ro"):
            raise UnusableError(place, f"option `{option}` is not supported", "`ro` and `rw` are")
        normal = os.path.normpath(target)
        if not target.startswith("/") or normal == "/":
            raise UnusableError(place, f"target `{target}` is not a path in the node", "begin it with `/`")
        if normal.split("/")[1] in ("proc", "sys", "dev"):
            raise UnusableError(place, f"`{normal}` belongs to the kernel", "bind somewhere else")
        host = Path(os.path.normpath(self.path.absolute().parent / Path(source).expanduser()))
        make = host.is_relative_to(self.directory)
        if not make and not host.exists():
            raise UnusableError(place, f"{host} does not exist", "sources are paths from the topology file's directory")
        return Bind(host, normal, option == "ro", f"{self.check.file}:{place}", make)

    # Links

    def links(self, value: Value, nodes: Mapping[str, Node]) -> tuple[Link, ...]:
        used: dict[tuple[str, str], str] = {}
        links = []
        for index, item in enumerate(self.check.list("topology.links", value)):
            place = f"topology.links[{index}]"
            with self.check.collecting():
                link = self._link(place, self.check.map(place, item))
                links.append(link)
                for end in (link.a, link.z):
                    where = f"{place}.endpoints"
                    if end.node not in nodes:
                        self.check.fault(where, f"no node `{end.node}`", self.check.suggestion(end.node, nodes))
                    if other := used.get((end.node, end.interface)):
                        self.check.fault(where, f"{end} is taken by {other}", "use another interface name")
                    used[end.node, end.interface] = place
        return tuple(links)

    def _link(self, place: str, given: Mapping[str, Value]) -> Link:
        if "type" in given:
            if (kind := self.check.text(f"{place}.type", given["type"])) != "veth":
                raise UnusableError(f"{place}.type", f"links of type `{kind}` cannot be built here", "`veth` can")
            self.check.keys(place, given, keys.LINK_VETH, keys.LINK_REFUSED)
        else:
            self.check.keys(place, given, keys.LINK_BRIEF, keys.LINK_REFUSED)
        ends = self.check.list(f"{place}.endpoints", given.get("endpoints"))
        if len(ends) != 2:
            raise UnusableError(f"{place}.endpoints", f"{len(ends)} endpoints", "a link has exactly two")
        read_end = self._extended_end if "type" in given else self._brief_end
        a, z = (read_end(f"{place}.endpoints[{index}]", end) for index, end in enumerate(ends))
        mtu = self.check.integer(f"{place}.mtu", given.get("mtu"), 68, 65535, DEFAULT_MTU)
        return Link(a, z, mtu, f"{self.check.file}:{place}")

    def _brief_end(self, place: str, value: Value) -> Endpoint:
        text = self.check.text(place, value)
        node, separator, interface = text.partition(":")
        if not node or not separator:
            raise UnusableError(place, f"`{text}` is not an endpoint", "write `node:interface`")
        if node in keys.LINK_WORDS:
            raise UnusableError(place, f"endpoints of `{node}` cannot be built here", "links join two nodes")
        return self._end(place, node, interface, "")

    def _extended_end(self, place: str, value: Value) -> Endpoint:
        if not isinstance(value, dict):
            raise UnusableError(place, "not a map", "write `{node: NAME, interface: eth1}`")
        given = self.check.map(place, value)
        self.check.keys(place, given, keys.ENDPOINT, keys.LINK_REFUSED)
        for key, right in (("node", "name a node"), ("interface", "write `eth1` for example")):
            if not given.get(key):
                raise UnusableError(f"{place}.{key}", "missing", right)
        node = self.check.text(f"{place}.node", given["node"])
        interface = self.check.text(f"{place}.interface", given["interface"])
        mac = self.check.mac(f"{place}.mac", given["mac"]) if "mac" in given else ""
        return self._end(place, node, interface, mac)

    def _end(self, place: str, node: str, interface: str, mac: str) -> Endpoint:
        if not re.fullmatch(r"[^\s/:]{1,15}", interface) or interface in (".", "..", "lo"):
            right = "1 to 15 characters without space, `/` and `:`, and not `lo`"
            raise UnusableError(place, f"`{interface}` is not an interface name", right)
        if not mac:
            # The same lab has the same addresses each time it is built.
            digest = hashlib.sha256(f"{self.lab}/{node}/{interface}".encode()).hexdigest()
            mac = ":".join((MAC_PREFIX, digest[0:2], digest[2:4], digest[4:6]))
        return Endpoint(node, interface, mac)
