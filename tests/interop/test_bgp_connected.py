"""A router that announces the node's own connected subnets leads none of their traffic away."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.interop.test_bgp_graceful_restart import TOR_AS, Rack, rack  # noqa: F401 a fixture

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("subnet", "neighbour", "metrics"),
    [("10.1.1.0/24", "10.1.1.77", (0, 20)), ("fd00:1::/64", "fd00:1::77", (256, 512))],
)
async def test_a_connected_subnet_wins_over_a_learned_one(
    rack: Rack,  # noqa: F811
    subnet: str,
    neighbour: str,
    metrics: tuple[int, int],
) -> None:
    """As by the administrative distances of other routers; `podroute explain` says what shadows the learned route."""
    family = "ipv6" if ":" in subnet else "ipv4"
    lines = f"router bgp {TOR_AS}", f"address-family {family} unicast", f"network {subnet}"
    await asyncio.to_thread(rack.frr.configure, *lines)
    await rack.agent.until(subnet, "/v1/routes")
    await rack.agent.converged()
    show = "ip", "-json", f"-{family[-1]}", "route"
    there = json.loads(rack.node.run(*show, "show", subnet))
    assert sorted(route.get("metric", 0) for route in there) == list(metrics)
    (way,) = json.loads(rack.node.run(*show, "get", neighbour))
    assert (way["dev"], "gateway" in way) == ("eth0", False)
    summary = (await rack.agent.get("/v1/explain", prefix=subnet))["summary"]
    wanted = f"metric {metrics[1]}: shadowed by a route of protocol kernel with metric {metrics[0]}"
    assert wanted in summary
