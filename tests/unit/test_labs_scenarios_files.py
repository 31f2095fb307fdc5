"""Files that scenarios write: BIRD's configuration, changed copies of what nodes read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from labs.lab import load
from labs.scenarios.bird import Bird
from labs.scenarios.curves import picture
from labs.scenarios.files import CONFIG, configured


@pytest.mark.parametrize("name", ["one-tor", "dual-tor"])
def test_bird_in_podroutes_place_has_its_sessions_and_a_configuration_that_bird_takes(
    name: str, tmp_path: Path
) -> None:
    before = load(name)
    plan = Bird().plan(before, tmp_path)
    nodes = [node for node in plan.nodes.values() if node.image.endswith("/bird")]
    assert [node.name for node in nodes] == ["n1", "n2"]
    assert plan.nodes["tor1"] == before.nodes["tor1"]
    for node in nodes:
        assert node.exec == before.nodes[node.name].exec
        (bind,) = node.binds
        text = bind.source.read_text()
        source = next(bind.source for bind in before.nodes[node.name].binds if bind.target == CONFIG)
        peers = yaml.safe_load(source.read_text())["peers"].values()
        assert text.count("protocol bgp") == len(peers)
        assert all(f"neighbor {peer['address']} as {peer['as']};" in text for peer in peers)
        if bird := shutil.which("bird"):
            done = subprocess.run([bird, "-p", "-c", str(bind.source)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


def test_a_changed_copy_takes_the_place_of_the_file_in_one_node_only(tmp_path: Path) -> None:
    def change(name: str, given: dict[str, object]) -> None:
        if name == "n2":
            given["advertise"] = ["192.0.2.1/32"]

    before = load("one-tor")
    plan = configured(before, tmp_path, change)
    for name, advertised in (("n1", None), ("n2", ["192.0.2.1/32"])):
        (bind,) = [bind for bind in plan.nodes[name].binds if bind.target == CONFIG]
        assert bind.source.is_relative_to(tmp_path)
        assert not bind.read_only
        assert yaml.safe_load(bind.source.read_text()).get("advertise") == advertised
    assert plan.nodes["tor1"] == before.nodes["tor1"]


def test_a_curve_starts_at_zero_and_ends_at_the_largest() -> None:
    text = picture([("MiB", {5: 40.0, 40: 80.0})], across="nodes")
    assert text.count("<circle") == 2
    assert ">80<" in text
    assert ">0<" in text
