from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.load import check_file, check_text, load
from config.problems import ConfigError
from config.remote_as import RemoteAs

GOOD: dict[str, Any] = {
    "apiVersion": "podroute/v1",
    "node": {"name": "n1", "as": 4200000001, "routerId": "10.1.1.11", "labels": {"rack": "r1"}},
    "pools": {"pods4": {"cidr": "10.64.0.0/16"}, "pods6": {"cidr": "fd00:64::/48"}},
    "advertise": ["192.0.2.1/32"],
    "peers": {
        "tor": {"address": "10.1.1.1", "as": 65011, "import": "accept", "export": "accept"},
        "tor6": {"address": "fd00:1::1", "as": 65011, "import": "accept", "export": "accept"},
    },
}
MINIMAL = "apiVersion: podroute/v1\nnode: {name: n1, as: 65000, routerId: 10.0.0.1}\n"


def changed(*path: str | int, to: Any) -> str:
    """Return the good file as text with one value replaced or added."""
    data = yaml.safe_load(yaml.safe_dump(GOOD))
    around = data
    for part in path[:-1]:
        around = around.setdefault(part, {}) if isinstance(around, dict) else around[part]
    around[path[-1]] = to
    return yaml.safe_dump(data, sort_keys=False)


def lines(text: str) -> list[str]:
    return [problem.render("f") for problem in check_text(text, "f").problems]


def test_a_good_file_is_typed() -> None:
    config = check_text(yaml.safe_dump(GOOD), "f").config
    assert config is not None
    assert config.node.asn == 4200000001
    assert config.node.identifier == bytes((10, 1, 1, 11))
    assert config.state_dir == "/var/lib/podroute"
    assert config.store.url == "sqlite:///var/lib/podroute/store.db"
    assert (config.pools["pods4"].block_size, config.pools["pods6"].block_size) == (26, 122)
    assert (config.pools["pods4"].family, config.pools["pods4"].prefix) == (4, b"\x10\x0a\x40")
    tor, tor6 = config.peers["tor"], config.peers["tor6"]
    assert (tor.address, tor.listen_range, tor.remote_as) == ("10.1.1.1", None, RemoteAs.of(65011))
    assert (tor.family_set, tor6.family_set) == (frozenset((4,)), frozenset((6,)))
    assert (tor6.port, tor6.hold_time, tor6.passive, tor6.local_address) == (179, 90, False, None)
    assert config.bgp.listen_addresses == [("0.0.0.0", 179), ("::", 179)]
    assert config.advertised == [(4, b"\x20\xc0\x00\x02\x01")]


