from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

from config.check import overlaps_with_subnets
from config.commands import config_commands
from config.communities import WELL_KNOWN_COMMUNITIES, community_octets, community_text, parse_community
from config.load import check_text
from config.model import Config
from config.prefix_range import PrefixRange
from config.show import dump_yaml, effective
from config.store import parse_store

HEAD = "apiVersion: podroute/v1\nnode: {name: n1, as: 65000, routerId: 10.0.0.1, labels: {rack: r1}}\n"


def problems(body: str) -> list[str]:
    return [problem.render("f") for problem in check_text(HEAD + body, "f").problems]


def warnings(body: str) -> list[str]:
    return [f"{problem.path}: {problem.text}" for problem in check_text(HEAD + body, "f").warnings]


def config(body: str) -> Config:
    report = check_text(HEAD + body, "f")
    assert report.config is not None, report.problems
    return report.config


def peer(**values: str) -> str:
    fields = {"address": "10.1.1.1", "as": "65011", "import": "accept", "export": "accept", **values}
    return "peers: {t: {" + ", ".join(f"{key.rstrip('_')}: {value}" for key, value in fields.items()) + "}}\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "pools: {a: {cidr: 10.64.0.0/16}, b: {cidr: 10.64.8.0/22}}",
            ["f:pools.b.cidr: 10.64.8.0/22 overlaps pool a (10.64.0.0/16), must be addresses of this pool alone"],
        ),
        (
            "pools: {a: {cidr: fd00:64::/48}, b: {cidr: 'fd00::/16'}}",
            ["f:pools.b.cidr: fd00::/16 overlaps pool a (fd00:64::/48), must be addresses of this pool alone"],
        ),
        ("pools: {a: {cidr: 10.64.0.0/16}, b: {cidr: 10.65.0.0/16}, c: {cidr: 'fd00:a40::/32'}}", []),
        (
            "pools: {a: {cidr: 10.64.0.0/27}}",
            ["f:pools.a.blockSize: is 26, must be 27 to 32 (not shorter than the pool's own /27)"],
        ),
        ("pools: {a: {cidr: 10.64.0.0/26}, b: {cidr: 10.64.1.0/32, blockSize: 32}}", []),
        (
            "pools: {a: {cidr: 10.64.0.0/16}}\n" + peer(address="10.64.0.1", localAddress="10.64.0.2"),
            [
                "f:peers.t.address: 10.64.0.1 lies in pool a (10.64.0.0/16), must be outside of every pool",
                "f:peers.t.localAddress: 10.64.0.2 lies in pool a (10.64.0.0/16), must be outside of every pool",
            ],
        ),
        (
            "advertise: [192.0.2.1/32, 192.0.2.1/32]",
            ["f:advertise[1]: 192.0.2.1/32 is given twice, must be given once: remove one"],
        ),
        ("routes: {resilient: {}}", []),
        ("routes: {resilient: {buckets: 64, idleTimer: 0, unbalancedTimer: 86400}}", []),
        ("routes: {resilient: {buckets: 8}}\nbgp: {maxPaths: 8}", []),
        (
            "routes: {resilient: {buckets: 8}}\nbgp: {maxPaths: 9}",
            ["f:routes.resilient.buckets: is 8, must be 9 (bgp.maxPaths) or more: every next hop needs a bucket"],
        ),
        ("routes: {onlink: {192.0.2.0/24: eth0, 'fd00::/8': eth0.100, 0.0.0.0/0: eth1}}", []),
        (
            "routes: {onlink: {192.0.2.1/24: eth0, 192.0.2.0: eth0}}",
            [
                'f:routes.onlink."192.0.2.1/24": is "192.0.2.1/24", must be a prefix without host bits: "192.0.2.0/24"',
                'f:routes.onlink."192.0.2.0": is "192.0.2.0", '
                'must be a prefix such as "10.64.0.0/16" or "fd00:64::/48"',
            ],
        ),
        ("metrics: {listen: '127.0.0.1:9179'}", []),
        ("metrics: {listen: '[fd00::1]:9179'}", []),
        ("metrics: {}", []),
        *(
            (
                f"metrics: {{listen: {value}}}",
                [f'f:metrics.listen: is {shown}, must be address:port such as "0.0.0.0:179" or "[::]:179"'],
            )
            for value, shown in {
                "9179": "9179",
                "':9179'": '":9179"',
                "localhost:9179": '"localhost:9179"',
                "127.0.0.1": '"127.0.0.1"',
                "127.0.0.1:0": '"127.0.0.1:0"',
                "'::1:9179'": '"::1:9179"',
                "127.0.0.1:65536": '"127.0.0.1:65536"',
            }.items()
        ),
        ("metrics: {port: 9179}", ["f:metrics.port: is not a known key, must be one of listen"]),
        (
            "routes: {onlink: {192.0.2.0/24: lo, 198.51.100.0/24: 7, 203.0.113.0/24: an interface}}",
            [
                f'f:routes.onlink."{prefix}": is {value}, '
                'must be the name of an interface that has neighbours such as "eth0"'
                for prefix, value in (
                    ("192.0.2.0/24", '"lo"'),
                    ("198.51.100.0/24", "7"),
                    ("203.0.113.0/24", '"an interface"'),
                )
            ],
        ),
        (
            "routes: {onlink: {127.1.0.0/16: eth0, 232.0.0.0/8: eth0, 'fe80::/64': eth0}}",
            [
                'f:routes.onlink."127.1.0.0/16": lies in 127.0.0.0/8 (loopback), must be where next hops may be',
                'f:routes.onlink."232.0.0.0/8": lies in 224.0.0.0/3 (multicast and reserved), '
                "must be where next hops may be",
                'f:routes.onlink."fe80::/64": lies in fe80::/10 '
                "(link-local: such a next hop brings its interface along), must be where next hops may be",
            ],
        ),
        (peer(address="'fd00::1'", families="[ipv4, ipv6]"), []),
        (
            peer(routeReflectorClient="true"),
            [
                "f:peers.t.routeReflectorClient: is true for a peer in AS 65011, must be false: "
                "clients are in our own AS 65000"
            ],
        ),
        (peer(families="[ipv4, ipv6]"), []),
        (peer(families="[ipv6]"), []),
        (peer(families="[ipv4, ipv4]"), ["f:peers.t.families: names a family twice, must name each once"]),
        (
            peer(localAddress="'fd00::1'"),
            ["f:peers.t.localAddress: fd00::1 is an IPv6 address, must be an IPv4 one like the peer's"],
        ),
        (
            peer(localAddress="10.1.1.1"),
            ["f:peers.t.localAddress: 10.1.1.1 is the peer's own address, must be an address of this node"],
        ),
        (
            peer(address="'fe80::1%eth0'", localAddress="'fe80::2%eth1'"),
            ["f:peers.t.localAddress: fe80::2%eth1 is on eth1, must be on eth0 like the peer's"],
        ),
        (
            "bgp: {listen: []}\n" + peer(passive="true"),
            [
                "f:peers.t.passive: is true while bgp.listen is empty, so nobody would connect; must be false, or "
                "bgp.listen an address"
            ],
        ),
        (
            "peers: {a: {address: 10.0.0.2, as: 1}, b: {address: 10.0.0.2, as: 1}}",
            ["f:peers.b.address: 10.0.0.2 is the address of peer a too, must be given once: remove one of the two"],
        ),
        (
            "peers: {a: {address: 10.0.0.2, as: 1, nodes: {rack: r1}},"
            " b: {address: 10.0.0.2, as: 1, nodes: {rack: r2}}}",
            [],
        ),
        (
            "peers: {a: {address: 10.0.0.2, as: 1, nodes: {rack: r1}},"
            " b: {address: 10.0.0.2, as: 1, nodes: {zone: z}}}",
            ["f:peers.b.address: 10.0.0.2 is the address of peer a too, must be given once: remove one of the two"],
        ),
        (
            "peers: {a: {as: 1}}",
            [
                'f:peers.a.address: is missing, must be the address of the peer such as "10.1.1.1", or listenRange a'
                " prefix"
            ],
        ),
        (
            "peers: {a: {address: 10.0.0.2, as: external, listenLimit: 3}}",
            [
                "f:peers.a.as: is external, must be one AS number: only a listenRange takes several",
                "f:peers.a.listenLimit: is given for one address, must be left out: it limits a listenRange",
            ],
        ),
        ("bgp: {connectRetry: 9}\npeers: {a: {listenRange: 10.0.0.0/24, as: [1, 3-9, 65001-65009], nodes: {}}}", []),
        (
            "peers: {a: {listenRange: 10.0.0.0/24, as: 1,"
            " address: 10.0.0.2, port: 1179, passive: true, connectRetry: 2}}",
            [
                "f:peers.a.listenRange: is given beside an address, must be one of the two: remove the other",
                *(
                    f"f:peers.a.{key}: is given for a listenRange, to which nobody connects; must be left out"
                    for key in ("port", "passive", "connectRetry")
                ),
            ],
        ),
        (
            'bgp: {listen: []}\npeers: {a: {listenRange: 10.0.0.0/24, as: ["64512-65100"]}}',
            [
                "f:peers.a.listenRange: is given while bgp.listen is empty, so nobody would connect; bgp.listen must be"
                " an address",
                "f:peers.a.as: is 64512-65100, must be AS numbers without our own 65000, or internal: such peers need"
                " other rules",
            ],
        ),
        ("peers: {a: {listenRange: 10.0.0.0/24, as: 65000}, b: {listenRange: 10.0.0.0/25, as: internal}}", []),
        (
            "peers: {a: {listenRange: 10.0.0.0/24, as: 1}, b: {listenRange: 10.0.0.0/24, as: 2}}",
            [
                "f:peers.b.listenRange: 10.0.0.0/24 is the range of peer a too, must be given once:"
                " remove one of the two"
            ],
        ),
        (
            "peers: {a: {listenRange: 10.0.0.0/24, as: external, routeReflectorClient: true}}",
            [
                "f:peers.a.routeReflectorClient: is true for a peer in AS external, must be false:"
                " clients are in our own AS 65000"
            ],
        ),
        (
            "api: {socket: /run/x.sock}\ncni: {socket: /run/x.sock}",
            ["f:api.socket: /run/x.sock is the path of cni.socket too, must be a socket of its own"],
        ),
        ("cni: {mtu: 1000}\npools: {a: {cidr: 10.64.0.0/16}}", []),
    ],
)
def test_values_against_each_other(body: str, expected: list[str]) -> None:
    assert problems(body) == expected


