"""The agent as a whole: what runs, and whether it does its work."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from agent import views
from agent.metrics.catalogue import Reading, gauge, info
from agent.node import Node
from config.compiled import form

BUILD = info(
    "build",
    "What runs: podroute's version, its form (compiled or plain) and Python's version.",
    "version",
    "form",
    "python",
)
STATE = gauge("state", "1 for the state that the agent is in, 0 for the others.", "state")
CONVERGED = gauge("converged", "Whether `podroute wait-converged` would return at once (1) or not (0).")
READY = gauge("ready", "Whether containers can be added, as CNI's STATUS says (1) or not (0).")
FINDINGS = gauge("findings", "Things on this node that would break routing, as `podroute status` names them.")
RELOADED = gauge("config_last_reload_successful", "Whether the configuration's last reload was (1) or not (0).")
RELOADED_AT = gauge("config_last_reload_success_timestamp_seconds", "When the configuration that holds was read.")

METRICS = (BUILD, STATE, CONVERGED, READY, FINDINGS, RELOADED, RELOADED_AT)

_STATES: Final = ("starting", "running", "draining", "stopping")


@dataclass(frozen=True, slots=True)
class AgentFacts:
    compiled: bool
    state: str
    converged: bool
    ready: bool
    findings: int
    reloaded: bool
    reloaded_at: float


async def look(node: Node) -> AgentFacts:
    findings = len(await views.findings_of(node))
    return AgentFacts(
        form().directory is not None,
        node.state,
        not node.waiting_for(),
        node.ready(()) is None,
        findings,
        node.reloaded,
        node.configured_at,
    )


def read(facts: AgentFacts) -> Iterator[Reading]:
    yield BUILD.of(1, version("podroute"), "compiled" if facts.compiled else "plain", platform.python_version())
    for state in _STATES:
        yield STATE.of(facts.state == state, state)
    yield CONVERGED.of(facts.converged)
    yield READY.of(facts.ready)
    yield FINDINGS.of(facts.findings)
    yield RELOADED.of(facts.reloaded)
    yield RELOADED_AT.of(facts.reloaded_at)
