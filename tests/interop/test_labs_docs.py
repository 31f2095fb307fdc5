"""The example for tests of one's own in docs/labs.md does what it says."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from labs.errors import LabError
from labs.runner import lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(not shutil.which("vtysh"), reason="needs FRR: install the package frr"),
]

NAME = f"docs-{os.getpid()}"
PAGE = Path(__file__).parents[2] / "docs/labs.md"


async def test_the_example(tmp_path: Path) -> None:
    example = re.search(r"```python\n(from labs\.capture.*?)```", PAGE.read_text(), re.DOTALL)
    assert example
    names: dict[str, Any] = {}
    exec(example[1].replace('"mine"', repr(NAME)), names)
    await names["test_pods_survive_a_cut"]()


async def ask_wait_and_fail(folder: Path) -> None:
    async with lab("one-tor", name=NAME, save_to=folder) as net:
        n1, tor = net.node("n1"), net.node("tor1")

        async def established() -> bool:
            peers = (await tor.frr_json("show bgp summary json"))["ipv4Unicast"]["peers"]
            return bool(peers["10.1.1.2"]["state"] == "Established")

        async def lost() -> bool:
            return not await established()

        await net.wait_for("session of n1", established)
        assert await n1.ping("10.1.1.1")
        await n1.agent.post("/v1/peers/tor-v4/shutdown")
        await net.wait_for("end of the session", lost)
        await net.wait_for("miracle", lambda: False, timeout=0)


def test_a_lab_asks_waits_and_is_saved_when_its_body_fails(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=f"lab `{NAME}`: no miracle within 0 s, last seen: False") as failed:
        asyncio.run(ask_wait_and_fail(tmp_path))
    (folder,) = tmp_path.iterdir()
    assert failed.value.__notes__ == [f"lab {NAME} is saved in {folder}"]
    assert '"tor-v4"' in (folder / "n1/podroute-peers.json").read_text(), "sessions"
    assert "10.1.1.2" in (folder / "tor1/frr-summary.json").read_text()
    assert "10.1.1.0/30" in (folder / "tor1/routes-ipv4.txt").read_text(), "routes"
    assert "session" in (folder / "n1/command.log").read_text(), "logs"
    assert (folder / "graph.svg").read_text().startswith("<svg ")
