"""podroute under its own conformance suite: every row that follows from an RFC."""

from __future__ import annotations

import pytest

from tests.conformance.bgp.cases import meets
from tests.conformance.bgp.compare import results
from tests.conformance.bgp.report import Table, page, summary

pytestmark = pytest.mark.root


def test_podroute_meets_every_row() -> None:
    rows = results("podroute")
    assert len(rows) > 600
    missed = [f"{r['rfc']}: {r['name']} ({r['session']}): {r['outcome']}" for r in rows if not r["met"]]
    assert not missed, "\n".join(missed)


@pytest.mark.parametrize(
    ("outcome", "expected", "met"),
    [
        ("reset 3/1", {"reset"}, True),
        ("reset 3/1", {"reset 3"}, True),
        ("reset 3/10", {"reset 3/1"}, False),
        ("reset 2/1, data 0400", {"reset 2/1"}, False),
        ("accept", {"discard"}, False),
    ],
)
def test_an_expected_outcome_covers_its_special_forms(outcome: str, expected: set[str], met: bool) -> None:
    assert meets(outcome, expected) is met


def test_the_page_sets_the_speakers_side_by_side() -> None:
    row = {"level": "must", "expected": ["withdraw"], "outcome": "reset 3/1", "met": False}
    key = ("RFC 7606 7.1", "UPDATE", "ORIGIN of length 0")
    table: Table = {
        (*key, "external"): {"A": row, "B": row | {"outcome": "withdraw", "met": True}},
        (*key, "internal"): {"A": row, "B": row | {"outcome": "withdraw", "met": True}},
    }
    assert "| RFC 7606 7.1 | ORIGIN of length 0 | both | must | withdraw | **reset 3/1** | + |" in page(
        table, ["A", "B"]
    )
    assert summary(table, ["A", "B"]).splitlines()[1].split() == ["all", "0/2", "2/2"]
