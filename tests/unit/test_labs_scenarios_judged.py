"""What is concluded from packets, and the page that tells of it."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

from labs.scenarios.catalogue import SCENARIOS
from labs.scenarios.report import Shown, page
from labs.scenarios.story import Check, Result
from labs.scenarios.traffic import Flow, Gap, judge


def sent(count: int) -> dict[str, Any]:
    return {"sent": count, "first": 10.0, "last": 10.0 + (count - 1) * 0.02}


def got(received: int, next_number: int, seen: float | None, *gaps: tuple[float | None, float, int]) -> dict[str, Any]:
    return {"received": received, "next": next_number, "seen": seen, "gaps": gaps}


def test_nothing_lost_is_no_outage() -> None:
    flow = judge("a", [sent(100)], [got(100, 100, 11.98)])
    assert (flow.lost, flow.outage) == (0, 0.0)


def test_losses_at_the_beginning_within_and_at_the_end() -> None:
    reports = [got(85, 95, 11.88, (None, 10.04, 2), (10.5, 10.58, 3))]
    flow = judge("a", [sent(100)], reports)
    assert flow.lost == 15
    assert [gap.lost for gap in flow.gaps] == [2, 3, 5]
    assert [round(gap.milliseconds) for gap in flow.gaps] == [40, 80, 100]
    assert round(flow.outage) == 100


def test_nothing_arrived() -> None:
    flow = judge("a", [sent(100)], [got(0, 0, None)])
    assert (flow.lost, round(flow.outage)) == (100, 1980)


def test_what_came_late_is_not_lost() -> None:
    flow = judge("a", [sent(100)], [got(100, 100, 11.98, (10.0, 10.04, 1))])
    assert (flow.lost, flow.gaps) == (0, ())


def test_the_page_holds_everything_and_refers_to_nothing_outside() -> None:
    result = Result(SCENARIOS["link-cut"], picture="<svg></svg>", start=100.0)
    result.events.append((0.5, "the link <is> cut"))
    result.checks.append(Check(True, "held"))
    result.flows.append(Flow("n1 to n2, IPv4", 100, 4, (Gap(100.5, 100.58, 4),)))
    result.figures.append(("throughput", "9 Gbit/s"))
    beside = Result(SCENARIOS["link-cut"], daemon="BIRD 2")
    beside.flows.append(Flow("n1 to n2, IPv4", 100, 77, (Gap(100.5, 100.9, 77),)))
    broken = Result(SCENARIOS["fifty-prefixes"])
    broken.checks.append(Check(False, "not so"))
    text = page([Shown(result, beside), Shown(broken)], system="Linux", now=datetime(2026, 1, 1, tzinfo=UTC))
    assert "1 of 2 promises kept" in text
    for wanted in (
        "the link &lt;is&gt; cut",
        "80 ms",
        "9 Gbit/s",
        "FAILED: not so",
        "4 packets, 80 ms",
        "BIRD 2",
        "77 packets",
    ):
        assert wanted in text
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value or "" for name, value in attrs if name in ("href", "src"))

    Links().feed(text)
    assert all(link.startswith("#") for link in links)
