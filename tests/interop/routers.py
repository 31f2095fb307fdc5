"""FRR, BIRD 2 and GoBGP behind one face: configured for one session with us, and asked what they know.

What a router says is read out of its own JSON or CLI.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.frr import Frr
from tests.house import GOBGP_LOG, Bird, Gobgp
from tests.netns import Netns

ROUTER_AS, NODE_AS = 65010, 4200000001
AS_TRANS = 23456
ROUTER4, NODE4, ROUTER6, NODE6 = "10.1.1.1", "10.1.1.11", "fd00:1::1", "fd00:1::11"


@dataclass(frozen=True)
class Setup:
    """One session as the router sees it."""

    six: bool = False
    """The session runs over IPv6; then it carries IPv6 only."""
    passive: bool = False
    """The router waits for us to connect."""
    password: str = ""
    gtsm: bool = False
    """The router sends TTL 255 and takes nothing else (RFC 5082)."""
    hold_time: int = 9
    old: bool = False
    """The router speaks 2-octet AS numbers only."""
    node_as: int = NODE_AS
    routes: Sequence[str] = ()
    """What it announces, with ``MED``, ``LARGE`` and ``community``."""
    community: str = "65010:7"
    both: bool = False
    """It carries both families though it runs over IPv6: IPv4 with IPv6 next hops (RFC 8950)."""
    add_path: bool = False
    """The router sends and takes several paths to a prefix (RFC 7911)."""
    feeders: Sequence[tuple[str, int]] = ()
    """Addresses and AS numbers of other speakers that connect to the router, and of which it passes on all."""
    reflector: bool = False
    """We and the feeders in the router's AS are clients of its route reflector (RFC 4456)."""

    restarts: bool = False
    """It keeps forwarding over a restart, and says so (RFC 4724)."""
    restarted: bool = False
    """It has just been restarted."""

    @property
    def node(self) -> str:
        return NODE6 if self.six else NODE4

    @property
    def neighbors(self) -> list[tuple[str, int]]:
        return [(self.node, self.node_as), *self.feeders]

    def client(self, asn: int) -> bool:
        return self.reflector and asn == ROUTER_AS

    @property
    def local(self) -> str:
        return ROUTER6 if self.six else ROUTER4

    @property
    def families(self) -> tuple[str, ...]:
        return ("ipv6",) if self.six and not self.both else ("ipv4",) if self.old else ("ipv4", "ipv6")


@dataclass
class Seen:
    """A path to one prefix as the router has it."""

    as_path: list[int]
    next_hop: str
    med: int | None = None
    communities: list[str] = field(default_factory=list)
    large_communities: list[str] = field(default_factory=list)
    originator: str = ""
    clusters: list[str] = field(default_factory=list)


MED, COMMUNITY, LARGE = 70, "65010:7", "65010:7:9"
"""What the routers put on their routes."""


class Router(Protocol):
    name: str

    def paths(self, prefix: str) -> list[Seen]:
        """Return the paths that we announced to a prefix."""

    def established(self) -> bool:
        """Tell whether the router holds the session for established."""

    def count(self) -> int:
        """Return how many IPv4 prefixes the router has from us."""

    def withdraw(self) -> None:
        """Withdraw all its routes."""

    def ask_again(self) -> None:
        """Send a ROUTE-REFRESH for IPv4."""

    def shut(self, text: str) -> None:
        """End the session with a shutdown communication (RFC 9003)."""

    def last_error(self) -> str:
        """Return what the router says of the end of the last session."""

    def close(self) -> None: ...


