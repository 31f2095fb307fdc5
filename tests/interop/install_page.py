"""docs/install.md as a test uses it: its files, its steps, and the rack that it describes, as a lab's topology."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/install.md").read_text()
UNIT = ROOT / "agent/podroute.service"
NODES = ("n1", "n2")
ETCD = tuple(f"192.0.2.{last}" for last in (21, 22, 23))
PASSWORD = "hunter2"

_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(section: str = "") -> list[str]:
    """Return the texts between fences of one section (its heading), or of the whole page."""
    text = TEXT
    if section:
        text = TEXT[TEXT.index(f"\n## {section}\n") + 4 :].partition("\n## ")[0]
    return _BLOCK.findall(text)


def file(path: str) -> str:
    """Return the file that names its own place in its first line."""
    (found,) = (block for block in blocks() if block.splitlines()[0].lstrip("!# ") == path)
    return found


def steps(section: str) -> list[str]:
    """Return the commands of a section, in order, without their comments."""
    lines = "".join(blocks(section)).splitlines()
    return [line.partition("  #")[0].strip() for line in lines]


def starting() -> list[str]:
    """Return the steps behind a node's configuration, less the waiting: nodes are started one after the other."""
    lines = steps("Each node")
    first = lines.index("podroute config check") - 1  # before it, the routers' password
    return [line for line in lines[first:] if "wait-converged" not in line]


def upgrade() -> tuple[list[str], list[str]]:
    """Return the steps of an upgrade, less getting the new sources, and those back to the release before."""
    there, back = blocks("Upgrade and back")
    lines = [[line.partition("  #")[0].strip() for line in block.splitlines()] for block in (there, back)]
    return [line.removeprefix("git pull && ") for line in lines[0]], [f"cd /opt && {lines[1][0]}", *lines[1][1:]]


def node_file(name: str) -> str:
    """Return a node's configuration: that of the page, with the page's line for this node."""
    text = file("/etc/podroute/podroute.yaml")
    (other,) = (block for block in blocks("Each node") if block.startswith("node: "))
    lines = {
        one["node"]["name"]: line for line in (text.splitlines()[2], other.strip()) if (one := yaml.safe_load(line))
    }
    return re.sub(r"^node: .*$", lines[name], text, flags=re.MULTILINE)


def unit_command() -> list[str]:
    """Return what the unit has systemd start."""
    (line,) = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(line).split()


def write_files(directory: Path) -> None:
    """Write everything that a node's /etc/podroute and the routers' directories hold."""
    for name in NODES:
        (directory / name).mkdir()
        (directory / name / "podroute.yaml").write_text(node_file(name))
        (directory / name / "etcd-ca.pem").write_bytes((directory / "ca.pem").read_bytes())
        (directory / name / "etcd.password").write_text(f"{PASSWORD}\n")
    (directory / "daemons").write_text('bgpd=yes\nzebra_options="-A 127.0.0.1"\nbgpd_options="-A 127.0.0.1"\n')
    (directory / "vtysh.conf").write_text("service integrated-vtysh-config\n")
    (directory / "frr.conf").write_text(file("/etc/frr/frr.conf"))
    (directory / "bird.conf").write_text(file("/etc/bird/bird.conf"))


def certificates(directory: Path) -> None:
    """Make an authority, and a certificate of etcd's three addresses."""
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-x509", "-days", "2")
    names = ",".join(f"IP:{host}" for host in (*ETCD, "127.0.0.1"))
    for words in (
        ("req", *new, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem"),
        (
            *("req", *new, "-subj", "/CN=etcd", "-keyout", "etcd.key", "-out", "etcd.pem"),
            *("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", f"subjectAltName={names}"),
        ),
    ):
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


def topology(directory: Path) -> Path:
    """Write the rack of the page, with what ``write_files`` wrote, and return its topology file.

    Agents are not started: that is a step of the page.
    """
    etcd = (
        "etcd --data-dir /var/lib/etcd-of-lab --listen-client-urls https://0.0.0.0:2379 "
        f"--advertise-client-urls https://{ETCD[0]}:2379 --cert-file /etc/etcd/etcd.pem --key-file /etc/etcd/etcd.key "
        "--logger zap --log-level error"
    )
    forwarding = {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1}
    nodes: dict[str, object] = {
        **{name: {"kind": "bridge"} for name in ("management", "rack1", "rack2")},
        "etcd": {
            "image": "quay.io/coreos/etcd:v3.4.23",
            "cmd": etcd,
            "env": {"ETCD_UNSUPPORTED_ARCH": os.uname().machine},
            "binds": [f"{directory}/{name}:/etc/etcd/{name}:ro" for name in ("ca.pem", "etcd.pem", "etcd.key")],
            "exec": [f"ip addr add {host}/24 dev eth0" for host in ETCD],
        },
        "tor1": {
            "image": "quay.io/frrouting/frr:8.4.1",
            "sysctls": forwarding,
            "binds": [f"{directory}/{name}:/etc/frr/{name}" for name in ("daemons", "vtysh.conf", "frr.conf")],
        },
        "tor2": {
            "image": "docker.io/pierky/bird:2.0.12",
            "sysctls": forwarding,
            "binds": [f"{directory}/bird.conf:/etc/bird/bird.conf"],
        },
        **{
            name: {
                "image": "localhost/podroute:dev",
                "cmd": "sleep infinity",  # the agent is started by hand
                "binds": [f"{directory}/{name}:/etc/podroute.given:ro"],
            }
            for name in NODES
        },
    }
    links = [_link("etcd", "eth0", "management")]
    links += [_link(f"tor{net}", "swp1", f"rack{net}", f"10.1.{net}.1/24", f"fd00:1:{net}::1/64") for net in (1, 2)]
    for number, name in enumerate(NODES, 11):
        links.append(_link(name, "eth0", "management", f"192.0.2.{number}/24"))
        links += [
            _link(name, f"eth{net}", f"rack{net}", f"10.1.{net}.{number}/24", f"fd00:1:{net}::{number}/64")
            for net in (1, 2)
        ]
    defaults = {"kind": "linux", "network-mode": "none", "sysctls": {"net.ipv6.conf.default.accept_dad": 0}}
    path = directory / "rack.clab.yml"
    path.write_text(
        yaml.safe_dump({"name": "rack", "topology": {"defaults": defaults, "nodes": nodes, "links": links}})
    )
    return path


def _link(node: str, interface: str, bridge: str, ipv4: str = "", ipv6: str = "") -> dict[str, object]:
    addresses = {key: value for key, value in (("ipv4", ipv4), ("ipv6", ipv6)) if value}
    end = {"node": node, "interface": interface, **addresses}
    return {"type": "veth", "endpoints": [end, {"node": bridge, "interface": node}]}
