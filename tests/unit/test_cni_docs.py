"""What is promised in writing is there: every error code, capability and setting of the documentation and the unit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.privileges import NEEDED, USEFUL
from cni.errors import Code
from config.model import Cni

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "cni.md").read_text()
UNIT = ROOT / "agent" / "podroute.service"
CAPABILITIES = {*NEEDED, *USEFUL}


def test_every_error_code_is_explained() -> None:
    explained = re.findall(r"^\| (\d+) \| .+ \| .+ \|$", DOCS, re.MULTILINE)
    assert [int(code) for code in explained] == [code.value for code in Code]


def test_every_setting_is_explained() -> None:
    section = DOCS[DOCS.index("## Configuration") :].partition("\n## ")[0]
    for name, field in Cni.model_fields.items():
        key = field.alias or re.sub("_(.)", lambda match: match[1].upper(), name)
        assert f"`{key}`" in section


def test_the_capabilities_are_the_same_everywhere() -> None:
    assert set(re.findall(r"^\| (CAP_\w+) \|", DOCS, re.MULTILINE)) == CAPABILITIES
    (line,) = (line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet="))
    assert set(line.partition("=")[2].split()) == CAPABILITIES


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/podroute/bin/podroute", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_holds_every_room() -> None:
    copied = re.findall(r"^COPY (\w+) \w+$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    packages = re.search(r"include =\n((?:    \w+\*\n)+)", (ROOT / "setup.cfg").read_text())
    assert packages
    assert copied == [name.strip(" *") for name in packages[1].splitlines()]
