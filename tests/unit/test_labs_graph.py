"""The picture of a lab, and what is read out of routers for it."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from labs import graph
from labs.observe import NodeState, Session, count_learned, parse_bird

BIRD = """\
BIRD 2.0.12 ready.
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     22:00:01.000

tor        BGP        ---        up     22:00:02.000  Established
  BGP state:          Established
    Neighbor address: 10.1.1.1
    Neighbor AS:      65011
    Local AS:         65001
tor6       BGP        ---        start  22:00:02.000  Connect
  BGP state:          Connect
    Neighbor address: fe80::1%eth1
    Neighbor AS:      65011
    Local AS:         65001
"""


def test_routers_stand_above_the_nodes() -> None:
    edges = [("spine", "tor1"), ("spine", "tor2"), ("n1", "tor1"), ("n2", "tor2")]
    rows = graph.layers(["spine", "tor1", "tor2", "n1", "n2"], edges, {})
    assert rows == [["spine"], ["tor1", "tor2"], ["n1", "n2"]]


def test_the_picture_shows_sessions_by_colour() -> None:
    states = [
        NodeState("tor", "FRR", "65011", (Session("10.0.0.2", "Established"),), ("10.0.0.1",), (2, 1)),
        NodeState("n<1>", "podroute", "65001", (Session("10.0.0.1", "Established"),), ("10.0.0.2",)),
        NodeState("n2", "podroute", "65002", (Session("10.0.0.2", "Active"),), problem="no agent answers"),
    ]
    picture = graph.svg("lab", ["tor", "n<1>", "n2"], [("tor", "n<1>"), ("tor", "n2")], states)
    ElementTree.fromstring(picture)
    assert picture.count(f'stroke="{graph.GOOD}"') == 1
    assert 'stroke-dasharray="6 4"' in picture, "the session of two nodes that no link joins"
    assert "n&lt;1&gt;" in picture
    assert "1/1 up, routes 2 v4 1 v6" in picture
    assert "no agent answers" in picture


def test_pods_and_covers_are_not_learned() -> None:
    routes = [
        {"dst": "10.1.1.0/30", "dev": "eth1", "protocol": "kernel"},
        {"dst": "10.64.62.192/26", "nhid": 7, "gateway": "10.1.1.1", "dev": "eth1", "protocol": "201", "metric": 20},
        {"dst": "10.64.149.128", "dev": "prbff8b7b279287", "protocol": "201", "scope": "link"},
        {"type": "unreachable", "dst": "10.64.149.128/26", "protocol": "201", "metric": 1},
        {"dst": "10.0.0.0/8", "gateway": "10.1.1.1", "dev": "eth1", "protocol": "bgp"},
    ]
    assert count_learned(json.dumps(routes)) == 2
    assert count_learned("") == 0


def test_bird_is_understood() -> None:
    assert parse_bird(BIRD) == ("65001", (Session("10.1.1.1", "Established"), Session("fe80::1", "Connect")))
