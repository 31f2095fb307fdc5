"""Topology files in containerlab's format (https://containerlab.dev/manual/topo-def-file/), read and checked.

``load`` returns the nodes with everything inherited and expanded, or raises one TopologyError that holds every fault.
What this runner does not build is refused by the name of its key, before anything is created.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from labs import keys, stage_keys
from labs.checks import Checker, Given, UnusableError
from labs.envfiles import EnvFileError, read_env
from labs.errors import TopologyError
from labs.keys import BRIDGE, KINDS_HERE
from labs.link_keys import WORDS, Links
from labs.source import Value, read
from labs.stages import Stage, StageExec, StagePlan, cycle, describe_cycle, requirements
from labs.topology import HOST, NAME, Bind, Link, Node, Topology

LONGEST_BRIDGE = 15
"""Characters of an interface's name."""
IN_NAME = {"__gitBranch__": ("--abbrev-ref", "HEAD"), "__gitHash__": ("--short=7", "HEAD")}
"""What may stand in a lab's name, and the arguments of ``git rev-parse`` that give it."""
TEMPLATE = ".gotmpl"


def load(
    path: Path, *, directories: Path, name: str | None = None, environ: Mapping[str, str] | None = None
) -> Topology:
    """Read a topology file. ``name`` replaces the name in the file, so that one file makes several labs.

    ``directories`` is where the runner keeps one directory per lab; the lab's own is ``NAME/clab`` below it.
    Raises TopologyError.
    """
    environ = os.environ if environ is None else environ
    if path.name.endswith(TEMPLATE):
        right = "render it into a *.clab.yml file"
        raise TopologyError([f"{path}: Go templates are not supported by this runner, {right}"])
    document = read(path, environ)
    check = Checker(str(path))
    top = check.map("", document)
    check.keys("", top, keys.TOP, keys.TOP_REFUSED)
    right = "lab names are letters, digits, `.`, `_` and `-`"
    lab = name or _named(check.text("name", top.get("name"), required=right), path.absolute().parent)
    if lab and not NAME.fullmatch(lab):
        check.fault("name", f"`{lab}` is not a lab name", "begin with a letter or digit, then also `.`, `_` and `-`")
    if "topology" not in top:
        check.fault("topology", "missing", "it holds `nodes` and `links`")
    body = check.map("topology", top.get("topology"))
    check.keys("topology", body, keys.TOPOLOGY, frozenset())
    builder = _Builder(check, path, lab, directories / (lab or "unnamed") / "clab", environ)
    nodes = builder.nodes(body)
    links = builder.links(body.get("links"), nodes)
    builder.order(nodes)
    if check.faults:
        raise TopologyError(check.faults)
    prefix = check.text("prefix", top.get("prefix")) if "prefix" in top else "clab"
    return Topology(path, lab, prefix, builder.directory, nodes, links)


def _named(name: str, directory: Path) -> str:
    for word, arguments in IN_NAME.items():
        if word in name:
            try:
                git = subprocess.run(["git", "-C", directory, "rev-parse", *arguments], capture_output=True, text=True)
                said = git.stdout.strip() if git.returncode == 0 else "none"
            except OSError:
                said = "none"
            name = name.replace(word, said.replace("/", "-"))
    return name


