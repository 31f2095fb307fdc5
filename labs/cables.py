"""The links of a lab, made directly between its nodes' network namespaces: they never appear in the host's own.

The two ends of a pair have unequal interface indexes. With equal ones the kernel takes the interface for its own lower
device and delays carrier events by up to 0.7 s.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path

from labs import kernel
from labs.errors import LabError
from labs.namespaces import Namespaces
from labs.topology import HOST, Endpoint, Link
from labs.waiting import off_loop

_Lines = Sequence[tuple[str, Link]]
"""Lines for ip(8), each with the link that it makes."""
INTERFACES = Path("/sys/class/net")
"""The interfaces of the host's own network."""
FIRST_INDEX = 10
"""Interface indexes of link ends count up from here over the whole lab."""
_PATIENCE = 20.0
"""Seconds that the kernel may take to have a link or an address in use; it takes milliseconds."""
_SOLICITED = IPv6Address("ff02::1:ff00:0")
"""Solicited-node multicast addresses end in the last three octets of the address (RFC 4291 section 2.7.1)."""


@dataclass(eq=False, slots=True)
class _Cable:
    link: Link
    number: int
    """Among the links of the lab."""
    attached: dict[str, asyncio.Event] = field(default_factory=dict)
    """By the node of an end."""

    @property
    def made(self) -> bool:
        return any(event.is_set() for event in self.attached.values())

    def index(self, end: Endpoint) -> int:
        return FIRST_INDEX + 2 * self.number + self.link.ends.index(end)

    @property
    def parked_name(self) -> str:
        return f"parked{self.number}"


class Cabling:
    """Makes links as their nodes come to it, as many at once as there are.

    A link is made when both its nodes have come. The ends of ``apart`` cannot wait for each other: their nodes come one
    after the other, and the link is made when the first does, its other end parked until the second has come.
    """

    def __init__(
        self, lab: str, links: Sequence[Link], nodes: Mapping[str, Namespaces], apart: Collection[Link] = ()
    ) -> None:
        self._lab = lab
        self._nodes = nodes
        self._apart = apart
        self._cables = [
            _Cable(link, number, {end.node: asyncio.Event() for end in link.ends}) for number, link in enumerate(links)
        ]
        self._come = {HOST}
        self._lock = asyncio.Lock()
        self._parking = _Parking()

    async def attach(self, node: str) -> None:
        """Return when all ends of a node's links are in it, and up: those whose other end is there too carry packets.

        Raises LabError that names the link.
        """
        self._come.add(node)
        async with self._lock:
            await self._make_possible()
        for cable in self._cables:
            if node in cable.attached:
                await cable.attached[node].wait()

    def close(self) -> None:
        """Give up the parking place; what is parked there goes with it."""
        self._parking.close()

    async def _make_possible(self) -> None:
        """Make what can be made by now; whoever came while others' links were made finds its own made too."""
        added: list[tuple[str, Link]] = []
        moved: list[tuple[str, Link]] = []
        ends: list[tuple[_Cable, Endpoint]] = []
        whole_ones: list[Link] = []
        for cable in self._cables:
            there = [end for end in cable.link.ends if end.node in self._come]
            missing = [end for end in there if not cable.attached[end.node].is_set()]
            whole = len(there) == len(cable.link.ends)
            if not any(end.node != HOST for end in missing) or not (whole or cable.link in self._apart):
                continue
            if cable.made:
                moved.append((self._moved(cable, missing[0]), cable.link))
            else:
                added += [(line, cable.link) for line in self._added(cable, there)]
            ends += [(cable, end) for end in missing]
            whole_ones += [cable.link] if whole else []
        if ends:
            await off_loop(lambda: self._make(added, moved, [end for _, end in ends], whole_ones))
        for cable, end in ends:
            cable.attached[end.node].set()

    def _path(self, end: Endpoint) -> str:
        return f"/proc/{os.getpid()}/ns/net" if end.node == HOST else self._nodes[end.node].path("net")

    def _added(self, cable: _Cable, there: Sequence[Endpoint]) -> list[str]:
        """Return the lines for ip(8) that make a link."""
        link = cable.link

        def end(end: Endpoint) -> str:
            more = f"address {end.mac} mtu {link.mtu}"
            if end.node == HOST:  # indexes in the host's network are the host's affair
                return f"{cable.parked_name} {more}"
            here = end in there
            name, path = (end.interface, self._path(end)) if here else (cable.parked_name, self._parking.path)
            return f"{name} index {cable.index(end)} {more} netns {path}"

        kind = "type dummy" if link.z is None else f"type veth peer name {end(link.z)}"
        return [f"link add {end(link.a)} {kind}", *self._to_host(cable)]

    def _to_host(self, cable: _Cable) -> list[str]:
        """Return what moves an end into the host's network, where nobody ever sees it without the lab's alias."""
        parked, lines = f"link set dev {cable.parked_name}", []
        for end in cable.link.ends:
            if end.node == HOST:
                lines += [f'{parked} alias "{alias(self._lab)}"']
                lines += [f"{parked} netns {self._path(end)} name {end.interface}"]
        return lines

    def _moved(self, cable: _Cable, end: Endpoint) -> str:
        return f"link set dev {cable.parked_name} netns {self._path(end)} name {end.interface}"

    def _make(self, added: _Lines, moved: _Lines, ends: Iterable[Endpoint], whole: Iterable[Link]) -> None:
        if added:
            # From within the lab: there is then no need for rights over the host's network.
            _run(added, next(iter(self._nodes.values())).call_in_network)
        if moved:
            _run(moved, self._parking.call)
        for node, own in _by_node(ends):
            self._within(node, partial(_set_up, own))
        # A carrier comes some time after both ends are up. What is sent before is lost, and the kernel does not take an
        # IPv6 address into use.
        for node, own in _by_node(end for link in whole for end in link.ends):
            self._within(node, partial(_await_carriers, own))
        for node, own in _by_node(ends):
            self._within(node, partial(_address, own))

    def _within(self, node: str, function: Callable[[], None]) -> None:
        """Run a function in a node's network."""
        if node == HOST:
            function()
        else:
            self._nodes[node].call_in_network(function)