def test_load_returns_the_configuration_or_raises_all_problems(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(MINIMAL)
    assert load(str(good)).node.name == "n1"
    bad.write_text(MINIMAL.replace("65000", "0") + "rutes: {}\n")
    with pytest.raises(ConfigError) as caught:
        load(str(bad))
    assert caught.value.lines == [
        f"{bad}:node.as: is 0, must be an AS number that may be used: 0 is reserved by RFC 7607",
        f"{bad}:rutes: is not a known key, did you mean routes?",
    ]
    assert str(caught.value) == "\n".join(caught.value.lines)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert [p.text for p in check_file(str(missing)).problems] == [
        "cannot be read (no such file or directory), must be a YAML file"
    ]
    assert [p.text for p in check_file(str(tmp_path)).problems] == [
        "cannot be read (is a directory), must be a YAML file"
    ]
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"node: \xe9")
    assert [p.text for p in check_file(str(latin)).problems] == ["octet 7 is not UTF-8, must be YAML in UTF-8"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "f: is empty, must be a mapping that begins with `apiVersion: podroute/v1`"),
        ("- a\n", "f: is not a mapping, must be a mapping that begins with `apiVersion: podroute/v1`"),
        ("apiVersion: podroute/v2\nnodes: {}\n", 'f:apiVersion: is "podroute/v2", must be podroute/v1'),
        ("a: b: c\n", "f: line 1, column 5: mapping values are not allowed here; must be valid YAML"),
        ("a: 1\n---\nb: 1\n", "f: line 2, column 1: but found another document, expected a single document in the"),
        ("[a]: 1\n", "f: line 1, column 1: found unhashable key, while constructing a mapping; must be valid YAML"),
        ("a: \x07\n", "f: character 4 (code 7) is not allowed in YAML, must be printable text"),
        ("a: " + "[" * 60 + "]" * 60, "f: is nested too deeply, must be a podroute/v1 configuration"),
        (
            "a: !!int x\n",
            "f: is not valid YAML (invalid literal for int() with base 10: 'x'), must be one YAML mapping",
        ),
    ],
)
def test_what_is_no_configuration_at_all(text: str, line: str) -> None:
    assert len(lines(text)) == 1
    assert lines(text)[0].startswith(line)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (["node", "name"], "N 1", 'is "N 1", must be a host name: lower-case letters, digits, - and . with a letter'),
        (["node", "as"], 23456, "is 23456, must be an AS number that may be used: 23456 is AS_TRANS of RFC 6793"),
        (["node", "as"], 65535, "is 65535, must be an AS number that may be used: 65535 is reserved by RFC 7300"),
        (["node", "as"], 4294967295, "is 4294967295, must be an AS number that may be used: 4294967295 is reserved"),
        (["node", "as"], 4294967296, "is 4294967296, must be an AS number, 1 to 4294967294 as one integer"),
        (["node", "as"], "65000", 'is "65000", must be an AS number, 1 to 4294967294 as one integer'),
        (["node", "as"], True, "is true, must be an AS number, 1 to 4294967294 as one integer"),
        (["node", "as"], 1.1, "is 1.1, must be an AS number, 1 to 4294967294 as one integer"),
        (["node", "routerId"], "0.0.0.0", 'is "0.0.0.0", must be four octets such as "10.1.1.11", not all zero'),
        (["node", "routerId"], "10.1.1", 'is "10.1.1", must be four octets such as "10.1.1.11", not all zero'),
        (["node", "routerId"], "fd00::1", 'is "fd00::1", must be four octets such as "10.1.1.11", not all zero'),
        (["node", "labels", "rack"], 1, "is 1, must be a label's value: up to 63 letters, digits, -, _ and . as a"),
        (["stateDir"], "var/lib", 'is "var/lib", must be an absolute path'),
        (["store"], "sqlite://store.db", 'is "sqlite://store.db", must be "sqlite:///absolute/path/of/store.db"'),
        (["store"], "mysql:///x", 'is "mysql:///x", must be "sqlite:///absolute/path/of/store.db"'),
        (["pools"], [], "is a list, must be a mapping of pools by name"),
        (["pools"], None, "is empty, must be a mapping of pools by name"),
        (["pools", "pods4"], "10.0.0.0/8", 'is "10.0.0.0/8", must be a mapping of cidr, blockSize, nodes'),
        (["pools", "pods4", "cidr"], "10.64.0.1/16", 'is "10.64.0.1/16", must be a prefix without host bits: "10.64.'),
        (["pools", "pods4", "cidr"], "10.64.0.0", 'is "10.64.0.0", must be a prefix such as "10.64.0.0/16" or'),
        (["pools", "pods4", "cidr"], "10.64.0.0/33", 'is "10.64.0.0/33", must be a prefix such as "10.64.0.0/16"'),
        (["pools", "pods4", "cidr"], "127.4.0.0/16", "127.4.0.0/16 overlaps 127.0.0.0/8 (loopback), must be addresses"),
        (["pools", "pods6", "cidr"], "ff00::/64", "ff00::/64 overlaps ff00::/8 (multicast), must be addresses that"),
        (["pools", "pods4", "blockSize"], 19, "is 19, must be the prefix length of a block: 20 to 32 (IPv4) or 116"),
        (["pools", "pods4", "blockSize"], 33, "is 33, must be 20 to 32 (ipv4 blocks)"),
        (["pools", "pods6", "blockSize"], 115, "is 115, must be 116 to 128 (ipv6 blocks)"),
        (["pools", "pods6", "blockSize"], 129, "is 129, must be the prefix length of a block: 20 to 32 (IPv4) or 116"),
        (["pools", "pods4", "blockSize"], "26", 'is "26", must be the prefix length of a block: 20 to 32 (IPv4)'),
        (["pools", "more"], {"cidr": "10.64.128.0/17"}, None),
        (["advertise", 0], "192.0.2.1/24", 'is "192.0.2.1/24", must be a prefix without host bits: "192.0.2.0/24"'),
        (["bgp", "listen"], ["0.0.0.0"], None),
        (["bgp", "holdTime"], 2, "is 2, must be 0 (no keepalives) or 3 to 65535 seconds (RFC 4271 section 4.2)"),
        (["bgp", "holdTime"], 65536, "is 65536, must be 0 (no keepalives) or 3 to 65535 seconds"),
        (["bgp", "maxPaths"], 0, "is 0, must be 1 (no multipath) to 256 next hops"),
        (["bgp", "connectRetry"], 0, "is 0, must be 1 to 3600 seconds"),
        (["peers", "tor", "address"], "10.1.1", 'is "10.1.1", must be one IPv4 or IPv6 address such as "10.1.1.1"'),
        (["peers", "tor", "address"], "fe80::1", 'is "fe80::1", must be a link-local address with its interface: "fe8'),
        (
            ["peers", "tor", "address"],
            "10.1.1.1%e",
            'is "10.1.1.1%e", must be "10.1.1.1": an interface belongs to IPv6',
        ),
        (["peers", "tor", "address"], "224.0.0.5", 'is "224.0.0.5", must be the address of one host'),
        (["peers", "tor", "as"], 0, "is 0, must be an AS number that may be used: 0 is reserved by RFC 7607"),
        (["peers", "tor", "as"], "65011", 'is "65011", must be an AS number, 1 to 4294967294 as one integer'),
        (["peers", "tor", "as"], True, "is true, must be an AS number, 1 to 4294967294 as one integer"),
        (["peers", "tor", "as"], None, "is empty, must be an AS number, 1 to 4294967294 as one integer"),
        (["peers", "tor", "as"], 4294967296, "is 4294967296, must be an AS number, 1 to 4294967294 as one integer"),
        (["peers", "tor", "as"], [], "is a list, must be external, internal, an AS number, 1 to 4294967294 as one"),
        (
            ["peers", "tor", "as"],
            [65001, "x"],
            'is "x", must be an AS number or a range of them in quotes, "65020-65029"',
        ),
        (
            ["peers", "tor", "as"],
            ["65029-65020"],
            'is "65029-65020", must be an AS number or a range of them in quotes',
        ),
        (["peers", "tor", "as"], ["65530-65535"], "is 65535, must be an AS number that may be used: 65535 is reserved"),
        (
            ["peers", "tor", "listenRange"],
            "10.1.0.7/24",
            'is "10.1.0.7/24", must be a prefix without host bits: "10.1.0',
        ),
        (["peers", "tor", "listenLimit"], 0, "is 0, must be 1 to 65535 peers at once"),
        (["peers", "tor", "holdTime"], 1, "is 1, must be 0 (no keepalives) or 3 to 65535 seconds (RFC 4271"),
        (["peers", "tor", "port"], 0, "is 0, must be a TCP port, 1 to 65535"),
        (["peers", "tor", "families"], [], "is a list, must be a list of ipv4 and ipv6, at least one"),
        (["peers", "tor", "families"], "ipv4", 'is "ipv4", must be a list of ipv4 and ipv6, at least one'),
        (["peers", "tor", "passive"], "yes", 'is "yes", must be true (wait for the peer to connect) or false'),
        (["peers", "tor", "passwordFile"], "tor.key", 'is "tor.key", must be an absolute path'),
        (["peers", "tor", "import"], "permit", 'is "permit", must be accept, reject or a mapping of default and'),
        (["peers", "tor", "import"], ["accept"], "is a list, must be accept, reject or a mapping of default and rules"),
        (["routes", "table"], 0, "is 0, must be a routing table, 1 to 4294967295; main is 254"),
        (
            ["routes", "checkNeighbours"],
            1,
            "is 1, must be true (gateways that do not answer carry nothing while others do)",
        ),
        (["routes", "metric"], 0, "is 0, must be 2 to 4294967295 (1 is that of covers)"),
        (
            ["routes", "resilient"],
            True,
            "is true, must be a mapping of buckets, idleTimer and unbalancedTimer, {} for the defaults",
        ),
        (["routes", "resilient", "buckets"], 65536, "is 65536, must be 1 to 65535 buckets in a group"),
        (
            ["routes", "resilient", "idleTimer"],
            "2 min",
            'is "2 min", must be 0 to 86400 seconds that a bucket must be idle to move',
        ),
        (
            ["routes", "resilient", "unbalancedTimer"],
            -1,
            "is -1, must be 0 (never) to 86400 seconds until buckets in use move too",
        ),
        (
            ["routes", "onlink"],
            ["192.0.2.0/24"],
            'is a list, must be a mapping of prefixes and interfaces such as {"192.0.2.0/24": "eth0"}',
        ),
        (
            ["routes", "onlink"],
            {"fd00::/64": "eth0", "FD00:0::/64": "eth1"},
            "has fd00::/64 and FD00:0::/64, which are one prefix, must have it once: remove one",
        ),
        (["peers", "tor", "addPath", "send"], 65, "is 65, must be all, 1 to 64 paths to a prefix, or 0 (the best one"),
        (["peers", "tor", "addPath", "send"], "some", 'is "some", must be all, 1 to 64 paths to a prefix, or 0'),
        (["peers", "tor", "addPath", "receive"], 1, "is 1, must be true or false"),
        (["cni", "mtu"], 100, "is 100, must be auto (the uplink's) or 576 to 65535 octets"),
        (["cni", "mtu"], 1000, "is 1000, must be 1280 or more with an IPv6 pool (RFC 8200 section 5)"),
        (["api", "socket"], "/" + "x" * 107, None),
        (["log", "level"], "verbose", 'is "verbose", must be debug, info, warning or error'),
        (["log", "format"], "xml", 'is "xml", must be text or json'),
    ],
)
def test_one_bad_value(path: list[str | int], value: Any, line: str | None) -> None:
    found = lines(changed(*path, to=value))
    assert len(found) == 1, found
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
    assert found[0].startswith(f"f:{dotted}")
    if line is not None:
        assert found[0].startswith(f"f:{dotted}: {line}")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (["routes", "checkNeighbors"], "f:routes.checkNeighbors: is not a known key, did you mean checkNeighbours?"),
        (["nodes"], "f:nodes: is not a known key, did you mean node?"),
        (["api_version"], "f:api_version: is not a known key, did you mean apiVersion?"),
        (["node", "router-id"], "f:node.router-id: is not a known key, did you mean routerId?"),
        (["pools", "pods4", "blocksize"], "f:pools.pods4.blocksize: is not a known key, did you mean blockSize?"),
        (["peers", "tor", "asn"], "f:peers.tor.asn: is not a known key, did you mean as?"),
        (["peers", "tor", "import_policy"], "f:peers.tor.import_policy: is not a known key, did you mean import?"),
        (["log", "colour.map"], 'f:log."colour.map": is not a known key, must be one of level, format'),
    ],
)
def test_unknown_keys_get_a_suggestion(path: list[str | int], line: str) -> None:
    found = lines(changed(*path, to="x"))
    assert len(found) == 1
    assert found[0].startswith(line)


