"""Settings of a fresh namespace become what routing needs, and findings name what stands against it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from routes.sysctl import findings, set_needed
from tests.kernel.routes_lab import uplinks
from tests.netns import Netns

pytestmark = pytest.mark.root

Maker = Callable[[], Netns]


def value(ns: Netns, name: str) -> str:
    return ns.run("sysctl", "-n", name).strip()


def test_needed_settings(netns: Maker) -> None:
    ns, _ = uplinks(netns)
    ns.run("ip", "-6", "route", "add", "default", "via", "fd00:1::2", "dev", "up1", "proto", "ra")
    settings = ns.call(set_needed)
    assert settings.problems == []
    assert "net.ipv4.ip_forward=1 (was 0)" in settings.changed
    for name in (
        "net.ipv4.ip_forward",
        "net.ipv6.conf.all.forwarding",
        "net.ipv4.fib_multipath_hash_policy",
        "net.ipv6.fib_multipath_hash_policy",
    ):
        assert value(ns, name) == "1"
    assert value(ns, "net.ipv6.conf.up1.accept_ra") == "2"
    assert value(ns, "net.ipv6.conf.up0.accept_ra") != "2"
    assert ns.call(set_needed).changed == []
    ns.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    assert any("net.ipv4.ip_forward is 0" in text for text in ns.call(lambda: findings(["up0"])))


def test_strict_reverse_path_filter(netns: Maker) -> None:
    ns, _ = uplinks(netns)
    ns.call(set_needed)
    for name in ("all", "up0", "up1"):
        ns.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=0")
    assert ns.call(lambda: [text for text in findings(["up0", "up1"]) if "rp_filter" in text]) == []
    ns.run("sysctl", "-qw", "net.ipv4.conf.up1.rp_filter=1")
    assert ns.call(lambda: [text for text in findings(["up1"]) if "rp_filter" in text]) == []
    found = ns.call(lambda: [text for text in findings(["up0", "up1"]) if "rp_filter" in text])
    assert len(found) == 1
    assert "net.ipv4.conf.up1.rp_filter is 1 (strict)" in found[0]
    ns.run("sysctl", "-qw", "net.ipv4.conf.up1.rp_filter=2")
    assert ns.call(lambda: [text for text in findings(["up0", "up1"]) if "rp_filter" in text]) == []


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft (Debian: nftables)")
def test_firewall_that_drops(netns: Maker) -> None:
    ns, _ = uplinks(netns)
    ns.call(set_needed)

    def firewall() -> list[str]:
        return ns.call(lambda: [text for text in findings([]) if "firewall" in text])

    assert firewall() == []
    for command in (
        "add table inet guard",
        "add chain inet guard transit { type filter hook forward priority 0 ; policy drop ; }",
        "add chain inet guard inbound { type filter hook input priority 0 ; policy drop ; }",
    ):
        ns.run("nft", command)
    assert firewall() == [
        "firewall chain `inet guard transit` has policy drop: traffic from and to pods is dropped; "
        "add a rule there that accepts it, or set the policy to accept"
    ]


def test_nft_that_hangs(netns: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nft").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setattr("routes.sysctl._TIMEOUT", 0.05)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert shutil.which("nft") == str(tmp_path / "nft")
    ns = netns()
    ns.call(set_needed)
    assert ns.call(lambda: [text for text in findings([]) if "firewall" in text]) == []