@pytest.mark.parametrize(
    ("policy", "path", "text"),
    [
        (
            "{rules: [{name: a, action: accept}, {name: a, action: reject}]}",
            ".rules[1].name",
            'is "a" again, must be unique within the policy',
        ),
        (
            "{rules: [{name: a, action: accept, match: {source: [block]}}]}",
            ".rules[0].match.source",
            "is given in an import policy, where every route is learned; must be left out",
        ),
        (
            "{rules: [{name: a, action: accept, set: {nextHop: self}}]}",
            ".rules[0].set.nextHop",
            "is given in an import policy, must be in the export policy",
        ),
        (
            "{rules: [{name: a, action: accept, match: {family: ipv6, prefixes: [10.0.0.0/8]}}]}",
            ".rules[0].match.prefixes[0]",
            'is "10.0.0.0/8" under match.family ipv6, so never matches; must be of that family',
        ),
        (
            "{rules: [{name: a, action: accept, match: {prefixes: [10.0.0.1/8]}}]}",
            ".rules[0].match.prefixes[0]",
            'is "10.0.0.1/8", must be a prefix without host bits and, if wanted, lengths: "10.0.0.0/8 ge 24 le 26", '
            "prefix length <= ge <= le",
        ),
        (
            "{rules: [{name: a, action: accept, set: {communities: [no-advert]}}]}",
            ".rules[0].set.communities[0]",
            'is "no-advert", must be "65000:100" (each 0 to 65535), "4200000001:1:2" (large) or one of '
            "graceful-shutdown, blackhole, no-export, no-advertise, no-export-subconfed, no-peer",
        ),
        ("{rules: [{name: a, action: drop}]}", ".rules[0].action", 'is "drop", must be accept or reject'),
        (
            "{rules: [{action: accept}]}",
            ".rules[0].name",
            "is missing, must be the rule's name, unique within its policy",
        ),
        ("{default: maybe}", ".default", 'is "maybe", must be accept or reject'),
        ("{rules: a}", ".rules", 'is "a", must be a list of rules, each with name, match, action and set'),
        ("{rules: [a]}", ".rules[0]", 'is "a", must be a mapping of name, match, action, set'),
        (
            "{rules: [{name: a, action: accept, set: {prepend: 11}}]}",
            ".rules[0].set.prepend",
            "is 11, must be how often our AS is prepended, 0 to 10",
        ),
        (
            "{rules: [{name: a, action: accept, match: {source: [kernel]}}]}",
            ".rules[0].match.source[0]",
            'is "kernel", must be block or exception or aggregate or static or learned',
        ),
    ],
)
def test_policies(policy: str, path: str, text: str) -> None:
    body = f"peers: {{t: {{address: 10.1.1.1, as: 65011, import: {policy}}}}}"
    assert problems(body) == [f"f:peers.t.import{path}: {text}"]


