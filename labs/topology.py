"""A lab's topology, read: nodes with everything they inherit, links, in what order things happen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labs.stages import Stage, StagePlan

DEFAULT_MTU = 9500
"""containerlab's MTU of links that state none."""
HOST = "host"
"""In place of a node: the end of a link in the network of the machine itself."""
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
class Healthcheck:
    """How to see that a node works; all times in seconds."""

    test: tuple[str, ...]
    """A command, which succeeds in a healthy node."""
    interval: int = 30
    timeout: int = 30
    retries: int = 3
    """Failures in a row that make a node unhealthy; those of the start period do not count."""
    start_period: int = 0


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
    """Commands to run in the node, in order, once it is configured."""
    binds: tuple[Bind, ...]
    env: Mapping[str, str]
    sysctls: Mapping[str, str]
    labels: Mapping[str, str]
    place: str
    hostname: str
    startup_delay: int = 0
    """Seconds to wait before it is made."""
    network: str = ""
    """Whose network it is in: empty for its own, ``host`` for the machine's, or another node's name."""
    stages: Mapping[Stage, StagePlan] = field(default_factory=dict)
    healthcheck: Healthcheck | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    node: str
    """A node's name, or HOST."""
    interface: str
    mac: str
    addresses: tuple[str, ...] = ()
    """With prefix length."""

    def __str__(self) -> str:
        return f"{self.node}:{self.interface}"


@dataclass(frozen=True, slots=True)
class Link:
    """A veth pair between two nodes or a node and the host, or a dummy interface, which has no other end."""

    a: Endpoint
    z: Endpoint | None
    mtu: int
    place: str
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def ends(self) -> tuple[Endpoint, ...]:
        return (self.a,) if self.z is None else (self.a, self.z)


@dataclass(frozen=True, slots=True)
class Topology:
    path: Path
    name: str
    prefix: str
    directory: Path
    """The lab's own directory (``__clabDir__``), which the runner makes and removes."""
    nodes: Mapping[str, Node]
    links: tuple[Link, ...]

    def interfaces(self, node: str) -> list[str]:
        """Return the names of a node's link ends."""
        return [end.interface for link in self.links for end in link.ends if end.node == node]
