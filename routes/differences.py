"""Desired routes and what the kernel holds at this moment, side by side, and why they differ. For people."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from config.nexthop import NextHops
from routes.compare import Survey
from routes.live import KernelRoute, kernel_route, protocol_name
from routes.messages import Nexthop
from routes.state import State

_SETTLED = (State.INSTALLED, State.SHADOWED)


class FibRoute(NamedTuple):
    """One route for people."""

    prefix: bytes
    metric: int
    kind: str
    """learned, cover or pod; other for what is not desired."""
    next_hops: NextHops
    desired: tuple[str, ...]
    """Where it is to lead, ``10.1.1.1 dev eth0 peer tor-a``; empty: it is not desired or leads nowhere."""
    kernel: tuple[str, ...]
    """Where it leads in the kernel, as far as known."""
    state: State
    errno: int
    text: str
    """Why it is not installed, or what the kernel says where it refuses a change of its group."""

    @property
    def ways(self) -> tuple[str, ...]:
        """Where it is to lead, as the kernel's side says it: each way once, and not who announced it."""
        return tuple(dict.fromkeys(way.partition(" peer ")[0] for way in self.desired))


class Row(NamedTuple):
    """One metric of one prefix."""

    metric: int
    owner: str
    """``podroute, learned`` or ``protocol static``."""
    desired: tuple[str, ...]
    kernel: tuple[str, ...]
    state: str
    """One of table.State; ``missing`` or ``altered``: drift that no event has told yet; ``surplus``: a route of
    our protocol that is not desired; ``foreign``: somebody else's."""
    why: str
    """What keeps the kernel's route from being the desired one, or from being used; empty where nothing does."""


def rows(held: Sequence[FibRoute], live: Sequence[KernelRoute], protocol: int) -> list[Row]:
    """Return what is desired beside what the kernel holds, lowest metric first; ``protocol`` is ours."""
    found = []
    ours = {entry.metric: entry for entry in live if entry.protocol == protocol}
    for route in held:
        there = ours.pop(route.metric, None)
        state, why = _difference(route, there, [entry for entry in live if entry.protocol != protocol])
        kernel = there.ways if there is not None else ()
        found.append(Row(route.metric, f"podroute, {route.kind}", route.desired, kernel, state, why))
    for entry in live:
        if entry.protocol != protocol:
            found.append(Row(entry.metric, f"protocol {protocol_name(entry.protocol)}", (), entry.ways, "foreign", ""))
        elif entry.metric in ours:
            found.append(Row(entry.metric, "podroute", (), entry.ways, "surplus", "nothing desires it"))
    return sorted(found, key=lambda row: row.metric)


def _difference(route: FibRoute, there: KernelRoute | None, foreign: Sequence[KernelRoute]) -> tuple[str, str]:
    """Return the state of a route as the kernel shows it now, and why it is not as desired."""
    if route.state not in _SETTLED:
        return route.state.value, route.text
    if there is None:
        return "missing", "not in the kernel; it is repaired when the loss is seen"
    if set(there.ways) != set(route.ways):
        leads = f"leads {', '.join(there.ways) or 'nowhere'}"
        if route.text:
            return "altered", f"{leads}; the kernel refuses its next-hop group: {route.text}"
        return "altered", f"{leads}; it is repaired when that is seen"
    better = next((entry for entry in foreign if entry.metric < route.metric), None)
    if better is None:
        return State.INSTALLED.value, ""
    return (
        State.SHADOWED.value,
        f"by a route of protocol {protocol_name(better.protocol)} with metric {better.metric}",
    )


class LiveTable:
    """A whole table as it was read: what it holds of a prefix, without a reading for each."""

    def __init__(
        self,
        survey: Survey,
        objects: Mapping[int, Nexthop],
        names: Mapping[int, str],
        protocol: int,
        written: Container[bytes] = (),
    ) -> None:
        """``objects`` are the next-hop objects by id, ``names`` those of interfaces, ``protocol`` is ours.

        ``written`` are prefixes that the kernel has been told of since the reading began: of these we know better.
        """
        self._survey = survey
        self._objects, self._names = objects, names
        self._protocol = protocol
        self._written = written

    def of(self, prefix: bytes, held: Sequence[FibRoute]) -> list[KernelRoute]:
        """Return the kernel's entries of one prefix; ``held`` is what is desired of it."""
        stands = prefix not in self._written
        found = [
            kernel_route(route, self._objects, self._names)
            for route in self._survey.entries.get(prefix, ())
            if stands or route.protocol != self._protocol
        ]
        told = {entry.metric for entry in found if entry.protocol == self._protocol}
        for route in held:  # as desired, unless it was told otherwise
            there = route.state in _SETTLED or (route.state is State.CONFLICT and route.kernel)
            lacking = stands and (prefix, route.metric) in self._survey.missing
            if there and route.metric not in told and not lacking:
                found.append(KernelRoute(self._protocol, route.metric, route.ways, 0))
        return sorted(found, key=lambda entry: entry.metric)

    def surplus(self) -> list[bytes]:
        """Return the prefixes of which the kernel holds a route of ours, when read, that was not as desired."""
        return [
            prefix
            for prefix, routes in self._survey.entries.items()
            if prefix not in self._written and any(route.protocol == self._protocol for route in routes)
        ]