class _Builder:
    """The checks of one file. Faults go to the checker; what is returned counts only where there is none."""

    def __init__(self, check: Checker, path: Path, lab: str, directory: Path, environ: Mapping[str, str]) -> None:
        self.check = check
        self.path = path
        self.lab = lab
        self.directory = directory
        self.environ = environ
        self.waits: dict[str, list[stage_keys.WrittenWait]] = {}
        """What each node waits for, with its place."""

    # Nodes

    def nodes(self, body: Mapping[str, Value]) -> dict[str, Node]:
        defaults = self._definition("topology.defaults", body.get("defaults"))
        kinds = self._definitions("topology.kinds", body.get("kinds"))
        groups = self._definitions("topology.groups", body.get("groups"))
        for kind in kinds:
            if kind not in keys.KINDS:
                self.check.fault(f"topology.kinds.{kind}", f"kind `{kind}` cannot be built here", KINDS_HERE)
        given = self.check.map("topology.nodes", body.get("nodes"))
        if not given:
            self.check.fault("topology.nodes", "no nodes", "name at least one")
        nodes = {}
        for name, value in given.items():
            place = f"topology.nodes.{name}"
            if not NAME.fullmatch(name) or len(name) > 63:
                right = "begin with a letter or digit, then also `.`, `_` and `-`, at most 63 characters"
                self.check.fault(place, f"`{name}` is not a node name", right)
            elif name in WORDS:
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
        nearest, usual = (groups.get(level.first("group") or "", empty) for level in (own, defaults))
        kind = own.first("kind") or nearest.first("kind") or usual.first("kind") or defaults.first("kind")
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
            right = "`quay.io/frrouting/frr:8.4.1` runs this host's FRR, `localhost/podroute:dev` this podroute"
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
        mode = merged.first("network-mode") or ""
        network = HOST if mode == HOST else mode.partition("container:")[2]
        if network == HOST:
            where = merged.place("network-mode") or place
            if kind == BRIDGE:
                self.check.fault(
                    where, "a bridge would be the host's", "leave it out: bridges have a network of their own"
                )
            for setting in merged.maps.get("sysctls", {}):
                self.check.fault(where, f"`{setting}` of `sysctls` would change the host", "leave one of the two out")
        self.waits[name] = [wait for written in merged.stages.values() for wait in written.wait_for]
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
            hostname=merged.first("hostname") or name,
            network=network,
            stages={stage: self._stage(written, name) for stage, written in merged.stages.items()},
            healthcheck=merged.healthcheck,
        )

    def _stage(self, written: stage_keys.Written, node: str) -> StagePlan:
        execs = []
        for given in written.execs:
            words = self.check.words(given.command.place, self._magic(given.command.text, node))
            execs.append(StageExec(words, given.target, given.phase))
        return StagePlan(tuple((wait.node, wait.stage) for wait in written.wait_for), tuple(execs))

    def _env_files(self, files: Iterable[Given]) -> dict[str, str]:
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
            # containerlab's directory of a lab is named so.
            ("__clabLabName__", f"clab-{self.lab}"),
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
        reader = Links(self.check, self.lab)
        for index, item in enumerate(self.check.list("topology.links", value)):
            place = f"topology.links[{index}]"
            with self.check.collecting():
                link = reader.read(place, item)
                links.append(link)
                where = f"{place}.{'endpoint' if 'endpoint' in self.check.map(place, item) else 'endpoints'}"
                for end in link.ends:
                    if end.node != HOST and end.node not in nodes:
                        self.check.fault(where, f"no node `{end.node}`", self.check.suggestion(end.node, nodes))
                        continue
                    network = _network(end.node, nodes)
                    if network == HOST and end.node != HOST:
                        right = f"name its end `host:{end.interface}`"
                        self.check.fault(where, f"node `{end.node}` is in the host's network", right)
                    if other := used.get((network, end.interface)):
                        self.check.fault(where, f"{end} is taken by {other}", "use another interface name")
                    used[network, end.interface] = place
        return tuple(links)

    # What waits for what

    def order(self, nodes: Mapping[str, Node]) -> None:
        """Check that everything that is waited for is there and can happen."""
        for node in nodes.values():
            if node.network not in ("", HOST) and node.network not in nodes:
                where = f"topology.nodes.{node.name}.network-mode"
                self.check.fault(where, f"no node `{node.network}`", self.check.suggestion(node.network, nodes))
            for wait in self.waits[node.name]:
                other = nodes.get(wait.node)
                if other is None:
                    self.check.fault(wait.place, f"no node `{wait.node}`", self.check.suggestion(wait.node, nodes))
                elif wait.stage is Stage.HEALTHY and not other.healthcheck:
                    right = "give it one, or wait for `configure`"
                    self.check.fault(wait.place, f"node `{wait.node}` has no healthcheck", right)
                elif wait.stage is Stage.EXIT and not other.command:
                    right = "give it a `cmd`, or wait for another stage"
                    self.check.fault(wait.place, f"node `{wait.node}` has no command that could end", right)
            if Stage.HEALTHY in node.stages and not node.healthcheck:
                where = f"topology.nodes.{node.name}.healthcheck"
                self.check.fault(where, "missing, and there is a stage `healthy`", "give it one")
            if Stage.EXIT in node.stages and not node.command:
                where = f"topology.nodes.{node.name}.cmd"
                self.check.fault(where, "missing, and there is a stage `exit`", "give it one")
        if steps := cycle(requirements(nodes)):
            right = "remove one of these `wait-for` or `network-mode`"
            self.check.fault("topology.nodes", describe_cycle(steps), right)


def _network(name: str, nodes: Mapping[str, Node]) -> str:
    """Return the node that owns the network which a node is in, or HOST."""
    seen = {name}
    while name in nodes and nodes[name].network and nodes[name].network not in seen:
        name = nodes[name].network
        seen.add(name)
    return name
