"""Building a lab: its nodes go through their stages side by side, and the record says what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from labs import bridges, frr, images, keys, topology
from labs.cables import Cabling
from labs.errors import LabError
from labs.filesystem import Mount
from labs.host import run_on_host
from labs.lifecycle import Lifecycle, apart, until_exit, until_healthy
from labs.namespaces import Namespaces
from labs.node import Node
from labs.stages import Stage, StageExec, Target
from labs.state import Record
from labs.topology import HOST, Topology
from labs.waiting import off_loop, side_by_side

Progress = Callable[[str], None]


class Building:
    """Makes what a topology says. ``nodes`` holds those made so far, ``problems`` what went wrong without ending it."""

    def __init__(self, plan: Topology, record: Record, progress: Progress) -> None:
        self.nodes: dict[str, Node] = {}
        self.problems: list[str] = []
        self._plan = plan
        self._record = record
        self._directory = record.directory
        self._progress = progress
        self._spaces: dict[str, Namespaces] = {}
        self._cabling = Cabling(plan.name, plan.links, self._spaces, apart(plan))
        self._lifecycle = Lifecycle(plan, self._stage_exec)

    async def run(self) -> None:
        """Build all of it. Raises LabError; what was made until then is still there."""
        plan = self._plan
        plan.directory.mkdir()
        for node in plan.nodes.values():
            (self._directory / "nodes" / node.name / "frr").mkdir(parents=True)
            (plan.directory / node.name).mkdir()
        # After that: a directory that nodes share may be another node's own, as under containerlab.
        for node in plan.nodes.values():
            for bind in node.binds:
                if bind.make:
                    bind.source.mkdir(parents=True, exist_ok=True)
        self._progress(f"{len(plan.nodes)} nodes, {len(plan.links)} links")
        try:
            await side_by_side(self._bring_up(node) for node in plan.nodes.values())
        finally:
            self._cabling.close()
        self.nodes = {name: self.nodes[name] for name in plan.nodes}
        self._check_commands()
        self._record.write({**self._content(), "state": "up"})
        self._progress(f"lab {self._plan.name} is up")

    async def _bring_up(self, node: topology.Node) -> None:
        lifecycle = self._lifecycle
        async with lifecycle.stage(node.name, Stage.CREATE):
            if node.startup_delay:
                self._progress(f"{node.name}: starts in {node.startup_delay} s")
                await asyncio.sleep(node.startup_delay)
            await self._make_node(node)
        async with lifecycle.stage(node.name, Stage.CREATE_LINKS):
            await self._cabling.attach(node.name)
            if node.kind == keys.BRIDGE:
                await bridges.build(self.nodes[node.name], self._plan.interfaces(node.name))
        async with lifecycle.stage(node.name, Stage.CONFIGURE):
            await self._start_node(node)
        await self._exec(node)
        if node.healthcheck and lifecycle.calls_for(node.name, Stage.HEALTHY):
            async with lifecycle.stage(node.name, Stage.HEALTHY):
                await until_healthy(self.nodes[node.name], node.healthcheck)
                self._progress(f"{node.name}: healthy")
        if node.command and lifecycle.calls_for(node.name, Stage.EXIT):
            async with lifecycle.stage(node.name, Stage.EXIT):
                await until_exit(self.nodes[node.name])
                self._progress(f"{node.name}: its command has ended")

    async def _make_node(self, node: topology.Node) -> None:
        directory = self._directory / "nodes" / node.name
        logs = directory / "frr"
        mounts = [Mount(logs, "/var/log/frr", place=node.place)] if images.is_frr(node.image) else []
        mounts += [Mount(bind.source, bind.target, bind.read_only, bind.place) for bind in node.binds]
        network: Namespaces | Literal["host"] | None = self._spaces.get(node.network)
        if node.network == HOST:
            network = "host"
        namespaces = await off_loop(
            lambda: Namespaces.create(
                self._plan.name,
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
        env["CLAB_INTFS"] = str(len(self._plan.interfaces(node.name)))
        self.nodes[node.name] = Node(
            self._plan.name, node.name, namespaces, directory=directory, command=own, env=env, image=node.image
        )

    async def _start_node(self, plan: topology.Node) -> None:
        node = self.nodes[plan.name]
        if node.command:
            await off_loop(node.start)
            self._progress(f"{node.name}: {' '.join(node.command)}")
        elif images.is_frr(plan.image):
            daemons = await frr.start(node)
            self._progress(f"{node.name}: FRR with {', '.join(daemons)}")

    async def _exec(self, plan: topology.Node) -> None:
        node = self.nodes[plan.name]
        for argv in plan.exec:
            try:
                result = await node.run(*argv, timeout=120)
            except LabError as error:
                self._problem(str(error))
            else:
                self._note(node.name, f"$ {' '.join(argv)}\n{result.stdout}{result.stderr}")

    async def _stage_exec(self, name: str, command: StageExec) -> None:
        """Run a command of a stage. As in containerlab its failure does not stop anything."""
        node = self.nodes.get(name)
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
        with open(self._directory / "nodes" / node / "exec.log", "a") as log:
            log.write(text)

    def _check_commands(self) -> None:
        for node in self.nodes.values():
            # One whose end was waited for was meant to end.
            if node.command and node.process is None and not self._lifecycle.calls_for(node.name, Stage.EXIT):
                said = node.log.read_text(errors="replace").strip().splitlines()[-5:]
                self._problem(f"node {node.name}: `{' '.join(node.command)}` has ended: {' / '.join(said)}")

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        self._progress(f"problem: {text}")

    def _content(self) -> dict[str, Any]:
        plan = self._plan
        return {
            "name": self._plan.name,
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


def _variable(label: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in label).upper()