@pytest.mark.parametrize(
    "change",
    [
        "bgp: {listen: [nonsense]}",
        "bgp: {listen: nonsense}",
        "node: {name: n1, as: 65001, routerId: 10.1.1.2, labels: {rack: r1}, addresses: [nonsense]}",
        "node: {name: n1, as: 65001, routerId: 10.1.1.2, labels: nonsense, addresses: [10.1.1.2]}",
        "node: nonsense",
        "ipam: {reclaimAfter: nonsense, fenceAfter: 60}",
        "peers: {range: {listenRange: nonsense, as: external, import: accept, export: accept}}",
    ],
)
def test_a_wrong_value_does_not_make_others_look_wrong(change: str) -> None:
    good = yaml.safe_load(
        """
        apiVersion: podroute/v1
        node: {name: n1, as: 65001, routerId: 10.1.1.2, labels: {rack: r1}, addresses: [10.1.1.2]}
        pools: {pods4: {cidr: 10.64.0.0/16, splitBy: {label: rack, size: 22}}}
        mesh: {all: {select: {}}}
        peers: {range: {listenRange: 10.2.0.0/24, as: external, import: accept, export: accept}}
        """
    )
    assert lines(yaml.safe_dump(good, sort_keys=False)) == []
    (line,) = lines(yaml.safe_dump({**good, **yaml.safe_load(change)}, sort_keys=False))
    assert "nonsense" in line


