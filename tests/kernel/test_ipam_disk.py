"""A state directory on a disk that runs full: nothing is lost or given twice, and it goes on once there is room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
NODE = """
import asyncio, os, sys
from pathlib import Path
from ipam.errors import IpamError
from ipam.given import Handle
from tests.unit.test_ipam_service import configuration
from ipam.service import Ipam

disk = Path(sys.argv[1])
config = configuration(disk, pools={"p": {"cidr": "10.64.0.0/16", "blockSize": 22}})

def fill_disk():
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

async def fill(ipam, name, limit):
    given = {}
    try:
        for number in range(limit):
            handle = Handle("net", f"{name}{number}", "eth0")
            given[handle] = await ipam.allocate(handle, attributes={"padding": "x" * 1000})
    except IpamError as error:
        return given, error
    return given, None

async def main():
    ipam = Ipam(config, cool_down=0)
    await ipam.start()
    before, error = await fill(ipam, "before", 20)
    assert error is None, error
    fill_disk()
    meanwhile, error = await fill(ipam, "meanwhile", 900)
    assert error is not None
    print(error.code, str(error))
    for handle, addresses in before.items():  # what is there goes on
        assert await ipam.allocate(handle, attributes={"padding": "x" * 1000}) == addresses
    os.unlink(disk / "filler")
    after, error = await fill(ipam, "after", 50)
    assert error is None, error
    everything = before | meanwhile | after
    assert len({one.address for given in everything.values() for one in given}) == len(everything)
    assert {one.handle for one in await ipam.attachments()} == set(everything)
    await ipam.stop()
    again = Ipam(config)
    await again.start()
    assert {one.handle: list(one.assignments) for one in await again.attachments()} == everything
    await again.stop()
    print("whole")

asyncio.run(main())
"""


def test_a_full_disk(tmp_path: Path) -> None:
    steps = f'mount -t tmpfs -o size=8m none {tmp_path} && exec "$@"'
    alone = ("unshare", "--mount", "--propagation=private", "sh", "-c", steps, "sh")
    done = subprocess.run(
        [*alone, sys.executable, "-c", NODE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = f"ledger-failed ledger {tmp_path}/n1/ledger.db cannot grow, the disk is full: make room, nothing is lost"
    assert done.stdout.splitlines() == [said, "whole"]
