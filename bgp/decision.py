"""Which of several paths to a prefix is best (RFC 4271 section 9.1.2.2), and which others it shares the traffic with.

The comparison is one sequence of numbered steps. Each removes the paths that are worse than another one left, so the
result does not depend on the order in which paths arrived, also with MED.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from heapq import heapify, heappop, heapreplace
from itertools import groupby
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
    PATH_ID = 12
    """The lower path identifier, among paths of one peer (RFC 7911), which are alike in all before."""
    MULTIPATH = 13
    """Not a comparison: paths equal up to (e) that carry traffic beside the best one."""
    NEXT_HOP_ANSWERS = 14
    """Where no gateway of the paths that would carry the traffic answers, those of which one does take their place."""


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
    """Choose among paths to one prefix, which differ in peer or path identifier. Ineligible paths take no part.

    Silent paths do as long as they share the traffic with one that is not: the FIB leaves their gateways out by itself,
    and no prefix has to move. Where all paths are silent they are the only chance that packets have.
    """
    eligible = [p for p in paths if p.eligible]
    decision = _decide(eligible, options)
    if decision.multipath and all(p.silent for p in decision.multipath):
        answering = [p for p in eligible if not p.silent]
        if answering:
            decision = _decide(answering, options)
            decision.lost.update((p, Step.NEXT_HOP_ANSWERS) for p in eligible if p.silent)
            return decision._replace(decided=decision.decided or Step.NEXT_HOP_ANSWERS)
    return decision


def _decide(left: list[Path], options: Options) -> Decision:
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


def rank(paths: Iterable[Path], options: Options) -> tuple[Path, ...]:
    """Return the eligible paths, best first: each is what ``decide`` would choose without those before it."""
    ranked: list[Path] = []
    eligible = [p for p in paths if p.eligible]
    if any(p.silent for p in eligible):  # seldom: then what is first depends on what shares the traffic with it
        while (best := decide(eligible, options).best) is not None:
            ranked.append(best)
            eligible.remove(best)
        return tuple(ranked)
    by_first = sorted(eligible, key=_first_keys)
    for _, equal in groupby(by_first, key=_first_keys):
        # MED orders the paths of one neighbouring AS only: the next one is the best of those that are first in theirs.
        groups: dict[int, list[Path]] = {}
        for path in sorted(equal, key=lambda p: (p.attributes.med or 0, _last_keys(p)), reverse=True):
            groups.setdefault(_med_group(path, options), []).append(path)
        heads = [(_last_keys(group[-1]), number) for number, group in groups.items()]
        heapify(heads)
        while heads:
            group = groups[heads[0][1]]
            ranked.append(group.pop())
            if group:
                heapreplace(heads, (_last_keys(group[-1]), heads[0][1]))
            else:
                heappop(heads)
    return tuple(ranked)


def _multipath(best: Path, equal: list[Path], options: Options) -> tuple[Path, ...]:
    """Return the best path and those beside it, of which none leads where another one does already."""
    others = [p for p in equal if p is not best]
    if best.peer is None or not others:
        return (best,)
    if not options.multipath_relax:
        as_path = best.attributes.value(AS_PATH)
        others = [p for p in others if p.attributes.value(AS_PATH) == as_path]
    found = {best.next_hops: best}
    for path in sorted(others, key=_last_keys):
        found.setdefault(path.next_hops, path)
    return tuple(found.values())[: options.max_paths]


def _lowest(key: Callable[[Path], Any]) -> Callable[[list[Path], Options], list[Path]]:
    def remove(paths: list[Path], options: Options) -> list[Path]:
        keys = [key(p) for p in paths]
        lowest = min(keys)
        return [p for p, k in zip(paths, keys, strict=True) if k == lowest]

    return remove


def _med_group(path: Path, options: Options) -> int:
    return 0 if options.always_compare_med else path.attributes.neighbor_as


def _lowest_med(paths: list[Path], options: Options) -> list[Path]:
    lowest: dict[int, int] = {}
    for path in paths:
        group, med = _med_group(path, options), path.attributes.med or 0
        lowest[group] = min(lowest.get(group, med), med)
    return [p for p in paths if (p.attributes.med or 0) == lowest[_med_group(p, options)]]


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


def _path_id(path: Path) -> int:
    return -1 if path.path_id is None else path.path_id


_BEFORE_MED: tuple[tuple[Step, Callable[[Path], Any]], ...] = (
    (Step.ORIGINATED, lambda p: p.peer is not None),
    (Step.WEIGHT, lambda p: -p.attributes.weight),
    (Step.LOCAL_PREF, lambda p: -p.local_pref),
    (Step.AS_PATH_LENGTH, lambda p: p.attributes.path_length),
    (Step.ORIGIN, lambda p: p.attributes.origin),
)

_AFTER_MED: tuple[tuple[Step, Callable[[Path], Any]], ...] = (
    (Step.EXTERNAL, lambda p: p.peer is not None and p.peer.ibgp),
    (Step.INTERIOR_COST, _cost),
    (Step.IDENTIFIER, _identifier),
    (Step.CLUSTER_LIST, _clusters),
    (Step.PEER_ADDRESS, _address),
    (Step.PATH_ID, _path_id),
)

_STEPS: tuple[tuple[Step, Callable[[list[Path], Options], list[Path]]], ...] = (
    *((step, _lowest(key)) for step, key in _BEFORE_MED),
    (Step.MED, _lowest_med),
    *((step, _lowest(key)) for step, key in _AFTER_MED),
)


def _first_keys(path: Path) -> tuple[Any, ...]:
    return tuple(key(path) for _, key in _BEFORE_MED)


def _last_keys(path: Path) -> tuple[Any, ...]:
    """Return what no two paths have in common."""
    return tuple(key(path) for _, key in _AFTER_MED)