def test_missing_values() -> None:
    assert lines("pools: {p: {}}\npeers: {t: {}}\n") == [
        "f:apiVersion: is missing, must be podroute/v1",
        "f:node: is missing, must be a mapping of name, as, routerId and labels",
        'f:pools.p.cidr: is missing, must be a prefix such as "10.64.0.0/16"',
        "f:peers.t.as: is missing, must be an AS number, 1 to 4294967294 as one integer",
        'f:peers.t.address: is missing, must be the address of the peer such as "10.1.1.1", or listenRange a prefix',
    ]
    assert lines("apiVersion: podroute/v1\nnode: {}\n") == [
        "f:node.name: is missing, must be the node's name, unique in the cluster",
        "f:node.as: is missing, must be an AS number, 1 to 4294967294 as one integer",
        'f:node.routerId: is missing, must be four octets such as "10.1.1.11", unique in the network',
    ]


def test_every_problem_is_reported_at_once_in_the_order_of_the_file() -> None:
    text = """\
apiVersion: podroute/v1
node: {name: n1, as: 0, routerId: 10.1.1.11}
pools:
  one: {cidr: 10.64.0.0/16}
  two: {cidr: 10.64.64.0/18, blockSize: 99}
advertise: [192.0.2.1/24, 192.0.2.1/32]
bgp: {holdTime: 1}
peers:
  a: {address: 10.64.0.1, as: 0, families: [ipv7]}
  b: {address: 10.64.0.1, as: 65011}
  c: {address: "fd00::1", as: 65011, families: [ipv4]}
"""
    assert [line.split(" ")[0] for line in lines(text)] == [
        "f:node.as:",
        "f:pools.two.cidr:",
        "f:pools.two.blockSize:",
        "f:advertise[0]:",
        "f:bgp.holdTime:",
        "f:peers.a.address:",
        "f:peers.a.as:",
        "f:peers.a.families[0]:",
        "f:peers.b.address:",
        "f:peers.b.address:",
    ]


