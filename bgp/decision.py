"""Which of several paths to a prefix is best (RFC 4271 section 9.1.2.2), and which others it shares the traffic with.

The comparison is one sequence of numbered steps. Each removes the paths that are worse than another one left, so the
result does not depend on the order in which paths arrived, also with MED.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from bgp.attributes import AS_PATH, CLUSTER_LIST
from bgp.paths import Path


class Step(IntEnum):
    """The steps in order. The letters are those of RFC 4271 section 9.1.2.2."""

    ORIGINATED = 1
    """A route of our own before any learned one: nobody draws away the traffic of a prefix that starts here."""
    WEIGHT = 2
    """What import policy set here above all that is the AS's; the higher."""
    LOCAL_PREF = 3
    """Section 9.1.1: the higher degree of preference."""
    AS_PATH_LENGTH = 4
    """(a)"""
    ORIGIN = 5
    """(b)"""
    MED = 6
    """(c): the lower one, among paths of one neighbouring AS; no MED counts as 0."""
    EXTERNAL = 7
    """(d): learned from another AS before learned inside ours."""
    INTERIOR_COST = 8
    """(e): the nearer next hop."""
    IDENTIFIER = 9
    """(f): the lower BGP identifier, or ORIGINATOR_ID of a reflected path (RFC 4456 section 9)."""
    CLUSTER_LIST = 10
    """RFC 4456 section 9: the shorter one."""
    PEER_ADDRESS = 11
    """(g): the lower address of the peer."""
    MULTIPATH = 12
    """Not a comparison: paths equal up to (e) that carry traffic beside the best one."""


@dataclass(frozen=True, slots=True)
class Options:
    max_paths: int = 64
    """How many paths may carry traffic at once; 1: no multipath."""
    multipath_relax: bool = True
    """Paths of equal AS_PATH length share traffic whatever AS numbers are in them: a node with two ToRs in two ASes."""
    always_compare_med: bool = False
    """Compare MED also between paths of different neighbouring ASes."""


class Decision(NamedTuple):
    best: Path | None
    multipath: tuple[Path, ...]
    """The best path first, then those that share the traffic; empty where no path is eligible."""
    lost: dict[Path, Step]
    """The step that removed a path; MULTIPATH for those in ``multipath`` but the best."""
    decided: Step | None
    """The step that left the best path alone; None where it had no rival."""


def decide(paths: Iterable[Path], options: Options) -> Decision:
    """Choose among paths to one prefix, from different peers each. Ineligible paths take no part."""
    left = [p for p in paths if p.eligible]
    lost: dict[Path, Step] = {}
    decided: Step | None = None
    equal: list[Path] = []
    for step, remove in _STEPS:
        if step is Step.IDENTIFIER:
            equal = left
        if len(left) > 1:
            survivors = remove(left, options)
            if len(survivors) < len(left):
                kept = set(survivors)
                lost.update((p, step) for p in left if p not in kept)
                decided = step if len(survivors) == 1 else decided
                left = survivors
    if not left:
        return Decision(None, (), lost, None)
    best = left[0]
    shared = _multipath(best, equal, options)
    lost.update((p, Step.MULTIPATH) for p in shared[1:])
    return Decision(best, shared, lost, decided)


def _multipath(best: Path, equal: list[Path], options: Options) -> tuple[Path, ...]:
    others = [p for p in equal if p is not best]
    if best.peer is None or not others:
        return (best,)
    if not options.multipath_relax:
        as_path = best.attributes.value(AS_PATH)
        others = [p for p in others if p.attributes.value(AS_PATH) == as_path]
    return (best, *sorted(others, key=_tie_break)[: options.max_paths - 1])


def _lowest(key: Callable[[Path], Any]) -> Callable[[list[Path], Options], list[Path]]:
    def remove(paths: list[Path], options: Options) -> list[Path]:
        keys = [key(p) for p in paths]
        lowest = min(keys)
        return [p for p, k in zip(paths, keys, strict=True) if k == lowest]

    return remove


def _lowest_med(paths: list[Path], options: Options) -> list[Path]:
    lowest: dict[int, int] = {}
    for path in paths:
        group = 0 if options.always_compare_med else path.attributes.neighbor_as
        med = path.attributes.med or 0
        lowest[group] = min(lowest.get(group, med), med)
    return [
        p
        for p in paths
        if (p.attributes.med or 0) == lowest[0 if options.always_compare_med else p.attributes.neighbor_as]
    ]


def _cost(path: Path) -> int:
    return path.hop.resolution.metric if path.hop is not None and path.hop.resolution is not None else 0


def _identifier(path: Path) -> bytes:
    if path.attributes.originator is not None:
        return path.attributes.originator
    return path.peer.identifier if path.peer is not None else b""


def _clusters(path: Path) -> int:
    return len(path.attributes.value(CLUSTER_LIST) or b"")


def _address(path: Path) -> tuple[int, bytes, str]:
    peer = path.peer
    return (len(peer.address), peer.address, peer.name) if peer is not None else (0, b"", "")


def _tie_break(path: Path) -> tuple[Any, ...]:
    return _identifier(path), _clusters(path), _address(path)


_STEPS: tuple[tuple[Step, Callable[[list[Path], Options], list[Path]]], ...] = (
    (Step.ORIGINATED, _lowest(lambda p: p.peer is not None)),
    (Step.WEIGHT, _lowest(lambda p: -p.attributes.weight)),
    (Step.LOCAL_PREF, _lowest(lambda p: -p.local_pref)),
    (Step.AS_PATH_LENGTH, _lowest(lambda p: p.attributes.path_length)),
    (Step.ORIGIN, _lowest(lambda p: p.attributes.origin)),
    (Step.MED, _lowest_med),
    (Step.EXTERNAL, _lowest(lambda p: p.peer is not None and p.peer.ibgp)),
    (Step.INTERIOR_COST, _lowest(_cost)),
    (Step.IDENTIFIER, _lowest(_identifier)),
    (Step.CLUSTER_LIST, _lowest(_clusters)),
    (Step.PEER_ADDRESS, _lowest(_address)),
)
