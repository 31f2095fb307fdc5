"""The conformance suite's verdicts, known gaps and configuration files; what it finds is tested with plugins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conformance.cni.__main__ import as_json, read_config, read_known, summary, table
from tests.conformance.cni.bed import Bed
from tests.conformance.cni.model import Check, Finding, Level, Verdict
from tests.conformance.cni.suite import CHECKS


async def _nothing(bed: Bed) -> None: ...


def _finding(verdict: Verdict, level: Level = "must", known: str = "") -> Finding:
    return Finding(Check("some.check", level, "2 ADD", "it holds", _nothing), verdict, "this", "that", known)


@pytest.mark.parametrize(
    ("finding", "breaks"),
    [
        (_finding("pass"), False),
        (_finding("skip"), False),
        (_finding("fail"), True),
        (_finding("fail", "should"), False),
        (_finding("fail", known="old"), False),
        (_finding("pass", known="old"), True),
        (_finding("pass", "should", known="old"), True),
    ],
)
def test_what_makes_the_run_fail(finding: Finding, breaks: bool) -> None:
    assert finding.breaks is breaks


def test_counts() -> None:
    findings = [_finding("pass"), _finding("fail"), _finding("fail", "should"), _finding("skip")]
    findings += [_finding("fail", known="old"), _finding("pass", known="old")]
    counts = {"passed": 1, "failedMust": 1, "failedShould": 1, "knownGaps": 1, "unexpectedPasses": 1, "skipped": 1}
    assert summary(findings) == counts
    assert as_json(findings)["summary"] == counts


def test_the_table_says_why() -> None:
    text = table([_finding("fail"), _finding("skip"), _finding("fail", known="old story")])
    assert "FAILED" in text
    assert "expected: this" in text
    assert "seen:     that" in text
    assert "old story" in text


def test_names_are_unique_and_known_gaps_are_checks() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    files = list((Path(__file__).parents[1] / "conformance/cni/known").iterdir())
    assert files
    for file in files:
        assert set(read_known(file)) <= set(names), file.name


def test_a_single_configuration_and_one_of_a_list(tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_text(json.dumps({"name": "net", "type": "ptp", "mtu": 1400}))
    assert read_config(file, "ptp")["mtu"] == 1400
    file.write_text(json.dumps({"name": "net", "plugins": [{"type": "x"}, {"type": "ptp", "mtu": 9000}]}))
    assert read_config(file, "ptp") == {"name": "net", "type": "ptp", "mtu": 9000}
    with pytest.raises(ValueError, match="no plugin of type bridge in the list"):
        read_config(file, "bridge")
    file.write_text("{}")
    with pytest.raises(ValueError, match="needs `name` and `type`"):
        read_config(file, "ptp")
