"""FRR's daemons file."""

from __future__ import annotations

import pytest

from labs import frr


def test_daemons_and_their_options() -> None:
    text = """
# comment
bgpd=yes
ospfd=no
bfdd="yes"   # another
vtysh_enable=yes
zebra_options="  -A 127.0.0.1 -s 90000000"
bgpd_options='-A 127.0.0.1 -n'
frr_profile="datacenter"
"""
    commands = frr.commands(frr.parse(text))
    assert list(commands) == ["zebra", "staticd", "bgpd", "bfdd"]
    assert commands["zebra"][0] == "/usr/lib/frr/zebra"
    assert commands["zebra"][-4:] == ["-A", "127.0.0.1", "-s", "90000000"]
    assert commands["bgpd"][1:] == [
        "-d",
        "--log",
        "file:/var/log/frr/bgpd.log",
        "-F",
        "datacenter",
        "-A",
        "127.0.0.1",
        "-n",
    ]


def test_zebra_and_staticd_run_without_a_file() -> None:
    assert list(frr.commands(frr.parse(""))) == ["zebra", "staticd"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("bgpd=yes\nbgpd: yes", "line 2: `bgpd:` is not"), ("bgpd='yes", "line 1: no closing quotation")],
)
def test_a_broken_file(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frr.parse(text)