def test_warnings() -> None:
    assert warnings("peers: {t: {address: 10.1.1.1, as: 65011}}") == [
        "peers.t.import: is missing on an eBGP peer, so nothing is accepted from it (RFC 8212); say accept, reject or a"
        " policy",
        "peers.t.export: is missing on an eBGP peer, so nothing is advertised to it (RFC 8212); say accept, reject or a"
        " policy",
    ]
    assert warnings("peers: {t: {address: 10.1.1.1, as: 65000}}") == []
    overlapping = "pools: {p: {cidr: 10.64.0.0/16}}\npeers: {t: {listenRange: 10.0.0.0/8, as: internal}}"
    assert warnings(overlapping) == [
        "peers.t.listenRange: overlaps pool p (10.64.0.0/16), so containers may become neighbours;"
        " give it a passwordFile"
    ]
    rules = "{rules: [{name: a, action: accept, set: {localPref: 5}}, {name: b, action: reject, set: {med: 1}}]}"
    assert warnings(peer(export=rules)) == [
        "peers.t.export.rules[0].set.localPref: has no effect on an eBGP peer (RFC 4271 section 5.1.5); leave it out",
        "peers.t.export.rules[1].set: has no effect, as the rule rejects; leave it out",
    ]
    assert warnings("pools: {p: {cidr: 10.64.0.0/16, nodes: {rack: r2}}}\n" + peer(nodes="{rack: r2}")) == [
        "pools: holds no pool for this node (no `nodes` selector matches its labels): no containers",
        "peers: holds no peer for this node (no `nodes` selector matches its labels): nothing is advertised",
    ]


