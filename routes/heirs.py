"""Resilient groups that pass from one set of next hops to the next. No I/O.

The speaker names next hops by set. Where a peer is lost, withdraws or joins, prefixes move to another set, and so to
another target; a group of its own would spread all flows anew. So a new target takes over the group of the one that its
prefixes come from, and the kernel is told of other members: buckets whose member stays are left alone. What still leads
to the former target goes through the same group until it has moved: that target is a shade of its heir, whose members
it shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from routes.messages import Resilience
from routes.table import Table
from routes.target import Target

Moves = dict[Target, Counter[Target]]
"""Of new targets: how many of their prefixes the kernel still has lead to which other targets."""


def moves(tables: Iterable[Table], to: Collection[Target]) -> Moves:
    """Look through the changes that the kernel has not been told of."""
    found: Moves = {target: Counter() for target in to}
    for table in tables:
        for shard in table.shards:
            desired = shard.desired
            for prefix, held in shard.changed.items():
                if held is not None and (want := desired.get(prefix)) in found:
                    found[want][held] += 1
    return found


def alike(one: Resilience | None, other: Resilience | None) -> bool:
    """Tell whether a group of one kind can become one of the other: all but the timers is fixed at its creation."""
    if one is None or other is None:
        return one is other
    return one.buckets == other.buckets


def take_over(heir: Target, former: Target) -> None:
    """Make a group that of another target."""
    heir.id, heir.version, heir.ready, heir.resilience = former.id, former.version, True, former.resilience
    heir.members, heir.weights = former.members, former.weights
    _hand(former, heir)
    heir.shades, former.shades = (*former.shades, former), ()
    for shade in heir.shades:
        shade.heir = heir


def give_back(heir: Target) -> Target:
    """Make a group that of one of its owner's shades, and return which."""
    first, *others = heir.shades
    first.version, first.ready, first.resilience = heir.version, heir.ready, heir.resilience
    first.heir, first.shades, heir.shades = None, tuple(others), ()
    for shade in others:
        shade.heir = first
    _hand(heir, first)
    heir.members, heir.weights = {}, {}
    return first


def let_go(shade: Target) -> None:
    """Part from the heir."""
    if shade.heir is not None:
        shade.heir.shades = tuple(other for other in shade.heir.shades if other is not shade)
        shade.heir = None
        shade.members, shade.weights = {}, {}


def owner(target: Target) -> Target:
    """Return the target that answers for a group now."""
    return target if target.heir is None else target.heir


def _hand(giver: Target, taker: Target) -> None:
    for member in giver.members.values():
        member.users.discard(giver)
        member.users.add(taker)
