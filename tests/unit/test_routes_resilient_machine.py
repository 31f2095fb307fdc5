"""Whatever happens to peers, prefixes and next hops, in whatever order: in the end every route leads as announced."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from random import Random

import pytest

from config.nexthop import NextHops
from routes.batch import Batch
from routes.encode import ADD, Placement
from routes.groups import Operation
from routes.heirs import moves
from routes.leftovers import snapshot
from routes.messages import Resilience
from routes.state import Failure, State
from routes.table import Table
from routes.target import Kind, Target
from tests.unit.test_routes_nexthops import A, B, C, Objects, prepared

HOPS = {hop.peer: hop for hop in (A, B, C)}
PREFIXES = [bytes([24, 10, 0, number]) for number in range(12)]


class Kernel(Objects):
    """Objects, and the routes that go with them."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: dict[bytes, int] = {}

    def delete(self, identifier: int) -> bool:
        found = super().delete(identifier)
        self.routes = {prefix: group for prefix, group in self.routes.items() if group in self.there}
        return found

    def write(self, prefix: bytes, want: Target | None, flags: int) -> int:
        if want is None:
            return 0 if self.routes.pop(prefix, None) else errno.ESRCH
        if want.id not in self.there:
            return errno.EINVAL
        if flags == ADD and prefix in self.routes:
            return errno.EEXIST
        self.routes[prefix] = want.id
        return 0