def test_password_files(tmp_path: Path) -> None:
    key = tmp_path / "tor.key"
    at = f'f:peers.t.passwordFile: is "{key}", which'
    body = peer(passwordFile=str(key))
    assert problems(body) == [
        f"{at} cannot be read (No such file or directory), must be a file that holds the password"
    ]
    key.write_text("secret\n")
    key.chmod(0o644)
    assert problems(body) == [f"{at} everybody on this machine may use (mode 0644), must be protected: chmod 600 {key}"]
    key.chmod(0o600)
    assert problems(body) == []
    key.write_text("\n")
    assert problems(body) == [f"{at} is empty, must hold a password of 1 to 80 octets"]
    key.write_text("x" * 81)
    assert problems(body) == [f"{at} is longer than 80 octets, must hold a password of 1 to 80 octets"]
    key.write_text("x" * 80 + "\n")
    assert problems(body) == []
    directory = peer(passwordFile=str(tmp_path))
    assert problems(directory)[0].startswith(f'f:peers.t.passwordFile: is "{tmp_path}", which')
    # A peer of other nodes: its file is on those
    assert problems(peer(passwordFile="/nonexistent/key", nodes="{rack: r2}")) == []


def test_who_is_inside_a_range_with_a_password_needs_one(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o600)
    body = f"""\
peers:
  range: {{listenRange: 10.0.0.0/16, as: 1, passwordFile: {key}}}
  inner: {{listenRange: 10.0.1.0/24, as: 1}}
  other: {{listenRange: 10.0.0.0/8, as: 1}}
  one: {{address: 10.0.0.2, as: 1}}
  two: {{address: 10.0.0.3, as: 1, passwordFile: {key}}}
  six: {{address: "fd00::2", as: 1}}
"""
    why = "is missing inside the range of range, which has a password, must be given: TCP would drop all else"
    assert problems(body) == [f"f:peers.{name}.passwordFile: {why}" for name in ("inner", "one")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_password_file_of_somebody_else(tmp_path: Path) -> None:
    key = tmp_path / "tor.key"
    key.write_text("secret")
    key.chmod(0)
    assert "Permission denied" in problems(peer(passwordFile=str(key)))[0]


def test_pools_against_the_subnets_of_the_node() -> None:
    pools = config(
        "pools: {a: {cidr: 10.64.0.0/16}, b: {cidr: 'fd00:64::/48'}, c: {cidr: 10.1.0.0/16, nodes: {rack: x}}}"
    )
    subnets = ["10.1.1.11/24", "10.64.9.1/24", "fd00:64::1/64", "fe80::1/64"]
    assert [problem.render("f") for problem in overlaps_with_subnets(pools, subnets)] == [
        "f:pools.a.cidr: 10.64.0.0/16 overlaps 10.64.9.0/24, a subnet of this node, "
        "must be addresses that no link uses",
        "f:pools.b.cidr: fd00:64::/48 overlaps fd00:64::/64, a subnet of this node, "
        "must be addresses that no link uses",
    ]
    assert overlaps_with_subnets(pools, ["10.1.1.11/24"]) == []
    lent = ["10.64.9.0/24", "fd00:64::/64"]
    assert overlaps_with_subnets(pools, [*subnets, "10.64.9.1/32"], lent) == []
    assert len(overlaps_with_subnets(pools, subnets, ["10.64.9.0/25", "fd00:64::/64"])) == 1


def test_selectors_choose_peers_and_pools() -> None:
    chosen = config(
        "pools: {all: {cidr: 10.1.0.0/16}, ours: {cidr: 10.2.0.0/16, nodes: {rack: r1}},"
        " both: {cidr: 10.3.0.0/16, nodes: {rack: r1, zone: z}}}\n"
        "peers: {a: {address: 10.0.0.2, as: 1, nodes: {rack: r2}}, b: {address: 10.0.0.3, as: 1}}\n"
    )
    assert list(chosen.pools_here()) == ["all", "ours"]
    assert list(chosen.peers_here()) == ["b"]


def test_policies_that_hold_where_none_is_written() -> None:
    external = config("peers: {t: {address: 10.0.0.2, as: 1, export: accept}}")
    internal = config("peers: {t: {address: 10.0.0.2, as: 65000}}")
    assert [policy.default for policy in external.policies(external.peers["t"])] == ["reject", "accept"]
    assert [policy.default for policy in internal.policies(internal.peers["t"])] == ["accept", "accept"]


@pytest.mark.parametrize(
    ("text", "expected", "canonical"),
    [
        ("10.0.0.0/8", (4, b"\x08\x0a", 8, 8), "10.0.0.0/8"),
        ("10.0.0.0/8 ge 24", (4, b"\x08\x0a", 24, 32), "10.0.0.0/8 ge 24"),
        ("10.0.0.0/8 le 26", (4, b"\x08\x0a", 8, 26), "10.0.0.0/8 le 26"),
        ("10.0.0.0/8  ge 24   le 26", (4, b"\x08\x0a", 24, 26), "10.0.0.0/8 ge 24 le 26"),
        ("0.0.0.0/0 le 32", (4, b"\x00", 0, 32), "0.0.0.0/0 ge 0"),
        ("fd00::/8 ge 8", (6, b"\x08\xfd", 8, 128), "fd00::/8 ge 8"),
        ("::/0", (6, b"\x00", 0, 0), "::/0"),
    ],
)
def test_prefix_ranges(text: str, expected: tuple[int, bytes, int, int], canonical: str) -> None:
    parsed = PrefixRange.parse(text)
    assert tuple(parsed) == expected
    assert str(parsed) == canonical
    assert PrefixRange.parse(canonical) == parsed


@pytest.mark.parametrize(
    "text", ["", "10.0.0.0", "10.0.0.0/8 ge 7", "10.0.0.0/8 ge 25 le 24", "10.0.0.0/8 le 33", "10.0.0.0/8 le 7", "x/8",
             "10.0.0.0/8 le", "10.0.0.0/8 le 24 ge 9", "10.0.0.1/8"]
)  # fmt: skip
def test_what_is_no_prefix_range(text: str) -> None:
    with pytest.raises(ValueError):
        PrefixRange.parse(text)


def test_communities() -> None:
    assert parse_community("65000:1") == (65000, 1)
    assert parse_community("4200000001:1:2") == (4200000001, 1, 2)
    assert parse_community("no-export") == (65535, 65281)
    for text in ("65536:1", "1", "1:2:3:4", "a:b", "-1:2", "4294967296:1:2", ""):
        with pytest.raises(ValueError):
            parse_community(text)


@pytest.mark.parametrize(
    "text",
    [
        *WELL_KNOWN_COMMUNITIES,
        "65000:1",
        "rt:65000:4294967295",
        "so:4200000001:65535",
        "4200000001:1:2",
    ],
)
def test_communities_are_shown_as_they_are_written(text: str) -> None:
    assert community_text(community_octets(text)) == text


def test_an_extended_community_of_another_kind_is_shown_in_octets() -> None:
    assert community_text(bytes.fromhex("030c000000000008")) == "ext:030c000000000008"


def test_store_urls() -> None:
    assert parse_store("sqlite:///var/lib/x.db").path == "/var/lib/x.db"
    assert parse_store("sqlite:////var/lib/x.db").url == "sqlite:///var/lib/x.db"
    assert parse_store("etcd://e1,e2.example:2390,[fd00::1]").endpoints == (
        ("e1", 2379),
        ("e2.example", 2390),
        ("fd00::1", 2379),
    )
    assert parse_store("etcd://e1:2379,[fd00::1]:99").url == "etcd://e1,[fd00::1]:99"
    for text in ("sqlite://", "sqlite:///", "sqlite://x.db", "/x.db", "sqlite:///dir/", "etcd://", "etcd://a,", "etcd"):
        with pytest.raises(ValueError):
            parse_store(text)
    for text in ("etcd://a,a:2379", "etcd://a:0", "etcd://a:99999", "etcd://fd00::1", "etcd://u:p@a", "etcd://a/x"):
        with pytest.raises(ValueError):
            parse_store(text)


def test_a_store_that_cannot_be_used_so(tmp_path: Path) -> None:
    assert problems("store: {url: 'etcd://e1'}") == []
    assert problems("store: {url: 'etcd://e1', tls: true}") == []
    assert problems("store: {url: 'sqlite:///x.db', tls: true}")[0].startswith(
        "f:store: is a SQLite file with one of tls, ca"
    )
    assert problems("store: {url: 'etcd://e1', user: u}") == [
        "f:store.passwordFile: is missing, must be given together with user"
    ]
    assert problems("store: {url: 'etcd://e1', ca: /nowhere/ca.pem}") == [
        'f:store.ca: is "/nowhere/ca.pem", which is no file, must be a PEM file'
    ]
    key = tmp_path / "password"
    key.write_text("hunter2")
    key.chmod(0o644)
    found = problems(f"store: {{url: 'etcd://e1', user: u, passwordFile: {key}}}")
    assert len(found) == 1
    assert "chmod 600" in found[0]


def test_the_effective_configuration_is_whole_without_secrets_and_loads_again(tmp_path: Path) -> None:
    key = tmp_path / "very-secret-name.key"
    key.write_text("hunter2")
    key.chmod(0o600)
    rules = "{rules: [{name: a, match: {prefixes: [10.0.0.0/8 le 26]}, action: accept}]}"
    given = config(peer(passwordFile=str(key), export=rules) + "pools: {p: {cidr: 10.64.0.0/16}}")
    text = dump_yaml(effective(given))
    assert "hunter2" not in text
    assert "very-secret-name" not in text
    data = yaml.safe_load(text)
    assert data["peers"]["t"]["passwordFile"] == "<redacted>"
    assert data["peers"]["t"]["export"]["rules"][0]["match"]["prefixes"] == ["10.0.0.0/8 le 26"]
    assert data["pools"]["p"] == {
        "cidr": "10.64.0.0/16",
        "blockSize": 26,
        "nodes": {},
        "disabled": False,
        "manual": False,
        "notAdvertised": False,
        "reservations": [],
        "splitBy": None,
    }
    assert data["stateDir"] == "/var/lib/podroute"
    assert list(data)[:2] == ["apiVersion", "node"]
    again = check_text(text.replace("<redacted>", str(key)), "f").config
    assert again == given


def test_a_listen_range_is_shown_with_what_applies_to_it() -> None:
    body = 'bgp: {connectRetry: 2}\npeers: {r: {listenRange: 10.0.0.0/24, as: [65011, "65020-65029"], multihop: 2}}'
    shown = effective(config(body))
    entry = shown["peers"]["r"]
    assert (entry["listenRange"], entry["listenLimit"], entry["as"]) == ("10.0.0.0/24", 100, [65011, "65020-65029"])
    assert not entry.keys() & {"address", "port", "localAddress", "passive", "connectRetry"}
    again = check_text(dump_yaml(shown), "f")
    assert again.problems == ()
    assert again.config is not None
    assert effective(again.config) == shown


def test_commands(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(HEAD + "peers: {t: {address: 10.1.1.1, as: 65011, import: accept}}\n")
    bad.write_text(HEAD + "peers: {t: {address: 10.1.1, as: 0}}\n")
    run = CliRunner().invoke
    checked = run(config_commands, ["check", str(good)])
    assert checked.exit_code == 0
    assert checked.output.splitlines() == [
        f"{good}:peers.t.export: warning: is missing on an eBGP peer, so nothing is advertised to it (RFC 8212); say "
        "accept, reject or a policy",
        f"{good}: ok",
    ]
    checked = run(config_commands, ["check", str(bad)])
    assert checked.exit_code == 1
    assert [line.split(" ")[0] for line in checked.output.splitlines()] == [
        f"{bad}:peers.t.address:",
        f"{bad}:peers.t.as:",
    ]
    shown = run(config_commands, ["show", str(good)])
    assert shown.exit_code == 0
    assert yaml.safe_load(shown.output)["peers"]["t"]["export"] == "reject"
    shown = run(config_commands, ["show", "--json", str(good)])
    assert yaml.safe_load(shown.output)["node"]["as"] == 65000
    shown = run(config_commands, ["show", str(bad)])
    assert shown.exit_code == 1
    assert shown.stdout == ""
    assert "peers.t.as" in shown.stderr


RECLAIM = "ipam: {{lease: 30, {}}}\n"
SAFE = "bgp: {gracefulRestart: {enabled: false}}\n" + peer(holdTime="9")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (SAFE + RECLAIM.format("fenceAfter: 60, reclaimAfter: 78"), []),
        (
            SAFE + RECLAIM.format("fenceAfter: 60, reclaimAfter: 77"),
            [
                "f:ipam.reclaimAfter: is 77, must be 78 or more: this node's blocks may be seen for 69 s (fenceAfter "
                "60, longest holdTime 9, gracefulRestart restartTime and deferralTime 0), and a margin of 9 s is kept"
            ],
        ),
        # Twice the lease unless it is given
        (SAFE + RECLAIM.format("reclaimAfter: 78"), []),
        (
            peer() + RECLAIM.format("reclaimAfter: 60"),
            [
                "f:ipam.reclaimAfter: is 60, must be 366 or more: this node's blocks may be seen for 330 s (fenceAfter "
                "60, longest holdTime 90, gracefulRestart restartTime and deferralTime 180), and a margin of 36 s is "
                "kept"
            ],
        ),
        # Other nodes' peers do not matter
        (peer(nodes="{rack: r2}") + RECLAIM.format("reclaimAfter: 69"), []),
        (
            "mesh: {m: {select: {}, holdTime: 30, import: accept, export: accept}}\n"
            + RECLAIM.format("reclaimAfter: 60")
            + "bgp: {gracefulRestart: {enabled: false}}\n",
            [
                "f:node.addresses: is missing, must be where the other nodes of the mesh reach this one",
                "f:ipam.reclaimAfter: is 60, must be 102 or more: this node's blocks may be seen for 90 s (fenceAfter "
                "60, longest holdTime 30, gracefulRestart restartTime and deferralTime 0), and a margin of 12 s is "
                "kept",
            ],
        ),
        (
            SAFE + RECLAIM.format("fenceAfter: 29, reclaimAfter: 78"),
            [
                "f:ipam.fenceAfter: is 29, must be 30 (ipam.lease) or more: a node that is merely late would be fenced",
            ],
        ),
        (
            RECLAIM.format("fenceAfter: 60"),
            ["f:ipam.fenceAfter: is given without ipam.reclaimAfter, must be left out, or both given"],
        ),
        (
            peer(holdTime="0") + RECLAIM.format("reclaimAfter: 1000"),
            ["f:peers.t.holdTime: is 0, so that a dead node goes unnoticed, must be 3 or more with ipam.reclaimAfter"],
        ),
        (
            "ipam: {reclaimAfter: soon, quarantine: 0, borrowing: maybe}",
            [
                'f:ipam.borrowing: is "maybe", must be true (nodes with full pools borrow addresses) or false',
                "f:ipam.quarantine: is 0, must be 1 to 86400 seconds that the blocks of a dead node rest",
                'f:ipam.reclaimAfter: is "soon", must be never, or 0 to 86400 seconds',
            ],
        ),
    ],
)
def test_reclaim_that_would_not_be_safe_is_refused(body: str, expected: list[str]) -> None:
    assert sorted(problems(body)) == sorted(expected)


