"""The speakers that the suite is compared on, each in a namespace of its own with the suite on the other end of a link.

Everything lives in anonymous namespaces and dies with this process, also when that is killed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.frr import Frr
from tests.house import Bird, Gobgp, die_with_us
from tests.netns import Netns, link

SPEAKER_AS, OUTSIDE_AS = 65000, 65001
SPEAKER, SPEAKER6, SUITE6 = "10.9.0.1", "2001:db8:ffff::1", "2001:db8:ffff::9"
COUNT = 40
EXTERNAL = tuple(f"10.9.1.{n}" for n in range(1, COUNT + 1))
INTERNAL = tuple(f"10.9.2.{n}" for n in range(1, COUNT + 1))
OBSERVERS = {False: "10.9.3.2", True: "10.9.3.1"}
"""By whether the suite is internal: it is watched from the other side."""
ACTIVE = {False: "10.9.3.3", True: "10.9.3.4"}


@dataclass(frozen=True, slots=True)
class Peer:
    address: str
    asn: int
    passive: bool

    @property
    def internal(self) -> bool:
        return self.asn == SPEAKER_AS

    @property
    def name(self) -> str:
        return self.address.replace(".", "_")


PEERS = (
    *(Peer(address, OUTSIDE_AS, True) for address in (*EXTERNAL, OBSERVERS[True])),
    *(Peer(address, SPEAKER_AS, True) for address in (*INTERNAL, OBSERVERS[False])),
    Peer(ACTIVE[False], OUTSIDE_AS, False),
    Peer(ACTIVE[True], SPEAKER_AS, False),
)


def arguments(*, internal: bool) -> list[str]:
    """Return the command line of the suite."""
    sources = INTERNAL if internal else EXTERNAL
    argv = ["--target", SPEAKER, "--asn", str(SPEAKER_AS), "--local-as", str(OUTSIDE_AS), "--next-hop6", SUITE6]
    argv += ["--sources", f"{sources[0]}-{sources[-1]}", "--observer", OBSERVERS[internal]]
    argv += ["--active", ACTIVE[internal]]
    return [*argv, "--ibgp"] if internal else argv


@contextmanager
def network() -> Iterator[tuple[Netns, Netns]]:
    """Lend two joined namespaces: the speaker's and the suite's."""
    speaker, suite = Netns(), Netns()
    try:
        link(speaker, "eth0", suite, "eth1")
        speaker.run("ip", "addr", "add", f"{SPEAKER}/16", "dev", "eth0")
        speaker.run("ip", "addr", "add", f"{SPEAKER6}/64", "dev", "eth0", "nodad")
        for peer in PEERS:
            suite.run("ip", "addr", "add", f"{peer.address}/16", "dev", "eth1")
        suite.run("ip", "addr", "add", f"{SUITE6}/64", "dev", "eth1", "nodad")
        yield speaker, suite
    finally:
        speaker.close()
        suite.close()


_VERSION = {
    "FRR": ["/usr/lib/frr/bgpd", "--version"],
    "BIRD": ["bird", "--version"],
    "GoBGP": ["gobgpd", "--version"],
}


def version(name: str) -> str:
    """Return a speaker's name with its version."""
    if name not in _VERSION:
        return name
    done = subprocess.run(_VERSION[name], capture_output=True, text=True, check=True)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return f"{name} {found[0]}" if found else name


@contextmanager
def podroute(ns: Netns) -> Iterator[None]:
    given = {
        "asn": SPEAKER_AS,
        "address": SPEAKER,
        "address6": SPEAKER6,
        "peers": [[p.address, p.asn, p.passive] for p in PEERS],
    }
    process = subprocess.Popen(
        ns.command(sys.executable, "-m", "tests.conformance.bgp.podroute"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_us,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(given) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "ready\n":
            raise AssertionError("podroute did not start")
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(timeout=20)


@contextmanager
def frr(ns: Netns) -> Iterator[None]:
    lines = [f"router bgp {SPEAKER_AS}", f" bgp router-id {SPEAKER}", " no bgp ebgp-requires-policy"]
    lines += [" no bgp default ipv4-unicast", " no bgp network import-check"]
    for peer in PEERS:
        lines += [f" neighbor {peer.address} remote-as {peer.asn}", f" neighbor {peer.address} timers connect 1"]
        lines += [f" neighbor {peer.address} passive"] if peer.passive else []
    for family in ("ipv4", "ipv6"):
        lines.append(f" address-family {family} unicast")
        lines += [f"  neighbor {peer.address} activate" for peer in PEERS]
        lines.append(" exit-address-family")
    router = Frr(ns, "\n".join(lines))
    try:
        yield
    finally:
        router.close()


@contextmanager
def bird(ns: Netns) -> Iterator[None]:
    parts = [f"router id {SPEAKER};", "protocol direct { ipv4; ipv6; }"]
    for peer in PEERS:
        family = "{ import all; export where source = RTS_BGP; add paths rx; next hop address %s; };"
        parts.append(
            f"protocol bgp p{peer.name} {{\n"
            f" local {SPEAKER} as {SPEAKER_AS}; neighbor {peer.address} as {peer.asn}; direct;\n"
            f" passive {'yes' if peer.passive else 'no'}; connect delay time 1; connect retry time 1;\n"
            " error wait time 1, 1;\n"
            f" ipv4 {family % SPEAKER} ipv6 {family % SPEAKER6}\n}}"
        )
    router = Bird(ns, "\n".join(parts))
    try:
        yield
    finally:
        router.close()


@contextmanager
def gobgp(ns: Netns) -> Iterator[None]:
    parts = [f'[global.config]\nas = {SPEAKER_AS}\nrouter-id = "{SPEAKER}"\nlocal-address-list = ["{SPEAKER}"]']
    for peer in PEERS:
        families = "".join(
            f'\n[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = "{family}-unicast"'
            for family in ("ipv4", "ipv6")
        )
        parts.append(
            f'[[neighbors]]\n[neighbors.config]\nneighbor-address = "{peer.address}"\npeer-as = {peer.asn}\n'
            f"[neighbors.transport.config]\npassive-mode = {str(peer.passive).lower()}\n"
            f"[neighbors.timers.config]\nconnect-retry = 1\nidle-hold-time-after-reset = 1\n"
            "[neighbors.add-paths.config]\nreceive = true\n"
            f"[neighbors.error-handling.config]\ntreat-as-withdraw = true{families}"
        )
    router = Gobgp(ns, "\n".join(parts))
    try:
        yield
    finally:
        router.close()


SPEAKERS: dict[str, Callable[[Netns], AbstractContextManager[None]]] = {
    "podroute": podroute,
    "FRR": frr,
    "BIRD": bird,
    "GoBGP": gobgp,
}
