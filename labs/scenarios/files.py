"""Configuration files that scenarios change: copies of the shipped ones, which nodes see in place of those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from labs.node import Node
from labs.topology import Bind, Topology

CONFIG = "/etc/podroute/podroute.yaml"
FRR_CONFIG = "/etc/frr/frr.conf"
FRR_DAEMONS = "/etc/frr/daemons"

Given = dict[str, Any]


def own_file(plan: Topology, directory: Path, node: str, target: str, change: Callable[[str], str]) -> Topology:
    """Return the topology with a changed, writable copy of what a node has at ``target``."""
    known = plan.nodes[node]
    binds = []
    for bind in known.binds:
        if bind.target == target:
            copy = directory / f"{node}-{Path(target).name}"
            copy.write_text(change(bind.source.read_text()))
            bind = Bind(copy, target, False, bind.place, False)
        binds.append(bind)
    return replace(plan, nodes={**plan.nodes, node: replace(known, binds=tuple(binds))})


def configured(
    plan: Topology, directory: Path, change: Callable[[str, Given], None] = lambda node, given: None
) -> Topology:
    """Return the topology with a changed, writable copy of every podroute.yaml; ``change`` gets name and content."""

    for name, node in plan.nodes.items():

        def changed(text: str, name: str = name) -> str:
            given = yaml.safe_load(text)
            change(name, given)
            return yaml.safe_dump(given)

        if any(bind.target == CONFIG for bind in node.binds):
            plan = own_file(plan, directory, name, CONFIG, changed)
    return plan


def edit(node: Node, change: Callable[[Given], None]) -> None:
    """Change the podroute.yaml of a running node, which is a copy that ``configured`` made."""
    path = node.root / CONFIG[1:]
    given = yaml.safe_load(path.read_text())
    change(given)
    path.write_text(yaml.safe_dump(given))