def test_a_weight_is_for_import_and_a_ttl_is_set_in_one_way() -> None:
    rules = "{rules: [{name: a, action: accept, set: {weight: 5}}]}"
    assert problems(peer(export=rules)) == [
        "f:peers.t.export.rules[0].set.weight: is given in an export policy, must be in the import policy: it does not "
        "leave this node"
    ]
    assert problems(peer(**{"import": rules})) == []
    assert problems(peer(multihop="3", ttlSecurity="2")) == [
        "f:peers.t.multihop: is 3 beside ttlSecurity, which sends with TTL 255, must be left out, or ttlSecurity"
    ]


def test_the_timers_of_bgp_hold_for_peers_and_meshes_without_their_own() -> None:
    mesh = "mesh: {a: {select: {}}, b: {select: {}, holdTime: 30}}\n"
    head = HEAD.replace("routerId: 10.0.0.1", "routerId: 10.0.0.1, addresses: [10.0.0.1]")
    made = check_text(head + "bgp: {holdTime: 9, connectRetry: 7}\n" + peer() + mesh, "f").config
    assert made is not None
    assert (made.peers["t"].hold_time, made.peers["t"].connect_retry) == (9, 7)
    assert [(one.hold_time, one.connect_retry) for one in made.mesh.values()] == [(9, 0.5), (30, 0.5)]


def test_every_key_is_documented() -> None:
    """In a table or a sentence; the names of nested ones, such as `log.level`, may have those of their section."""
    pages = "".join(page.read_text() for page in (Path(__file__).parents[2] / "docs").glob("*.md"))
    sections: list[type[BaseModel]] = [Config]
    for section in sections:
        for name, field in section.model_fields.items():
            key = field.alias or name
            forms = (rf"`([a-zA-Z.]*\.)?{key}[`.:]", rf"^ *{key}:", rf"[{{ ]{key}: ")
            named = any(re.search(form, pages, re.MULTILINE) for form in forms)
            assert named, f"{section.__name__}: {key}"
            found = [one for one in _models(field.annotation) if one not in sections]
            sections += found
    assert len(sections) > 15


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