class FrrRouter:
    name = "FRR"

    def __init__(self, ns: Netns, setup: Setup) -> None:
        self.setup = setup
        node = setup.node
        keepalive = setup.hold_time // 3
        lines = [f"router bgp {ROUTER_AS}", " bgp router-id 10.0.0.1", " no bgp ebgp-requires-policy"]
        lines += [" no bgp network import-check", " no bgp default ipv4-unicast"]
        if setup.restarts:
            lines += [" bgp graceful-restart", " bgp graceful-restart preserve-fw-state"]
        for address, asn in setup.neighbors:
            lines += [f" neighbor {address} remote-as {asn}", f" neighbor {address} timers connect 1"]
            lines.append(f" neighbor {address} timers {keepalive} {setup.hold_time}")
            lines += [f" neighbor {address} passive"] if setup.passive else []
        lines += [f" neighbor {node} password {setup.password}"] if setup.password else []
        lines += [f" neighbor {node} ttl-security hops 1"] if setup.gtsm else []
        lines += [f" neighbor {node} dont-capability-negotiate"] if setup.old else []
        lines += [f" neighbor {node} capability extended-nexthop"] if setup.both else []
        for family in setup.families:
            lines.append(f" address-family {family} unicast")
            for address, asn in setup.neighbors:
                lines.append(f"  neighbor {address} activate")
                lines += [f"  neighbor {address} route-reflector-client"] if setup.client(asn) else []
                lines += [f"  neighbor {address} addpath-tx-all-paths"] if setup.add_path else []
            lines += [f"  neighbor {node} route-map OUT out"] if setup.routes else []
            lines += [f"  network {p}" for p in setup.routes if (":" in p) is (family == "ipv6")]
            lines.append(" exit-address-family")
        lines += ["exit", "route-map OUT permit 10", f" set metric {MED}", f" set community {setup.community}"]
        lines += [f" set large-community {LARGE}"]
        self._frr = Frr(ns, "\n".join(lines))

    def paths(self, prefix: str) -> list[Seen]:
        family = "ipv6" if ":" in prefix else "ipv4"
        found = self._frr.show(f"bgp {family} unicast {prefix}")
        paths = [path for path in found.get("paths", []) if path["peer"].get("peerId") == self.setup.node]
        return [
            Seen(
                as_path=[int(asn) for asn in path["aspath"]["string"].split() if asn.isdigit()],
                next_hop=path["nexthops"][0]["ip"],
                med=path.get("metric"),
                communities=[_FRR_NAMES.get(c, c) for c in path.get("community", {}).get("list", [])],
                large_communities=path.get("largeCommunity", {}).get("list", []),
                originator=path.get("originatorId", ""),
                clusters=path.get("clusterList", {}).get("list", []),
            )
            for path in paths
        ]

    def established(self) -> bool:
        neighbor = self._frr.show(f"bgp neighbors {self.setup.node}")[self.setup.node]
        return bool(neighbor["bgpState"] == "Established")

    def count(self) -> int:
        peer = self._frr.show("bgp ipv4 unicast summary")["peers"][self.setup.node]
        return int(peer.get("pfxRcd", 0))

    def withdraw(self) -> None:
        for family in self.setup.families:
            gone = [f"no network {p}" for p in self.setup.routes if (":" in p) is (family == "ipv6")]
            self._frr.configure(f"router bgp {ROUTER_AS}", f"address-family {family} unicast", *gone)

    def ask_again(self) -> None:
        self._frr.vtysh("-c", f"clear bgp ipv4 unicast {self.setup.node} in")

    def shut(self, text: str) -> None:
        self._frr.configure(f"router bgp {ROUTER_AS}", f"neighbor {self.setup.node} shutdown message {text}")

    def last_error(self) -> str:
        neighbor = self._frr.show(f"bgp neighbors {self.setup.node}")[self.setup.node]
        return f"{neighbor.get('lastErrorCodeSubcode')} {neighbor.get('lastShutdownDescription', '')}"

    def close(self) -> None:
        self._frr.close()


