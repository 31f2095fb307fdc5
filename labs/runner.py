"""Labs on this host without Docker: build one from a topology file, find it again, take it down completely.

    async with lab("two-racks") as net:
        await net.node("n1").ping("10.255.0.11")

A lab outlives the process that built it; any other process finds it by name. Without root it is made in a
user namespace, which the process that makes it enters.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from labs import bridges, frr, images, keys, reading, topology
from labs.cables import Cabling
from labs.errors import CommandError, LabError
from labs.filesystem import Mount
from labs.host import check_host, run_on_host
from labs.lifecycle import Lifecycle, apart, until_exit, until_healthy
from labs.namespaces import Namespaces
from labs.node import Node
from labs.processes import Process
from labs.rights import become_root, join
from labs.saving import fresh_folder, save
from labs.stages import Stage, StageExec, Target
from labs.state import ROOT, Record, names
from labs.teardown import take_down
from labs.topology import HOST, Topology
from labs.waiting import off_loop, side_by_side

TOPOLOGIES = Path(__file__).parent / "topologies"
Progress = Callable[[str], None]
T = TypeVar("T")


def resolve(topology_file: str | Path) -> Path:
    """Return the topology file of that path, or the shipped one of that name (``two-racks``). Raises LabError."""
    path = Path(topology_file)
    if path.exists():
        return path
    shipped = TOPOLOGIES / f"{topology_file}.clab.yml"
    if shipped.exists():
        return shipped
    known = ", ".join(sorted(file.name.removesuffix(".clab.yml") for file in TOPOLOGIES.glob("*.clab.yml")))
    raise LabError(f"{topology_file}: no such file, and no shipped topology of that name: {known}")


def load(topology_file: str | Path, *, name: str | None = None, root: Path = ROOT) -> Topology:
    """Read and check a topology file, or a shipped topology by its name. Raises TopologyError with all faults."""
    return reading.load(resolve(topology_file), directories=root, name=name)


class Lab:
    """A lab that is up. ``problems`` holds what went wrong without keeping it from coming up."""

    def __init__(self, record: Record, nodes: Mapping[str, Node], progress: Progress | None = None) -> None:
        self.name = record.name
        self.directory = record.directory
        self.nodes = dict(nodes)
        self.problems: list[str] = []
        self._record = record
        self._spaces: dict[str, Namespaces] = {}
        self._progress = progress or (lambda _: None)

    @classmethod
    async def up(
        cls,
        source: str | Path | Topology,
        *,
        name: str | None = None,
        progress: Progress | None = None,
        root: Path = ROOT,
    ) -> Lab:
        """Build a lab and return it: links up, FRR configured, commands started, ``exec`` done.

        ``source`` is a file, the name of a shipped topology, or what ``load`` returned (which has its name and root
        already). Raises LabError; then nothing of it is left.
        """
        plan = source if isinstance(source, Topology) else load(source, name=name, root=root)
        become_root()
        check_host(plan)
        record = Record(plan.name, plan.directory.parents[1])
        record.create()
        built = cls(record, {}, progress)
        try:
            await built._build(plan)
        except BaseException:
            await asyncio.shield(built.down())
            raise
        record.release()
        return built

    @classmethod
    def find(cls, name: str, *, root: Path = ROOT, look: bool = False) -> Lab:
        """Return a lab that is up, whoever built it. Raises LabError.

        A process that is not root enters the lab's user namespace for good, unless ``look`` says that it will only
        look, and run nothing in the lab.
        """
        record = Record(name, root)
        content = record.read()["nodes"]
        if not look:
            join(next(known["holder"]["pid"] for known in content.values()))
        nodes = {}
        for node, known in content.items():
            nodes[node] = Node(
                name,
                node,
                Namespaces(Process(known["holder"]["pid"], known["holder"]["start"])),
                directory=record.directory / "nodes" / node,
                command=known["command"],
                env=known["env"],
                image=known["image"],
            )
        return cls(record, nodes)

    @staticmethod
    def names(*, root: Path = ROOT) -> list[str]:
        """Return the names of the labs on this host, half-made ones too."""
        return names(root)

    def node(self, name: str) -> Node:
        """Return a node. Raises LabError where there is none of that name."""
        try:
            return self.nodes[name]
        except KeyError:
            raise LabError(f"lab `{self.name}` has no node `{name}`, its nodes: {', '.join(self.nodes)}") from None

    def describe(self) -> dict[str, Any]:
        """Return the lab's record as it stands on the host."""
        return self._record.read()

    @overload
    async def wait_for(
        self,
        what: str,
        probe: Callable[[], Awaitable[T]],
        *,
        timeout: float = 30.0,  # noqa: ASYNC109
        interval: float = 0.05,
    ) -> T: ...

    @overload
    async def wait_for(
        self,
        what: str,
        probe: Callable[[], T],
        *,
        timeout: float = 30.0,  # noqa: ASYNC109
        interval: float = 0.05,
    ) -> T: ...

    async def wait_for(
        self,
        what: str,
        probe: Callable[[], Any],
        *,
        timeout: float = 30.0,  # noqa: ASYNC109
        interval: float = 0.05,
    ) -> Any:
        """Ask ``probe`` until its answer is true, and return that. Failing commands count as no.

        For what cannot be awaited, as the state of another program. Raises LabError with ``what``, the last answer and
        the last error after ``timeout`` seconds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            try:
                last = probe()
                if inspect.isawaitable(last):
                    last = await last
                if last:
                    return last
            except CommandError as error:
                last = error
            if loop.time() > deadline:
                raise LabError(f"lab `{self.name}`: no {what} within {timeout:g} s, last seen: {last}")
            await asyncio.sleep(interval)

    async def down(self) -> None:
        """Remove the lab with everything in it."""

        def remove() -> None:
            take_down(self.name, root=self._record.root, record=self._record)
            for node in self.nodes.values():
                node.reap()

        await off_loop(remove)

    # Building

    async def _build(self, plan: Topology) -> None:
        plan.directory.mkdir()
        for node in plan.nodes.values():
            (self.directory / "nodes" / node.name / "frr").mkdir(parents=True)
            (plan.directory / node.name).mkdir()
            for bind in node.binds:
                if bind.make:
                    bind.source.mkdir(parents=True, exist_ok=True)
        self._progress(f"{len(plan.nodes)} nodes, {len(plan.links)} links")
        cabling = Cabling(self.name, plan.links, self._spaces, apart(plan))
        lifecycle = Lifecycle(plan, self._stage_exec)
        try:
            await side_by_side(self._bring_up(plan, node, lifecycle, cabling) for node in plan.nodes.values())
        finally:
            cabling.close()
        self.nodes = {name: self.nodes[name] for name in plan.nodes}
        self._check_commands(lifecycle)
        self._record.write({**self._content(plan), "state": "up"})
        self._progress(f"lab {self.name} is up")

    async def _bring_up(self, plan: Topology, node: topology.Node, lifecycle: Lifecycle, cabling: Cabling) -> None:
        async with lifecycle.stage(node.name, Stage.CREATE):
            if node.startup_delay:
                self._progress(f"{node.name}: starts in {node.startup_delay} s")
                await asyncio.sleep(node.startup_delay)
            await self._make_node(plan, node)
        async with lifecycle.stage(node.name, Stage.CREATE_LINKS):
            await cabling.attach(node.name)
            if node.kind == keys.BRIDGE:
                await bridges.build(self.node(node.name), plan.interfaces(node.name))
        async with lifecycle.stage(node.name, Stage.CONFIGURE):
            await self._start_node(node)
        await self._exec(node)
        if node.healthcheck and lifecycle.calls_for(node.name, Stage.HEALTHY):
            async with lifecycle.stage(node.name, Stage.HEALTHY):
                await until_healthy(self.node(node.name), node.healthcheck)
                self._progress(f"{node.name}: healthy")
        if node.command and lifecycle.calls_for(node.name, Stage.EXIT):
            async with lifecycle.stage(node.name, Stage.EXIT):
                await until_exit(self.node(node.name))
                self._progress(f"{node.name}: its command has ended")

    async def _make_node(self, plan: Topology, node: topology.Node) -> None:
        directory = self.directory / "nodes" / node.name
        logs = directory / "frr"
        mounts = [Mount(logs, "/var/log/frr", place=node.place)] if images.is_frr(node.image) else []
        mounts += [Mount(bind.source, bind.target, bind.read_only, bind.place) for bind in node.binds]
        network: Namespaces | Literal["host"] | None = self._spaces.get(node.network)
        if node.network == HOST:
            network = "host"
        namespaces = await off_loop(
            lambda: Namespaces.create(
                self.name,
                node.name,
                hostname=node.hostname,
                network=network,
                mounts=mounts,
                sysctls=node.sysctls,
                place=node.place,
            )
        )
        self._spaces[node.name] = namespaces
        own = node.command or images.command(node.image)
        env = {**node.env, **{f"CLAB_LABEL_{_variable(key)}": value for key, value in node.labels.items()}}
        env["CLAB_INTFS"] = str(len(plan.interfaces(node.name)))
        self.nodes[node.name] = Node(
            self.name, node.name, namespaces, directory=directory, command=own, env=env, image=node.image
        )

    async def _start_node(self, plan: topology.Node) -> None:
        node = self.node(plan.name)
        if node.command:
            await off_loop(node.start)
            self._progress(f"{node.name}: {' '.join(node.command)}")
        elif images.is_frr(plan.image):
            daemons = await frr.start(node)
            self._progress(f"{node.name}: FRR with {', '.join(daemons)}")

    async def _exec(self, plan: topology.Node) -> None:
        node = self.node(plan.name)
        for argv in plan.exec:
            try:
                result = await node.run(*argv, timeout=120)
            except LabError as error:
                self._problem(str(error))
            else:
                self._note(node.name, f"$ {' '.join(argv)}\n{result.stdout}{result.stderr}")

    async def _stage_exec(self, name: str, command: StageExec) -> None:
        """Run a command of a stage. As in containerlab its failure does not stop anything."""
        node = self.node(name) if name in self.nodes else None
        try:
            if command.target is Target.CONTAINER:
                if node is None:
                    raise LabError(f"node {name}: {' '.join(command.argv)}: the node is not there yet")
                result = await node.run(*command.argv, timeout=120)
                said, where = result.stdout + result.stderr, name
            else:
                said, where = await run_on_host(command.argv, timeout=120), "host"
        except LabError as error:
            self._problem(str(error))
        else:
            self._note(name, f"{where}$ {' '.join(command.argv)}\n{said}")

    def _note(self, node: str, text: str) -> None:
        """Append to the log of what the runner did for a node."""
        with open(self.directory / "nodes" / node / "exec.log", "a") as log:
            log.write(text)

    def _check_commands(self, lifecycle: Lifecycle) -> None:
        for node in self.nodes.values():
            # One whose end was waited for was meant to end.
            if node.command and node.process is None and not lifecycle.calls_for(node.name, Stage.EXIT):
                said = node.log.read_text(errors="replace").strip().splitlines()[-5:]
                self._problem(f"node {node.name}: `{' '.join(node.command)}` has ended: {' / '.join(said)}")

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        self._progress(f"problem: {text}")

    def _content(self, plan: Topology) -> dict[str, Any]:
        return {
            "name": self.name,
            "prefix": plan.prefix,
            "topology": str(plan.path.absolute()),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "nodes": {
                name: {
                    "kind": plan.nodes[name].kind,
                    "image": node.image,
                    "group": plan.nodes[name].group,
                    "labels": dict(plan.nodes[name].labels),
                    "command": list(node.command),
                    "env": node.env,
                    "holder": {"pid": node.namespaces.holder.pid, "start": node.namespaces.holder.start},
                    "logs": str(node.directory),
                }
                for name, node in self.nodes.items()
            },
            "links": [
                {
                    "endpoints": {
                        side: {"node": end.node, "interface": end.interface, "mac": end.mac}
                        for side, end in zip("az", link.ends, strict=False)
                    },
                    "mtu": link.mtu,
                    "labels": dict(link.labels),
                }
                for link in plan.links
            ],
        }


@asynccontextmanager
async def lab(
    source: str | Path | Topology,
    *,
    name: str | None = None,
    progress: Progress | None = None,
    root: Path = ROOT,
    save_to: Path | None = None,
) -> AsyncIterator[Lab]:
    """Build a lab, and take it down at the end whatever happens. Raises LabError where it came up with problems.

    When the body fails, everything about the lab is first saved into a fresh folder in ``save_to`` (the directory for
    temporary files by default); its path is printed and noted on the exception.
    """
    net = await Lab.up(source, name=name, progress=progress, root=root)
    try:
        if net.problems:
            raise LabError("\n".join(net.problems))
        yield net
    except Exception as error:
        await _save_failed(net, error, save_to)
        raise
    finally:
        await asyncio.shield(net.down())


async def _save_failed(net: Lab, error: Exception, save_to: Path | None) -> None:
    """Save a lab that failed; what goes wrong in that must not hide the failure itself."""
    try:
        async with asyncio.timeout(60):
            folder = await save(net, fresh_folder(net.name, save_to))
    except (LabError, OSError) as problem:
        told = f"lab {net.name} could not be saved: {problem}"
    else:
        told = f"lab {net.name} is saved in {folder}"
    error.add_note(told)
    print(told, file=sys.stderr)


def _variable(label: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in label).upper()
