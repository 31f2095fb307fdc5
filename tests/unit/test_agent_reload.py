"""What a new configuration may change while the agent runs, and by what names the rest is refused."""

from __future__ import annotations

import re

import pytest

from agent.reload import RestartNeededError, plan
from tests.unit.test_config_check import config

BEFORE = "routes: {resilient: {buckets: 64}}\n"


@pytest.mark.parametrize(
    ("after", "named"),
    [
        ("routes: {table: 7, checkNeighbours: true}", "routes.table"),
        ("bgp: {maxPaths: 3}\nroutes: {resilient: {buckets: 64}, metric: 7}", "bgp.maxPaths, routes.metric"),
        (BEFORE + "pools: {p: {cidr: 10.64.0.0/16}}", "pools"),
    ],
)
def test_each_key_that_needs_a_restart_is_named(after: str, named: str) -> None:
    words = f"{named}: a change needs a restart of the agent (which interrupts nothing)"
    with pytest.raises(RestartNeededError, match=f"^{re.escape(words)}$"):
        plan(config(BEFORE), config(after), {}, {})


def test_what_may_change() -> None:
    after = (
        "routes: {resilient: {buckets: 64}, onlink: {10.9.0.0/24: up0}}\n"
        "advertise: [10.1.0.0/24]\nonStop: {mode: drain}\n"
    )
    steps = plan(config(BEFORE), config(after), {}, {})
    assert (steps.advertised, steps.onlink, steps.metrics) == (("10.1.0.0/24",), ("10.9.0.0/24",), ())


def test_how_routes_are_kept_may_change() -> None:
    steps = plan(config(BEFORE), config("routes: {checkNeighbours: true, resilient: {idleTimer: 7}}"), {}, {})
    assert steps.check_neighbours == ("routes.checkNeighbours=true",)
    assert steps.resilient == ("routes.resilient={buckets: 128, idleTimer: 7, unbalancedTimer: 0}",)
    steps = plan(config(BEFORE), config("routes: {}"), {}, {})
    assert (steps.check_neighbours, steps.resilient) == ((), ("routes.resilient=none",))
    assert plan(config(BEFORE), config(BEFORE), {}, {}).resilient == ()


def test_where_metrics_are_served_may_change() -> None:
    here = "metrics: {listen: '127.0.0.1:9179'}\n"
    assert plan(config(""), config(here), {}, {}).metrics == ("127.0.0.1:9179",)
    assert plan(config(here), config("metrics: {}"), {}, {}).metrics == ("nowhere",)
    assert plan(config(here), config(here), {}, {}).metrics == ()
