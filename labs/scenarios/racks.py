"""A generated fabric: racks of ten nodes, a ToR each, behind a spine; an AS per node and ToR."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from labs.lab import load
from labs.topology import Topology

PER_RACK = 10
SPINE_AS = 65000
DAEMONS = 'bgpd=yes\nvtysh_enable=yes\nzebra_options="-A 127.0.0.1 -s 90000000"\nbgpd_options="-A 127.0.0.1"\n'

Neighbour = tuple[str, str, str, int]
"""An interface, this end's and the other end's numbers (``10.{}`` and ``fd00:{}`` take them), the neighbour's AS."""


def racks(directory: Path, nodes: int, *, name: str) -> Topology:
    """Write a topology with its configuration files into a directory, and load it. Raises LabError."""
    known: dict[str, Any] = {}
    links: list[dict[str, list[str]]] = []
    count = -(-nodes // PER_RACK)
    tors: list[list[Neighbour]] = [[("eth1", f"0.{rack}.2", f"0.{rack}.1", SPINE_AS)] for rack in range(1, count + 1)]
    spine: list[Neighbour] = [(f"eth{r}", f"0.{r}.1", f"0.{r}.2", SPINE_AS + 10 + r) for r in range(1, count + 1)]
    for number in range(1, nodes + 1):
        rack, place = divmod(number - 1, PER_RACK)
        link, port = f"{rack + 1}.{place + 1}", f"eth{place + 2}"
        tors[rack].append((port, f"{link}.1", f"{link}.2", 4200000000 + number))
        links.append({"endpoints": [f"tor{rack + 1}:{port}", f"n{number}:eth1"]})
        config = directory / f"n{number}.yaml"
        config.write_text(yaml.safe_dump(_node(number, link, SPINE_AS + 11 + rack), sort_keys=False))
        known[f"n{number}"] = {
            "image": "localhost/podroute:dev",
            "cmd": "podroute agent --config /etc/podroute/podroute.yaml",
            "binds": [f"{config}:/etc/podroute/podroute.yaml:ro", "__clabDir__/store:/var/lib/podroute-store"],
            "exec": [f"ip addr add {_v4(link)}.2/30 dev eth1", f"ip addr add {_v6(f'{link}.2')}/64 dev eth1"],
        }
    (directory / "daemons").write_text(DAEMONS)
    for rack, neighbours in enumerate(tors, 1):
        known[f"tor{rack}"] = _router(directory, f"tor{rack}", SPINE_AS + 10 + rack, neighbours)
        links.append({"endpoints": [f"spine:eth{rack}", f"tor{rack}:eth1"]})
    known["spine"] = _router(directory, "spine", SPINE_AS, spine)
    defaults = {
        "kind": "linux",
        "network-mode": "none",
        "sysctls": {"net.ipv6.conf.default.accept_dad": 0, "net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1},
    }
    file = directory / "racks.clab.yml"
    content = {"name": "racks", "topology": {"defaults": defaults, "nodes": known, "links": links}}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return load(file, name=name)


def _v4(numbers: str) -> str:
    return f"10.{numbers}"


def _v6(numbers: str) -> str:
    """``1.2.3`` is fd00:1:2::3."""
    first, second, last = numbers.split(".")
    return f"fd00:{first}:{second}::{last}"


def _node(number: int, link: str, tor: int) -> dict[str, Any]:
    peer = {"as": tor, "import": "accept", "export": "accept"}
    return {
        "apiVersion": "podroute/v1",
        "node": {"name": f"n{number}", "as": 4200000000 + number, "routerId": f"{_v4(link)}.2"},
        "store": "sqlite:///var/lib/podroute-store/store.db",
        "pools": {
            "pods4": {"cidr": "10.64.0.0/16", "blockSize": 26},
            "pods6": {"cidr": "fd00:64::/106", "blockSize": 122},
        },
        "bgp": {"holdTime": 30, "connectRetry": 1},
        "peers": {
            "tor-v4": {"address": f"{_v4(link)}.1", "localAddress": f"{_v4(link)}.2", "families": ["ipv4"], **peer},
            "tor-v6": {
                "address": _v6(f"{link}.1"),
                "localAddress": _v6(f"{link}.2"),
                "families": ["ipv6"],
                **peer,
            },
        },
    }


def _router(directory: Path, name: str, asn: int, neighbours: Iterable[Neighbour]) -> dict[str, Any]:
    neighbours = list(neighbours)
    lines = ["frr defaults traditional", f"hostname {name}", "bgp route-map delay-timer 0"]
    for interface, own, _, _ in neighbours:
        lines += [f"interface {interface}", f" ip address {_v4(own)}/30", f" ipv6 address {_v6(own)}/64", "exit"]
    number = 1 if name == "spine" else 10 + int(name.removeprefix("tor"))
    lines += [
        f"router bgp {asn}",
        f" bgp router-id 10.255.0.{number}",
        " no bgp ebgp-requires-policy",
        " no bgp default ipv4-unicast",
        " timers bgp 10 30",
        " coalesce-time 50",
    ]
    for _, _, other, remote in neighbours:
        for address in (_v4(other), _v6(other)):
            lines += [f" neighbor {address} {words}" for words in (f"remote-as {remote}", "timers connect 1")]
            lines.append(f" neighbor {address} advertisement-interval 0")
    for family, address_of in (("ipv4", _v4), ("ipv6", _v6)):
        lines += [f" address-family {family} unicast", "  redistribute connected"]
        lines += [f"  neighbor {address_of(other)} activate" for _, _, other, _ in neighbours]
        lines.append(" exit-address-family")
    config = directory / f"{name}.conf"
    config.write_text("\n".join([*lines, "exit", ""]))
    vtysh = directory / "vtysh.conf"
    vtysh.write_text("service integrated-vtysh-config\n")
    binds = [f"{config}:/etc/frr/frr.conf", f"{vtysh}:/etc/frr/vtysh.conf", f"{directory / 'daemons'}:/etc/frr/daemons"]
    return {"image": "frrouting/frr:v8.4.4", "binds": binds}
