"""A lab on this host without Docker: build it from a topology file, find it again, take it down completely.

A lab outlives the process that built it; any other process finds it by name. Without root it is made in a
user namespace, which the process that makes it enters.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from labs import reading
from labs.building import Building, Progress
from labs.errors import CommandError, LabError
from labs.host import check_host
from labs.namespaces import Namespaces
from labs.node import Node
from labs.processes import Process
from labs.rights import become_root, join
from labs.state import ROOT, Record, names
from labs.teardown import take_down
from labs.topology import Topology
from labs.waiting import off_loop

TOPOLOGIES = Path(__file__).parent / "topologies"
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

    def __init__(self, record: Record, nodes: Mapping[str, Node]) -> None:
        self.name = record.name
        self.directory = record.directory
        self.nodes = dict(nodes)
        self.problems: list[str] = []
        self._record = record

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
        building = Building(plan, record, progress or (lambda _: None))
        net = cls(record, building.nodes)
        try:
            await building.run()
        except BaseException:
            net.nodes = building.nodes
            await asyncio.shield(net.down())
            raise
        record.release()
        net.nodes, net.problems = building.nodes, building.problems
        return net

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
