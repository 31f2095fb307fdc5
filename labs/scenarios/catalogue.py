"""All scenarios, by name."""

from __future__ import annotations

from labs.scenarios import agents, fabric, throughput
from labs.scenarios.story import Scenario

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for scenario in (*agents.SCENARIOS, *fabric.SCENARIOS, *throughput.SCENARIOS)
}