class World:
    """A speaker, a registry with its table, and a kernel that is told later."""

    def __init__(self, seed: int, resilience: Resilience | None) -> None:
        self.random = Random(seed)
        self.registry, self.resolver, _ = prepared(resilience=resilience)
        self.kernel = Kernel()
        self.released: list[Target] = []
        place = Placement(4, 254, 20, 201)
        self.table = Table(place, shards=2, on_result=lambda _: None, on_released=self.released.append)
        self.announced: dict[str, set[bytes]] = {peer: set() for peer in HOPS}
        self.undecided: deque[bytes] = deque()
        self.jobs: deque[Callable[[], None]] = deque()
        self.other = Target(Kind.OTHER)
        self.events: deque[int] = deque()

    def announce(self, peer: str, *, withdraw: bool) -> None:
        some = self.random.sample(PREFIXES, self.random.choice((1, 2, 12)))
        changed = [prefix for prefix in some if (prefix in self.announced[peer]) is withdraw]
        (self.announced[peer].difference_update if withdraw else self.announced[peer].update)(changed)
        self.undecided += changed

    def lose(self, peer: str) -> None:
        quick, slow = self.registry.peer_lost(peer)
        for request in (*quick, *slow):
            self.kernel.one(request)
        self.undecided += sorted(self.announced[peer])
        self.announced[peer].clear()

    def back(self, peer: str) -> None:
        self.decide(len(self.undecided))
        self.registry.peer_back(peer)

    def decide(self, count: int) -> None:
        for _ in range(min(count, len(self.undecided))):
            prefix = self.undecided.popleft()
            hops: NextHops = tuple(HOPS[peer] for peer in sorted(HOPS) if prefix in self.announced[peer])
            self.table.update([([prefix], hops or None)], self.registry.target)

    def resolve(self, peer: str) -> None:
        self.resolver.lost ^= {HOPS[peer].address}
        self.registry.refresh()

    def link(self, peer: str) -> None:
        """The link to a peer goes, with its objects and without a word of them, or returns."""
        address = HOPS[peer].address
        self.kernel.bad ^= {address}
        if address in self.kernel.bad:
            ifindex = address[2] + 1
            for identifier in [i for i, nexthop in self.kernel.there.items() if nexthop.ifindex == ifindex]:
                self.kernel.delete(identifier)
            self.registry.link_lost(ifindex)
            self.resolver.lost.add(address)
        else:
            self.resolver.lost.discard(address)
        self.registry.refresh()

    def meddle(self) -> None:
        """Somebody deletes an object or group; ``hear`` is when we are told."""
        if self.kernel.there:
            identifier = self.random.choice(sorted(self.kernel.there))
            self.kernel.delete(identifier)
            self.events.append(identifier)

    def hear(self) -> None:
        if self.events and self.registry.vanished(self.events.popleft(), "meddling"):
            self.registry.refresh()

    def flush(self) -> None:
        """What the installer does in one turn of the loop; the kernel does its part with ``work``."""
        released, self.released[:] = self.released[:], []
        self.registry.release(released)
        self.registry.realize(moves([self.table], self.registry.fresh))
        operations = self.registry.take()
        if operations:
            self.jobs.append(lambda: self._objects(operations))
        if self.registry.outdated:
            while self.registry.outdated:
                self.registry.outdated = False
                for shard in self.table.shards:
                    self.table.follow(shard, self.registry.successor)
            self.registry.moved()
        batch = Batch()
        self.table.take(batch, 100)
        if batch.flights:
            self.jobs.append(lambda: self._routes(batch))

    def work(self) -> None:
        if self.jobs:
            self.jobs.popleft()()

    def _objects(self, operations: list[Operation]) -> None:
        self.registry.completed(operations, self.kernel.run(operations))

    def _routes(self, batch: Batch) -> None:
        for part in batch.parts:
            shard, want = part.flight.shard, part.want
            flags = int.from_bytes(part.shape[6:8], "little") & ~1
            for prefix in part.prefixes:
                number = self.kernel.write(prefix, want, flags)
                before = part.flight.changes[prefix]
                held = before if before is not None and not before.absent else None
                if not number or want is None:
                    continue
                if number == errno.EEXIST:
                    if self.kernel.routes[prefix] != want.id:
                        failure = Failure(self.other, State.PENDING, number, "")
                        self.table.refused(shard, prefix, want, failure)
                elif not want.absent or held is not None:
                    state = State.PENDING if want.absent else State.FAILED
                    self.table.refused(shard, prefix, want, Failure(held, state, number, ""))
        for flight in batch.flights:
            self.table.settle(flight)

    def rest(self) -> None:
        """Let everything come to its end."""
        for peer in HOPS:
            self.back(peer)
        self.resolver.lost.clear()
        self.kernel.bad.clear()
        for _ in range(6):
            while self.events:
                self.hear()
            self.registry.refresh()
            self.table.retry(lambda _: True)
            for _ in range(20):
                self.flush()
                while self.jobs:
                    self.work()

    def check(self) -> None:
        shown = {
            prefix: {self.kernel.there[member].gateway for member, _ in self.kernel.there[group].members}
            for prefix, group in self.kernel.routes.items()
        }
        announced = {p: {HOPS[peer].address for peer in HOPS if p in self.announced[peer]} for p in PREFIXES}
        assert shown == {prefix: gateways for prefix, gateways in announced.items() if gateways}
        assert sorted(self.registry.expected()) == sorted(self.kernel.there)
        assert sorted(saved.id for saved in snapshot(self.registry)) == sorted(set(self.kernel.routes.values()))
        for prefix in PREFIXES:
            status = self.table.status(prefix)
            assert (status.state if status else None) == (State.INSTALLED if announced[prefix] else None)


@pytest.mark.parametrize("resilience", [None, Resilience(64, 100, 0)], ids=["plain", "resilient"])
def test_all_comes_to_rest_as_announced(resilience: Resilience | None) -> None:
    inherited = 0
    for seed in range(150):
        world = World(seed, resilience)
        choose = world.random
        for _ in range(40):
            peer = choose.choice(sorted(HOPS))
            step = choose.choices(
                (
                    "announce",
                    "withdraw",
                    "lose",
                    "back",
                    "decide",
                    "resolve",
                    "link",
                    "flush",
                    "work",
                    "meddle",
                    "hear",
                ),
                (6, 3, 2, 1, 6, 1, 1, 8, 8, 1, 2),
            )[0]
            match step:
                case "announce" | "withdraw":
                    world.announce(peer, withdraw=step == "withdraw")
                case "lose":
                    world.lose(peer)
                case "back":
                    world.back(peer)
                case "decide":
                    world.decide(choose.choice((1, 3, 99)))
                case "resolve":
                    world.resolve(peer)
                case "link":
                    world.link(peer)
                case "flush":
                    world.flush()
                case "work":
                    world.work()
                case "meddle":
                    world.meddle()
                case _:
                    world.hear()
            inherited += sum(target.heir is not None for target in world.registry)
        world.rest()
        world.check()
    assert bool(inherited) is (resilience is not None)
