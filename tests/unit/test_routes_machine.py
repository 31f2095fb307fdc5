"""Whatever happens, in whatever order: in the end every route leads as announced, and none that need not go goes."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

import routes.installer
import routes.nexthops
from routes.leftovers import snapshot
from routes.messages import Resilience, RouteEvent
from routes.state import State
from routes.target import Target
from tests.unit.routes_world import HOPS, PREFIXES, World
from tests.unit.test_routes_nexthops import A

RESILIENT = Resilience(64, 100, 0)
KINDS = pytest.mark.parametrize(
    ("objects", "resilience"),
    [(True, None), (True, RESILIENT), (False, None)],
    ids=["plain", "resilient", "fallback"],
)
STEPS = {
    "announce": 6.0,
    "withdraw": 3,
    "lose": 2,
    "back": 1,
    "decide": 6,
    "resolve": 1,
    "silence": 1,
    "link": 1.5,
    "turn": 8,
    "work": 10,
    "answer": 10,
    "hear": 5,
    "compare": 3,
}
SEEDS, LENGTH = int(os.environ.get("ROUTES_EXAMPLES", "150")), 80


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a dozen prefixes be many, so that what is done for large tables is done here."""
    for name, value in {"_SHORT": 0, "_MANY": 1, "_SHARE": 4, "_SHARDS": 2, "_BATCH": 4}.items():
        monkeypatch.setattr(routes.installer, name, value)
    monkeypatch.setattr(routes.nexthops, "_FEW", 3)


def steps(choose: Random, weights: dict[str, float]) -> Iterator[tuple[str, str]]:
    for step in choose.choices(list(weights), list(weights.values()), k=LENGTH):
        yield step, choose.choice(sorted(HOPS))


async def take(world: World, step: str, peer: str) -> None:
    if step == "turn":
        await world.turn(world.random.choice((1, 2, 8)))
    else:
        getattr(world, step)(peer)


def assert_at_rest(world: World) -> None:
    kernel, registry, table = world.kernel, world.registry, world.table
    shown = {prefix: kernel.gateways(prefix) for prefix in PREFIXES}
    assert shown == {p: {HOPS[peer].address for peer in HOPS if p in world.announced[peer]} for p in PREFIXES}
    assert sorted(registry.expected()) == kernel.ours
    assert registry.refusal == "" or not registry.objects
    assert {i: kernel.there.get(i) for i in kernel.strangers} == kernel.strangers
    if registry.objects:
        assert {kernel.there[i].resilience for i in kernel.routes.values() if isinstance(i, int)} <= {
            registry.resilience
        }
        assert sorted(saved.id for saved in snapshot(registry)) == sorted(set(kernel.routes.values()))
    for prefix, ways in shown.items():
        status = table.status(prefix)
        assert (status.state if status else None) == (State.INSTALLED if ways else None)
    named: Counter[Target] = Counter()
    for shard in table.shards:
        named.update(shard.desired.values())
    assert {target: (target.refs, target.wanted) for target in registry} == {t: (n, n) for t, n in named.items()}
    assert world.installer.idle
    assert world.failures == []


async def test_a_route_deleted_by_somebody_while_it_is_withdrawn_and_announced_again() -> None:
    world = World(0, objects=True, resilience=None)
    world.announce("a", PREFIXES[:1])
    world.back("a")
    await world.rest()
    world.kernel.events.append(RouteEvent(world.kernel.route(PREFIXES[0]), True, False, 99))
    world.kernel.routes.clear()
    target = world.table.shard(PREFIXES[0]).desired[PREFIXES[0]]
    world.table.set(PREFIXES[0], None)
    world.hear("")
    world.table.set(PREFIXES[0], target)
    await world.rest()
    assert_at_rest(world)


@KINDS
def test_all_comes_to_rest_as_announced(*, objects: bool, resilience: Resilience | None) -> None:
    async def live(seed: int) -> int:
        world = World(seed, objects=objects, resilience=resilience)
        inherited = 0
        strangers, scarcity, kinds = bool(seed & 1), bool(seed & 2), bool(seed & 4)
        often = {"meddle": 1, "stranger": strangers, "scarcity": scarcity, "kind": kinds}
        weights = {**STEPS, **{step: 1.5 * there for step, there in often.items()}}
        for step, peer in steps(world.random, weights):
            await take(world, step, peer)
            inherited += not kinds and sum(target.heir is not None for target in world.registry)
        # A route on its way may have met another program's object, and what was refused often is left until then.
        await world.rest(periodic=strangers or scarcity)
        assert_at_rest(world)
        return inherited

    inherited = sum(asyncio.run(live(seed)) for seed in range(SEEDS))
    assert bool(inherited) is (resilience is not None)


@KINDS
def test_what_a_steady_peer_announces_leads_there_at_every_moment(
    *, objects: bool, resilience: Resilience | None
) -> None:
    async def live(seed: int) -> None:
        world = World(seed, objects=objects, resilience=resilience)
        world.announce("a", PREFIXES)
        there: set[bytes] = set()
        for step, peer in steps(world.random, {**STEPS, "kind": seed % 2}):
            unsteady = step in ("withdraw", "lose", "resolve", "silence", "link")
            await take(world, step, "b" if unsteady and peer == "a" else peer)
            led = {prefix for prefix in PREFIXES if A.address in world.kernel.gateways(prefix)}
            assert there <= led
            there = led
        await world.rest()
        assert_at_rest(world)

    for seed in range(SEEDS):
        asyncio.run(live(seed))
