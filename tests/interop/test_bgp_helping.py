"""Graceful restart, seen from who helps (RFC 4724 section 4.2): FRR, BIRD and GoBGP are killed and come back."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from config.prefix import FAMILIES
from tests.interop.bench import Bench, entry
from tests.interop.routers import Setup
from tests.interop.test_bgp_features import to_router

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif("INTEROP_PAGE" not in os.environ, reason="part of `make interop`"),
]

STAYS4, GOES4, STAYS6 = "192.0.2.0/24", "198.51.100.0/24", "2001:db8:1::/48"


async def test_a_router_that_is_killed_and_comes_back(bench: Bench) -> None:
    """What it announced forwards on meanwhile; what it does not announce any more goes with its End-of-RIB."""
    setup = Setup(routes=(STAYS4, GOES4, STAYS6), restarts=True)
    await bench.begin(setup)
    async with bench.speaker(to_router(), listen=()) as node:
        rib, every = node.speaker.rib, {entry(text) for text in setup.routes}
        await node.until(lambda: every <= node.fib.keys(), "the router's prefixes")
        await node.until(
            lambda: set(rib.end_of_rib_received("tor")) == set(FAMILIES), "End-of-RIB, before which nothing is kept"
        )
        await asyncio.to_thread(bench.router.close)
        with bench.works("graceful restart, podroute as helper: routes stay"):
            await node.lost("tor")
            await node.until(lambda: node.speaker.idle, "the decision")
            assert every <= node.fib.keys()
            assert [rib.stale("tor", family) for family in FAMILIES] == [2, 1]
        await bench.begin(replace(setup, routes=(STAYS4, STAYS6), restarted=True))
        with bench.works("graceful restart, podroute as helper: what is not announced again goes"):
            await node.until(
                lambda: (
                    node.status("tor").established_count == 2
                    and set(rib.end_of_rib_received("tor")) == set(FAMILIES)
                    and not any(rib.stale("tor", family) for family in FAMILIES)
                ),
                "End-of-RIB",
            )
            await node.until(lambda: node.fib.keys() == every - {entry(GOES4)}, "what the router has now")
