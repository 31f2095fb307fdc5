"""What is made of readings, and docs/metrics.md with its alerts: neither names a metric that there is not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from agent.metrics import bgp, cni, fib, ipam
from agent.metrics.catalogue import Histogram, Metric, Reading, counter, gauge, histogram, info
from agent.metrics.exposition import expose
from agent.metrics.scrape import METRICS, scrape
from agent.node import Node
from bgp.fsm_table import Event
from bgp.messages import MessageType
from bgp.status import FamilyStatus, NotificationRecord, PeerStatus
from bgp.tally import LOSSES, Tally, by_type
from cni.calls import BOUNDS, Calls
from config.prefix import parse
from ipam.choice import Usage
from ipam.records import Block, Loan
from tests.agents import Metrics
from tests.unit.test_config_check import config, peer

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "metrics.md"
ALERTS = DOCS / "examples/podroute-alerts.yml"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")


def promtool(*argv: str, stdin: str = "") -> None:
    done = subprocess.run(["promtool", *argv], input=stdin, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def exposed(*readings: Reading) -> Metrics:
    """Return readings as a scrape shows them; both formats say the same."""
    metrics = list(dict.fromkeys(reading.metric for reading in readings))
    text, _ = expose(metrics, readings, "")
    other, _ = expose(metrics, readings, OPENMETRICS)
    found = Metrics(text.decode())
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_openmetrics(other.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
    mine = {key: value for key, value in samples.items() if key[0].startswith("podroute_")}
    assert mine == {key: value for key, value in found.values.items() if key[0].startswith("podroute_")}
    return found


def test_readings_become_samples() -> None:
    now = exposed(
        gauge("level", "A level.").of(3),
        counter("things", "Things.", "peer").of(7, 'a "quoted"\\\n name'),
        info("about", "What it is.", "version").of(1, "0.1"),
        histogram("wait_seconds", "Waits.", "verb").of(Histogram((0.5, 1.0), [2, 0, 1], 4.25), "ADD"),
    )
    assert now("level") == 3
    assert now("things_total", peer='a "quoted"\\\n name') == 7
    assert now("about_info", version="0.1") == 1
    buckets = [now("wait_seconds_bucket", verb="ADD", le=bound) for bound in ("0.5", "1.0", "+Inf")]
    assert buckets == [2, 2, 3]
    assert (now("wait_seconds_count", verb="ADD"), now("wait_seconds_sum", verb="ADD")) == (3, 4.25)


def test_what_openmetrics_wants_is_given_by_accept() -> None:
    for accept in ("", "*/*", "text/plain;version=0.0.4", "text/html"):
        assert expose([], [], accept)[1] == "text/plain; version=0.0.4; charset=utf-8"
    text, content_type = expose([], [], f"text/plain;q=0.1, {OPENMETRICS}")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith(b"# EOF\n")


def test_the_process_is_among_them() -> None:
    now = exposed(gauge("level", "A level.").of(3))
    assert now("process_resident_memory_bytes") > 1 << 20


PEER = PeerStatus(
    name="rack/10.1.0.7",
    address="10.1.0.7",
    port=179,
    local_address=None,
    external=True,
    passive=True,
    listen_range="10.1.0.0/24",
    state="Active",
    since=1000.5,
    uptime=None,
    reason="connection lost",
    local_as=65001,
    expected_as=None,
    received_as=65010,
    identifier=None,
    hold_time=90,
    keepalive=30,
    last_sent=None,
    last_received=NotificationRecord(6, 2, 'Cease/Administrative Shutdown: "}\n', 999.0),
    established_count=2,
    incoming=True,
    messages_in=0,
    messages_out=0,
    capabilities=(),
    hostname="",
    software="",
    families={4: FamilyStatus(True, None, None, "waiting", received=5, accepted=3, advertised=2, refused=1, stale=4)},
    received=by_type({MessageType.UPDATE: 9}),
    sent=by_type({}),
    faults=6,
    losses={**dict.fromkeys(LOSSES, 0), "connection": 2},
)


def test_a_peer() -> None:
    facts = bgp.BgpFacts([PEER], [], 8, {4: 10, 6: 11}, {4: 1, 6: 0}, 12)
    now = exposed(*bgp.read(facts))
    own = {"peer": "rack/10.1.0.7"}
    assert now("bgp_peer_info", **own, address="10.1.0.7", range="10.1.0.0/24", **{"as": "65010"}) == 1
    assert now("bgp_session_established", **own) == 0
    assert now("bgp_session_state", **own, state="Active") == 1
    assert now("bgp_session_since_timestamp_seconds", **own) == 1000.5
    assert now("bgp_sessions_established_total", **own) == 2
    assert now("bgp_sessions_lost_total", **own, reason="connection") == 2
    assert now("bgp_messages_total", **own, direction="received", type="UPDATE") == 9
    assert now("bgp_messages_total", **own, direction="sent", type="ROUTE_REFRESH") == 0
    assert now("bgp_update_errors_total", **own) == 6
    counts = [
        now(f"bgp_prefixes_{what}", **own, family="ipv4")
        for what in ("received", "accepted", "advertised", "refused", "stale")
    ]
    assert counts == [5, 3, 2, 1, 4]
    assert now("bgp_end_of_rib_received", **own, family="ipv4") == 0
    received = {"direction": "received", "code": "6", "subcode": "2"}
    assert now("bgp_last_notification_timestamp_seconds", **own, **received) == 999
    assert (now("bgp_refused_connections_total"), now("bgp_undecided_prefixes")) == (8, 12)
    assert "Shutdown" not in now.text  # what strangers say is in no label


def test_why_sessions_are_lost() -> None:
    tally = Tally()
    for event in Event:
        tally.lost(event)
    assert set(tally.losses) == set(LOSSES)
    assert tally.losses["notification_received"] == 2
    assert tally.losses["hold_timer"] == tally.losses["connection"] == 1


def test_causes_of_repairs_are_few() -> None:
    counters = {
        "requests": 9,
        "refused": 3,
        "refused, EINVAL": 1,
        "refused, ENETUNREACH": 2,
        "repaired, missing, found by periodic comparison": 4,
        "repaired, missing, found by netlink events were lost": 5,
        "repaired, route deleted by another program": 6,
        "resync, netlink events were lost": 7,
    }
    facts = fib.FibFacts({"ipv4": {"installed": 2}, "ipv6": {}}, 1, True, 3, 4, None, counters)
    now = exposed(*fib.read(facts))
    assert now("fib_repaired_routes_total", cause="missing") == 9
    assert now("fib_repaired_routes_total", cause="route deleted by another program") == 6
    assert now("fib_repaired_routes_total", cause="altered") == 0
    assert [now("fib_refused_requests_total", error=error) for error in ("EINVAL", "ENETUNREACH", "EPERM")] == [1, 2, 0]
    assert now("fib_resyncs_total", cause="netlink events were lost") == 7
    assert now("fib_resyncs_total", cause="permission was denied") == 0
    assert (now("fib_routes", family="ipv4", state="installed"), now("fib_full")) == (2, 1)
    assert list(fib.read(None)) == []


def test_pools() -> None:
    def usage(cidr: str, pool: str, used: int, **more: Any) -> Usage:
        return Usage(Block(*parse(cidr), pool, "n1", "uuid", **more), used, 1, 64)

    lent = (Loan(b"\x0a\x40\0\x01", "n2", "other"),)
    blocks = [
        usage("10.64.0.0/26", "p", 10, loans=lent),
        usage("10.64.0.64/26", "p", 5),
        usage("10.64.9.9/32", "p", 1, lender="n3"),
    ]
    now = exposed(*ipam.read(ipam.IpamFacts(["p", "empty"], blocks, 0, False, {"granted": 2}, True, None)))
    assert now("ipam_blocks", pool="p") == 2
    assert [now("ipam_addresses", pool="p", state=s) for s in ("used", "reserved", "free")] == [15, 2, 111]
    assert (now("ipam_borrowed_addresses", pool="p"), now("ipam_lent_addresses", pool="p")) == (1, 1)
    assert now("ipam_blocks", pool="empty") == 0
    assert "last_contact" not in now.text


def test_calls_are_counted_up_to_their_bound() -> None:
    calls = Calls()
    for seconds in (0.005, 0.0051, 44.0, 60.0):
        calls.ended("ADD", 0, seconds)
    calls.ended("ADD", 11, 1.0)
    durations = {verb: Histogram(BOUNDS, of.counts, of.seconds) for verb, of in calls.durations.items()}
    now = exposed(*cni.read(cni.CniFacts(4, dict(calls.results), durations)))
    assert [now("cni_requests_total", verb="ADD", code=code) for code in ("0", "11")] == [4, 1]
    assert now("cni_requests_total", verb="DEL", code="0") == 0
    bounds = ("0.005", "0.01", "0.5", "1.0", "45.0", "+Inf")
    counts = [now("cni_request_duration_seconds_bucket", verb="ADD", le=bound) for bound in bounds]
    assert counts == [1, 2, 2, 3, 4, 5]
    assert now("cni_request_duration_seconds_count", verb="CHECK") == 0


# The page


def described() -> dict[str, tuple[str, ...]]:
    """Return the labels of every metric that has a row on the page."""
    rows = re.findall(r"^\| `(podroute_\w+)` \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len({name for name, _ in rows}), "a metric is described twice"
    return {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def test_the_page_describes_what_there_is() -> None:
    assert described() == {metric.name: metric.labels for metric in METRICS}
    of_the_process = {name for name, _ in exposed().values if name.startswith("process_")}
    assert set(re.findall(r"`(process_\w+)`", PAGE.read_text())) == of_the_process


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"podroute_[a-z][a-z0-9_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith("_info") == (metric.kind == "info")
    assert metric.help.endswith(".")
    assert not {"prefix", "pod", "container"} & set(metric.labels)


@needs_promtool
def test_promtool_has_nothing_against_them() -> None:
    text, _ = expose(METRICS, bgp.read(bgp.BgpFacts([PEER], [], 8, {4: 1, 6: 1}, {4: 1, 6: 0}, 1)), "")
    promtool("check", "metrics", stdin=text.decode())


# The alerts


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_alerts_ask_for_what_there_is(rule: dict[str, Any]) -> None:
    known = {metric.name: metric.labels for metric in METRICS}
    asked = re.findall(r"(podroute_\w+)(?:\{(\w+)=)?", rule["expr"])
    assert asked
    for name, label in asked:
        assert name in known
        assert label in ("", *known[name])


@needs_promtool
def test_promtool_has_nothing_against_the_alerts() -> None:
    promtool("check", "rules", str(ALERTS))


FREE = 'podroute_ipam_addresses{instance="n1",pool="p",state="%s"}'
CASES: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "PodrouteSessionDown": (
        {'podroute_bgp_session_established{instance="n1",peer="tor"}': "1x9 0x80"},
        {"instance": "n1", "peer": "tor", "severity": "critical"},
        "12m",
    ),
    "PodrouteSessionFlaps": (
        {'podroute_bgp_sessions_lost_total{instance="n1",peer="tor",reason="hold_timer"}': "0x5 1+1x20"},
        {"instance": "n1", "peer": "tor", "severity": "warning"},
        "14m",
    ),
    "PodrouteRoutesNotInstalled": (
        {'podroute_fib_routes{instance="n1",family="ipv4",state="conflict"}': "0x9 2x80"},
        {"instance": "n1", "family": "ipv4", "state": "conflict", "severity": "warning"},
        "16m",
    ),
    "PodrouteStoreAway": (
        {'podroute_ipam_store_reachable{instance="n1"}': "1x9 0x80"},
        {"instance": "n1", "severity": "warning"},
        "16m",
    ),
    "PodrouteAddressesRunOut": (
        {
            FREE % "free": "10x9 0x80",
            FREE % "used": "54x9 64x80",
            'podroute_ipam_claims_total{instance="n1",result="exhausted"}': "0x9 1x80",
        },
        {"instance": "n1", "pool": "p", "severity": "warning"},
        "12m",
    ),
}


def test_every_alert_has_its_case() -> None:
    assert set(CASES) == {rule["alert"] for rule in rules()}


@needs_promtool
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should(alert: str, tmp_path: Path) -> None:
    series, labels, when = CASES[alert]
    unit = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": "5m", "alertname": alert, "exp_alerts": []},
            {"eval_time": when, "alertname": alert, "exp_alerts": [{"exp_labels": labels}]},
        ],
    }
    # Its texts are not compared: the rules are copied without them
    bare = [{key: value for key, value in rule.items() if key != "annotations"} for rule in rules()]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "podroute", "rules": bare}]}))
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [unit]}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", str(tmp_path / "tests.yml"))


# A scrape at any time


async def test_an_agent_that_is_not_running_can_be_scraped(tmp_path: Path) -> None:
    sockets = f"api: {{socket: {tmp_path}/api}}\ncni: {{socket: {tmp_path}/cni}}\n"
    node = Node(config(f"stateDir: {tmp_path}\nstore: sqlite://{tmp_path}/store.db\n{sockets}{peer()}"))
    try:
        text, _ = await scrape(node, "")
    finally:
        await node.cni.stop()
    now = Metrics(text.decode())
    assert now("state", state="starting") == 1
    assert (now("ready"), now("converged"), now("ipam_store_reachable")) == (0, 0, 0)
    assert "podroute_fib_routes{" not in now.text
    # What there is to tell of is told of, in the order of the page
    assert re.findall(r"^# TYPE (podroute_\w+) ", now.text, re.MULTILINE) == [metric.name for metric in METRICS]