def test_repeated_keys_name_both_lines() -> None:
    text = MINIMAL + "peers:\n  t: {address: 10.0.0.2, as: 1}\n  t: {address: 10.0.0.3, as: 1, as: 2}\n"
    assert lines(text) == [
        "f:peers.t: is given twice (lines 4 and 5), must be given once: remove one",
        "f:peers.t.as: is given twice (lines 5 and 5), must be given once: remove one",
    ]


def test_scalars_mean_what_they_look_like() -> None:
    text = MINIMAL + (
        "peers: {1: {address: 10.0.0.2, as: 1, nodes: {no: on, day: 2026-01-02},\n"
        "  import: {rules: [{name: a, action: accept, set: {communities: [65000:10]}}]}}}\n"
    )
    report = check_text(text, "f")
    assert report.config is not None, report.problems
    peer = report.config.peers["1"]
    assert peer.nodes == {"no": "on", "day": "2026-01-02"}
    assert peer.import_policy is not None
    assert peer.import_policy.rules[0].set.communities == ["65000:10"]
    (line,) = lines(MINIMAL + "routes: {metric: 010}\n")
    assert line == 'f:routes.metric: is "010", must be 2 to 4294967295 (1 is that of covers)'
    assert lines(MINIMAL + "routes: {metric: 0x10}\n") == []


def test_anchors_and_merge_keys_work_and_cannot_explode() -> None:
    text = MINIMAL + (
        "peers:\n  a: &tor {address: 10.0.0.2, as: 1, import: accept, export: accept}\n"
        "  b: {<<: *tor, address: 10.0.0.3}\n"
    )
    report = check_text(text, "f")
    assert report.config is not None
    assert report.config.peers["b"].remote_as == RemoteAs.of(1)
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    assert len(lines(MINIMAL + bomb)) == 21
    assert lines(MINIMAL + "pools: &p {p: *p}\n") != []


def test_peers_inherit_the_timers_of_bgp() -> None:
    text = MINIMAL + (
        "bgp: {holdTime: 30, connectRetry: 7}\n"
        "peers: {a: {address: 10.0.0.2, as: 1}, b: {address: 10.0.0.3, as: 1, holdTime: 9}}\n"
    )
    config = check_text(text, "f").config
    assert config is not None
    assert [(p.hold_time, p.connect_retry) for p in config.peers.values()] == [(30, 7), (9, 7)]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from(
        [
            ("node",), ("node", "as"), ("node", "labels"), ("pools",), ("pools", "pods4"), ("pools", "pods4", "cidr"),
            ("advertise",), ("bgp",), ("bgp", "listen"), ("peers",), ("peers", "tor"), ("peers", "tor", "families"),
            ("peers", "tor", "import"), ("peers", "tor", "nodes"), ("cni",), ("log", "level"), ("store",),
            ("apiVersion",),
        ]
    ),
    value=_VALUES,
)  # fmt: skip
def test_no_value_makes_the_check_fail_otherwise_than_by_a_problem(path: tuple[str, ...], value: Any) -> None:
    report = check_text(changed(*path, to=value), "f")
    assert (report.config is None) == bool(report.problems)
    for problem in report.problems:
        assert problem.render("f").isprintable()


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!<>|'\"%@`#,? \n\t01.", max_size=60))
def test_no_text_makes_the_parser_fail_otherwise_than_by_a_problem(text: str) -> None:
    assert check_text(text, "f").problems
