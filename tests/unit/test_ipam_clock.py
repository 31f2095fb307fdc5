"""The wall clock is set back, or ahead: addresses rest as they should, and leases do not notice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ipam.given import Handle
from ipam.service import Ipam
from tests.unit.test_ipam_service import configuration

POOL = {"p": {"cidr": "10.64.0.0/30", "blockSize": 30}}
DAY = 86400.0


def handle(name: str) -> Handle:
    return Handle("net", name, "eth0")


@pytest.mark.parametrize("jump", [-DAY, DAY])
async def test_an_address_rests_once_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    first = Ipam(configuration(tmp_path, pools=POOL), cool_down=60)
    await first.start()
    order = [(await first.allocate(handle(name)))[0].address for name in "abcd"]
    for name in "cab":
        await first.release(handle(name))
    await first.stop()

    now = time.time() + jump
    monkeypatch.setattr(time, "time", lambda: now)
    again = Ipam(configuration(tmp_path, pools=POOL), cool_down=60)
    await again.start()
    # First in, first out, as before; and the lease of the earlier run was in nobody's way
    given = [(await again.allocate(handle(f"new{number}")))[0].address for number in range(3)]
    assert given == [order[2], order[0], order[1]]
    assert not again.store().problem
    # What is released under the jumped clock rests for the present run, not for a day
    await again.release(handle("d"))
    states = again.picture(4, again.blocks()[0].prefix)
    assert states.count("resting") == 1
    assert (await again.allocate(handle("last")))[0].address == order[3]
    await again.stop()
