"""The conformance suite against podroute, with an agent in a lab node, and against two plugins of others."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from labs.lab import Lab
from tests.runtime.hosts import PLUGIN_DIR, PLUGINS, agent_starts, nothing_left

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]
KNOWN = ROOT / "tests/conformance/cni/known"
IPAM = ["ipam.fails", "ipam.undone", "ipam.verbs", "ipam.check-fails"]
"""podroute gives addresses itself."""
SWITCH = f"{sys.executable} -m tests.runtime.agent_switch"


def _failed(report: dict[str, Any]) -> Sequence[str]:
    return [
        f"{check['name']}: expected {check['expected']}, seen: {check['seen']}"
        for check in report["checks"]
        if check["verdict"] == "fail" and not check["known"]
    ]


@pytest.mark.parametrize(("name", "kind"), PLUGINS.items())
async def test_podroute(net: Lab, name: str, kind: str) -> None:
    """Every check, none excused, with the plugin of either kind."""
    node = net.node(name)
    start = await node.run("head", "-c2", f"{PLUGIN_DIR}/podroute")
    assert (start.stdout == "#!") == (kind == "python")
    try:
        done = await node.run(
            *(sys.executable, "-m", "tests.conformance.cni", "--here", "--json"),
            *("--plugin", f"{PLUGIN_DIR}/podroute", "--conf", "/etc/cni/net.d/10-podroute.conflist"),
            *("--stop-command", f"{SWITCH} stop", "--start-command", f"{SWITCH} start"),
            env={"PYTHONPATH": str(ROOT)},
            check=False,
            timeout=100,
        )
    finally:
        await node.run(*SWITCH.split(), "stop", env={"PYTHONPATH": str(ROOT)})
        await agent_starts(net, node)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert not _failed(report), "\n".join(_failed(report))
    assert done.returncode == 0
    assert [check["name"] for check in report["checks"] if check["verdict"] == "skip"] == IPAM
    await nothing_left(net)


async def test_plugins_of_others_have_their_known_gaps(tmp_path: Path) -> None:
    """Strict: a gap that has closed fails the test."""
    plugins = ("ptp", "bridge")
    for plugin in plugins:
        (tmp_path / plugin).mkdir()
    await asyncio.gather(*(_has_its_gaps(plugin, tmp_path / plugin) for plugin in plugins))


async def _has_its_gaps(plugin: str, directory: Path) -> None:
    ipam = {
        "type": "host-local",
        "dataDir": str(directory / "addresses"),
        "ranges": [[{"subnet": "10.90.0.0/16"}], [{"subnet": "fd00:90::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    more = {"bridge": "cni0", "isGateway": True} if plugin == "bridge" else {}
    conf = directory / "conf"
    conf.write_text(json.dumps({"name": "conformance", "type": plugin, "ipam": ipam, **more}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.conformance.cni", "--json", "--plugin", f"/usr/lib/cni/{plugin}"),
        *("--conf", conf, "--known", KNOWN / f"{plugin}-1.1.1", "--pods", "20"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    report = json.loads(said)
    assert not _failed(report), "\n".join(_failed(report))
    assert process.returncode == 0, report["summary"]
