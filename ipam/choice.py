"""Which pools serve a request, and what is said where none does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from config.prefix import NAMES, Family
from ipam.errors import NoLabelError, NoPoolError, PoolExhaustedError
from ipam.pool import Pool
from ipam.records import Block


class Usage(NamedTuple):
    block: Block
    used: int
    """Addresses that containers have."""
    reserved: int
    """Those that no container has, or gets without asking for them."""
    size: int

    @property
    def free(self) -> int:
        return self.size - self.used - self.reserved


def automatic(pools: Sequence[Pool]) -> list[Pool]:
    """Return the pools that serve requests which name none."""
    return [pool for pool in pools if not pool.manual and not pool.disabled]


def serving(pools: Sequence[Pool], family: Family, names: Sequence[str], *, exact: bool) -> list[Pool]:
    """Return the pools that serve a request; ``exact``: one for a certain address, which may be of a manual pool."""
    return [
        pool
        for pool in pools
        if pool.family == family and not pool.disabled and (pool.name in names if names else exact or not pool.manual)
    ]


def labelled(pools: Sequence[Pool], labels: Mapping[str, str]) -> list[Pool]:
    """Leave out pools that are split by a label which this node lacks."""
    return [pool for pool in pools if pool.split is None or pool.split.label in labels]


def no_label(pools: Sequence[Pool], node: str) -> NoLabelError:
    """Return the error for a request that only such pools would serve."""
    which = ", ".join(f"{pool.name} by {pool.split.label}" for pool in pools if pool.split)
    labels = " or ".join(dict.fromkeys(pool.split.label for pool in pools if pool.split))
    return NoLabelError(f"split pools need a label that node {node} lacks ({which}): set {labels} under node.labels")


def none_serves(pools: Sequence[Pool], family: Family, names: Sequence[str], node: str) -> NoPoolError:
    """Return the error for a request that no pool serves."""
    disabled = [pool.name for pool in pools if pool.family == family and pool.disabled]
    if disabled:
        return NoPoolError(
            f"pool {', '.join(disabled)} is disabled, and no other {NAMES[family]} pool serves node {node}: "
            "enable it (podroute ipam pools set), or add one to `pools`"
        )
    of = f" among {', '.join(names)}" if names else ""
    return NoPoolError(f"no {NAMES[family]} pool{of} serves node {node}: add one to `pools`, or check its `nodes`")


def exhausted(pools: Sequence[Pool], usage: Sequence[Usage], node: str) -> PoolExhaustedError:
    names = {pool.name for pool in pools}
    sizes = [one.size for one in usage if one.block.pool in names]
    which = " and ".join(f"{p.name} ({p.cidr}, {p.count} blocks of /{p.block_size})" for p in pools)
    rooms = [
        f"pool {pool.name} has no super-block left for this node's {pool.split.label}" for pool in pools if pool.split
    ]
    why = ", ".join(rooms) or "every block is claimed"
    return PoolExhaustedError(
        f"pool {which} is exhausted: {why}, and all {sum(sizes)} addresses of the {len(sizes)} that node {node} owns "
        "are in use; delete containers, or add a pool"
    )