class BirdRouter:
    name = "BIRD"

    def __init__(self, ns: Netns, setup: Setup) -> None:
        self.setup = setup
        parts = ["router id 10.0.0.1;", "protocol direct { ipv4; ipv6; }"]
        for family in ("ipv4", "ipv6"):
            routes = "".join(f" route {p} blackhole;" for p in setup.routes if (":" in p) is (family == "ipv6"))
            parts.append(f"protocol static {family}_static {{ {family};{routes} }}")
        community, large = setup.community.replace(":", ","), LARGE.replace(":", ",")
        parts.append(
            f"filter announce {{ if source = RTS_BGP then accept; if source != RTS_STATIC then reject; bgp_med = {MED};"
            f" bgp_community.add(({community})); bgp_large_community.add(({large})); accept; }}"
        )
        options = " add paths on;" if setup.add_path else ""
        options += " extended next hop on;" if setup.both else ""
        channels = "".join(
            f" {family} {{ import all; export filter announce;{options} }};" for family in setup.families
        )
        password = f'password "{setup.password}"; ' if setup.password else ""
        gtsm = "ttl security on; " if setup.gtsm else ""
        gtsm += "graceful restart on; " if setup.restarts else ""
        for number, (address, asn) in enumerate(setup.neighbors):
            client = "rr client; rr cluster id 10.0.0.1; " if setup.client(asn) else ""
            parts.append(
                f"protocol bgp {f'feeder{number}' if number else 'node'} {{ local {setup.local} as {ROUTER_AS};"
                f" neighbor {address} as {asn}; direct; hold time {setup.hold_time}; passive {_yes(setup.passive)};"
                f" enable as4 {_yes(not setup.old)}; enable extended messages on; connect delay time 1;"
                f" connect retry time 1; error wait time 1, 1; {client}{password}{gtsm}{channels} }}"
            )
        self._bird = Bird(ns, "\n".join(parts), recovering=setup.restarted)

    def paths(self, prefix: str) -> list[Seen]:
        try:
            said = self._bird.birdc(f"show route {prefix} protocol node all")
        except AssertionError:  # "Network not found" has an exit status of its own
            return []
        found = []
        for one in said.split("Type: BGP")[1:]:
            values = dict(re.findall(r"BGP\.(\w+): ?(.*)", one))
            found.append(
                Seen(
                    as_path=[int(asn) for asn in values["as_path"].split()],
                    next_hop=values["next_hop"].split()[0],
                    med=int(values["med"]) if "med" in values else None,
                    communities=_tuples(values.get("community", "")),
                    large_communities=_tuples(values.get("large_community", "")),
                    originator=values.get("originator_id", "").strip(),
                    clusters=values.get("cluster_list", "").split(),
                )
            )
        return found

    def established(self) -> bool:
        return "Established" in self._bird.birdc("show protocols node")

    def count(self) -> int:
        found = re.search(r"(\d+) of \d+ routes for", self._bird.birdc("show route count protocol node table master4"))
        return int(found[1]) if found else 0

    def withdraw(self) -> None:
        for family in ("ipv4", "ipv6"):
            self._bird.command(f"disable {family}_static")

    def ask_again(self) -> None:
        self._bird.command("reload in node")

    def shut(self, text: str) -> None:
        self._bird.command(f'disable node "{text}"')

    def last_error(self) -> str:
        said = self._bird.birdc("show protocols all node")
        return " ".join(re.findall(r"(?:Last error|Message):\s+(.*)", said))

    def close(self) -> None:
        self._bird.close()


