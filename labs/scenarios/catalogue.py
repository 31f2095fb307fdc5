"""All scenarios, by name."""

from __future__ import annotations

from labs.scenarios import datapath, deaths, kernels, links, nodes, releases, restarts, routers, scale, sessions
from labs.scenarios.story import Scenario

_MODULES = (nodes, restarts, releases, deaths, sessions, routers, links, kernels, datapath, scale)

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for module in _MODULES for scenario in module.SCENARIOS}