class _Parking:
    """A network namespace for ends whose nodes are still to come; it goes with the process that holds it."""

    def __init__(self) -> None:
        self._descriptor = -1

    @property
    def path(self) -> str:
        if self._descriptor < 0:
            self._descriptor = kernel.in_thread(_new_network)
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def call(self, function: Callable[[], None]) -> None:
        """Run a function in a thread inside."""

        def body() -> None:
            kernel.setns(self._descriptor, kernel.CLONE_NEWNET)
            function()

        kernel.in_thread(body)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def alias(lab: str) -> str:
    """Return the alias of a lab's interfaces in the host's network."""
    return f"podroute lab {lab}"


def remove_from_host(lab: str) -> None:
    """Remove a lab's interfaces from the host's network at once; the kernel would, some time after their nodes."""
    for interface in INTERFACES.iterdir():
        with suppress(OSError, LabError):
            if (interface / "ifalias").read_text().rstrip("\n") == alias(lab):
                _ip("link", "del", "dev", interface.name)


def _new_network() -> int:
    kernel.unshare(kernel.CLONE_NEWNET)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _run(lines: _Lines, call: Callable[[Callable[[], None]], None]) -> None:
    """Run lines of ip(8) in a network of the lab. Raises LabError that names the link."""

    def body() -> None:
        batch = "".join(f"{line}\n" for line, _ in lines)
        done = subprocess.run(["ip", "-batch", "-"], input=batch, capture_output=True, text=True)
        if done.returncode:
            # ip says "Command failed -:3" of the third line.
            number = done.stderr.rpartition("-:")[2].strip()
            _, link = lines[int(number) - 1] if number.isdigit() else lines[0]
            ends = " -- ".join(str(end) for end in link.ends)
            raise LabError(f"{link.place}: cannot make {ends}: {done.stderr.strip()}")

    call(body)


def _by_node(ends: Iterable[Endpoint]) -> Iterable[tuple[str, list[Endpoint]]]:
    found: dict[str, list[Endpoint]] = {}
    for end in ends:
        found.setdefault(end.node, []).append(end)
    return found.items()


def _set_up(ends: Iterable[Endpoint]) -> None:
    kernel.interface_up(*(end.interface for end in ends))


def _await_carriers(ends: Iterable[Endpoint]) -> None:
    for end in ends:
        _await(partial(kernel.interface_running, end.interface), f"{end}: the link has no carrier")


def _address(ends: Iterable[Endpoint]) -> None:
    """Give interfaces their addresses, in use at once: a cable has two ends, and their addresses differ (`nodad`)."""
    for end in ends:
        for address in end.addresses:
            own = ip_interface(address).ip
            if isinstance(own, IPv4Address):
                _ip("addr", "add", address, "dev", end.interface)
                continue
            _ip("addr", "add", address, "dev", end.interface, "nodad")
            # The kernel joins its group some time later, and until then hears no neighbour solicitation.
            solicited = IPv6Address(int(_SOLICITED) | int(own) & 0xFFFFFF)
            _await(partial(kernel.in_group, end.interface, solicited), f"{end}: {own} is not in use")


def _await(holds: Callable[[], bool], otherwise: str) -> None:
    """Wait for the kernel, which has no event for it. Raises LabError."""
    deadline = time.monotonic() + _PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise LabError(f"{otherwise} after {_PATIENCE:g} s")
        time.sleep(0.001)


def _ip(*argv: str) -> None:
    done = subprocess.run(["ip", *argv], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"`ip {' '.join(argv)}`: {done.stderr.strip()}")