class GobgpRouter:
    name = "GoBGP"

    def __init__(self, ns: Netns, setup: Setup) -> None:
        self.setup = setup
        families = "".join(
            f'\n[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = "{family}-unicast"'
            "\n[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true"
            for family in setup.families
        )
        password = f'\nauth-password = "{setup.password}"' if setup.password else ""
        gtsm = "[neighbors.ttl-security.config]\nenabled = true\nttl-min = 255\n" if setup.gtsm else ""
        neighbors = "".join(
            f'[[neighbors]]\n[neighbors.config]\nneighbor-address = "{address}"\n'
            f"peer-as = {asn}{password}\n"
            f'[neighbors.transport.config]\nlocal-address = "{setup.local}"\n'
            f"passive-mode = {str(setup.passive).lower()}\n{gtsm}"
            + (_GOBGP_CLIENT if setup.client(asn) else "")
            + ("[neighbors.add-paths.config]\nreceive = true\nsend-max = 8\n" if setup.add_path else "")
            + "[neighbors.graceful-restart.config]\nenabled = true\nrestart-time = 60\n"  # without it no End-of-RIB
            f"[neighbors.timers.config]\nconnect-retry = 1\nidle-hold-time-after-reset = 1\n"
            f"hold-time = {setup.hold_time}\nkeepalive-interval = {setup.hold_time // 3}{families}\n"
            for address, asn in setup.neighbors
        )
        config = f'[global.config]\nas = {ROUTER_AS}\nrouter-id = "10.0.0.1"\n{neighbors}'
        self._gobgp = Gobgp(ns, config, recovering=setup.restarted)
        for prefix in setup.routes:
            self._gobgp.gobgp(self._change("add", prefix))

    def _change(self, verb: str, prefix: str) -> str:
        family = "ipv6" if ":" in prefix else "ipv4"
        hop = ROUTER6 if ":" in prefix or self.setup.both else ROUTER4
        marks = f"community {self.setup.community} large-community {LARGE}"
        attributes = f" nexthop {hop} med {MED} {marks}" if verb == "add" else ""
        return f"global rib {verb} {prefix}{attributes} -a {family}"

    def paths(self, prefix: str) -> list[Seen]:
        family = "ipv6" if ":" in prefix else "ipv4"
        try:
            said = self._gobgp.gobgp(f"neighbor {self.setup.node} adj-in {prefix} -a {family} -j")
        except AssertionError:
            return []
        found = json.loads(said or "[]")
        paths = (found[0] if isinstance(found, list) else next(iter(found.values()), [])) if found else []
        every = paths if isinstance(paths, list) else [paths]
        return [self._seen({a["type"]: a for a in path["attrs"]}) for path in every]

    @staticmethod
    def _seen(attributes: Mapping[int, Any]) -> Seen:
        segments = attributes[2]["as_paths"]
        hop = attributes[3]["nexthop"] if 3 in attributes else attributes[14]["nexthop"]
        large = attributes[32]["value"] if 32 in attributes else []
        return Seen(
            as_path=[asn for segment in segments for asn in segment["asns"]],
            next_hop=hop,
            med=attributes[4]["metric"] if 4 in attributes else None,
            communities=[f"{c >> 16}:{c & 0xFFFF}" for c in attributes.get(8, {}).get("communities", [])],
            large_communities=[":".join(str(v[k]) for k in ("ASN", "LocalData1", "LocalData2")) for v in large],
            originator=attributes.get(9, {}).get("value", ""),
            clusters=attributes.get(10, {}).get("value", []),
        )

    def established(self) -> bool:
        return "BGP state = ESTABLISHED" in self._gobgp.gobgp(f"neighbor {self.setup.node}")

    def count(self) -> int:
        return len(json.loads(self._gobgp.gobgp(f"neighbor {self.setup.node} adj-in -a ipv4 -j") or "[]"))

    def withdraw(self) -> None:
        for prefix in self.setup.routes:
            self._gobgp.gobgp(self._change("del", prefix))

    def ask_again(self) -> None:
        self._gobgp.gobgp(f"neighbor {self.setup.node} softresetin -a ipv4")

    def shut(self, text: str) -> None:
        self._gobgp.house.run("gobgp", "neighbor", self.setup.node, "shutdown", "--reason", text)

    def last_error(self) -> str:
        return self._gobgp.house.run("cat", GOBGP_LOG)

    def close(self) -> None:
        self._gobgp.close()


_GOBGP_CLIENT = """\
[neighbors.route-reflector.config]
route-reflector-client = true
route-reflector-cluster-id = "10.0.0.1"
"""

_FRR_NAMES = {"noExport": "65535:65281", "noAdvertise": "65535:65282", "gracefulShutdown": "65535:0"}

ROUTERS: dict[str, Callable[[Netns, Setup], Router]] = {"FRR": FrrRouter, "BIRD": BirdRouter, "GoBGP": GobgpRouter}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _tuples(text: str) -> list[str]:
    """Return BIRD's ``(65001,7) (65001,8)`` in the usual form."""
    return [item.replace(", ", ":").replace(",", ":") for item in re.findall(r"\(([^)]*)\)", text)]
