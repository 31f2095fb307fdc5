"""The core scenarios: each keeps its promise under traffic."""

from __future__ import annotations

import os
import shutil

import pytest

from labs.scenarios.catalogue import SCENARIOS
from labs.scenarios.story import play

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(not shutil.which("vtysh"), reason="needs FRR: install the package frr"),
]

NAME = f"scenario-{os.getpid()}"


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.core])
async def test_the_promise_is_kept(name: str) -> None:
    result = await play(SCENARIOS[name])
    story = [f"{at:.3f} {text}" for at, text in result.events]
    assert [check.text for check in result.checks if not check.held] == [], "\n".join(story)
    assert len(result.flows) == 4
    assert all(flow.sent > 50 for flow in result.flows)
