"""What `nft` and configuration files say, read without a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from routes.sysctl import findings, forward_policies, set_needed


def chain(**fields: str) -> dict[str, dict[str, str]]:
    return {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", **fields}}


def test_forward_policies() -> None:
    ruleset = {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            chain(hook="forward", policy="drop"),
            chain(hook="forward", policy="accept", family="ip6"),
            chain(hook="input", policy="drop"),
            chain(hook="forward", policy="drop", type="nat"),
            {"chain": {"family": "inet", "table": "t", "name": "helper"}},
        ]
    }
    (found,) = forward_policies(ruleset)
    assert "`ip filter FORWARD` has policy drop" in found
    assert forward_policies({}) == []


@pytest.mark.parametrize(
    ("files", "manages"),
    [
        ({}, True),
        ({"etc/systemd/networkd.conf": "[Network]\nManageForeignRoutes=no\n"}, False),
        ({"usr/lib/systemd/networkd.conf": "[Network]\n#ManageForeignRoutes=no\n"}, True),
        ({"etc/systemd/networkd.conf.d/podroute.conf": "[Network]\nManageForeignRoutes = false\n"}, False),
        (
            {
                "usr/lib/systemd/networkd.conf.d/10-a.conf": "[Network]\nManageForeignRoutes=no\n",
                "etc/systemd/networkd.conf.d/20-b.conf": "[Network]\nManageForeignRoutes=yes\n",
            },
            True,
        ),
        (
            {
                "usr/lib/systemd/networkd.conf.d/10-a.conf": "[Network]\nManageForeignRoutes=yes\n",
                "etc/systemd/networkd.conf.d/10-a.conf": "[Network]\nManageForeignRoutes=no\n",
            },
            False,
        ),
    ],
)
def test_networkd(tmp_path: Path, files: dict[str, str], manages: bool) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert [text for text in findings([], tmp_path) if "ManageForeignRoutes" in text] == []  # it does not run
    (tmp_path / "run/systemd/netif").mkdir(parents=True)
    assert bool([text for text in findings([], tmp_path) if "ManageForeignRoutes" in text]) is manages


def test_settings_that_cannot_be_made(tmp_path: Path) -> None:
    path = tmp_path / "net/ipv4/ip_forward"
    path.mkdir(parents=True)  # reads and writes fail
    settings = set_needed(tmp_path)
    assert settings.changed == []
    assert settings.problems == ["cannot set net.ipv4.ip_forward=1: Is a directory; set it on the host"]
