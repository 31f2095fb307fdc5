"""The desired table against a kernel made of a dict, under any order of changes, refusals and other people's work."""

from __future__ import annotations

import errno
from collections import Counter
from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from config.nexthop import NextHop
from config.prefix import Run
from routes.batch import Batch, Part
from routes.encode import ADD, REPLACE, Placement
from routes.state import Failure, Result, State
from routes.table import Table, watched
from routes.target import Kind, Target

PREFIXES = [bytes((24, 10, 0, n)) for n in range(4)] + [bytes((24, 10, 1, 0))]
FOREIGN = Target(Kind.OTHER)
prefixes = st.sampled_from(PREFIXES)
several = st.lists(prefixes, min_size=1, unique=True) | st.lists(
    st.sampled_from(PREFIXES[:4]), min_size=1, unique=True
).map(Run)


def flags(part: Part) -> int:
    return int.from_bytes(part.shape[6:8], "little") & ~1


def wants(batch: Batch) -> dict[bytes, Target | None]:
    return {prefix: part.want for part in batch.parts for prefix in part.prefixes}


def settle(table: Table, batch: Batch) -> None:
    for flight in batch.flights:
        table.settle(flight)


class Kernel:
    """One entry per prefix, as the real one has for one metric."""

    def __init__(self) -> None:
        self.routes: dict[bytes, Target] = {}
        self.bad: set[bytes] = set()

    def write(self, prefix: bytes, want: Target | None, flags: int) -> int:
        there = self.routes.get(prefix)
        if want is None:
            if there is None or there is FOREIGN:
                return errno.ESRCH
            del self.routes[prefix]
        elif want.absent or prefix in self.bad:
            return errno.EINVAL
        elif there is not None and flags == ADD:
            return errno.EEXIST
        else:
            self.routes[prefix] = want
        return 0


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel()
        self.other = Target(Kind.OTHER)
        self.results: list[Result] = []
        self.released: list[Target] = []
        place = Placement(4, 254, 20, 201)
        self.unwanted: set[Target] = set()
        self.table = Table(
            place,
            shards=4,
            on_result=self.results.append,
            on_released=self.released.append,
            on_unwanted=self.unwanted.add,
        )
        self.targets = [self._target(n) for n in range(4)]
        self.desired: dict[bytes, Target] = {}
        self.withdrawn: dict[bytes, int] = {}
        """How many results there were when a prefix was last withdrawn: it need not recover from these."""
        self.batches: list[Batch] = []
        self.ahead: list[Batch] = []
        self.watching = ExitStack()

    def _target(self, number: int) -> Target:
        target = Target(Kind.LEARNED, key=(NextHop(f"peer{number}", bytes(4)),))
        target.id = number + 1
        return target

    @rule(prefixes=several, number=st.integers(0, 4))
    def desire(self, prefixes: list[bytes], number: int) -> None:
        target = self.targets[number] if number < len(self.targets) else None
        if target is None:
            for prefix in prefixes:
                self.desired.pop(prefix, None)
                self.withdrawn[prefix] = len(self.results)
            self.table.update([(prefixes, None)], lambda hops: self.targets[0])
        else:
            self.desired.update(dict.fromkeys(prefixes, target))
            self.table.update([(prefixes, target.key)], lambda hops: target)

    @rule(number=st.integers(0, 3))
    def lose(self, number: int) -> None:
        """A group goes, and its routes with it; a new one with the same next hops takes its place."""
        gone, fresh = self.targets[number], self._target(number)
        gone.absent, gone.current = True, False
        self.targets[number] = fresh
        for prefix in [p for p, target in self.kernel.routes.items() if target is gone]:
            del self.kernel.routes[prefix]
        for shard in self.table.shards:
            self.table.follow(shard, lambda target: fresh if target is gone else target)
        self.desired = {p: fresh if t is gone else t for p, t in self.desired.items()}

    @rule()
    def retire(self) -> None:
        """Groups go all of whose routes are to be deleted, once what is on its way has arrived."""
        for target in [t for t in self.unwanted if not t.wanted and t.refs and self.table.condemned(t) == t.refs]:
            while self.batches:
                self._settle(self.batches.pop(0))
            if not target.absent and self.table.condemned(target) == target.refs:
                for prefix in [p for p, there in self.kernel.routes.items() if there is target]:
                    assert prefix not in self.desired
                    del self.kernel.routes[prefix]
                target.absent = True
                self.targets = [self._target(n) if t is target else t for n, t in enumerate(self.targets)]

    @rule(number=st.integers(0, 3), ready=st.booleans())
    def hold(self, number: int, ready: bool) -> None:
        self.targets[number].ready = ready

    @rule(prefix=prefixes)
    def delete_behind_our_back(self, prefix: bytes) -> None:
        if self.kernel.routes.get(prefix) not in (None, FOREIGN):
            del self.kernel.routes[prefix]
            self.table.observe(prefix, None)

    @rule(prefix=prefixes)
    def alter_behind_our_back(self, prefix: bytes) -> None:
        if self.kernel.routes.get(prefix) not in (None, FOREIGN):
            self.kernel.routes[prefix] = self.other
            self.table.observe(prefix, self.other)

    @rule(prefix=prefixes)
    def foreign_comes(self, prefix: bytes) -> None:
        """Not while a replacement is on its way: the kernel has no way to replace a route of one protocol only."""
        if not self.table.shard(prefix).on_its_way(prefix):
            self.kernel.routes.setdefault(prefix, FOREIGN)

    @rule(prefix=prefixes)
    def foreign_goes(self, prefix: bytes) -> None:
        if self.kernel.routes.get(prefix) is FOREIGN:
            del self.kernel.routes[prefix]
            self.table.retry(lambda failure: failure.state is State.CONFLICT)

    @rule(prefix=prefixes, good=st.booleans())
    def refuse(self, prefix: bytes, good: bool) -> None:
        (self.kernel.bad.discard if good else self.kernel.bad.add)(prefix)

    @rule(limit=st.integers(1, 8), hold=st.booleans())
    def take(self, limit: int, hold: bool) -> None:
        batch = Batch()
        self.table.take(batch, limit, hold=hold)
        if batch.flights:
            self.batches.append(batch)

    @rule()
    def another_thread_looks_or_no_longer(self) -> None:
        if self.table.watchers:
            self.watching.close()
        else:
            self.watching.enter_context(watched([self.table]))

    @rule()
    def take_ahead(self) -> None:
        batch = Batch()
        self.table.take_ahead(batch)
        if batch.flights:
            self.ahead.append(batch)

    @rule(ahead=st.booleans())
    def settle(self, ahead: bool) -> None:
        batches = self.ahead if ahead else self.batches
        if batches:
            self._settle(batches.pop(0))

    @invariant()
    def a_prefix_is_on_one_way(self) -> None:
        for shard in self.table.shards:
            prefixes = [prefix for flight in shard.flights for prefix in flight]
            assert len(prefixes) == len(set(prefixes))

    def _settle(self, batch: Batch) -> None:
        for part in batch.parts:
            for prefix in part.prefixes:
                assert flags(part) in (ADD, REPLACE, 0)
                if flags(part) == REPLACE:  # the one thing that must never be
                    assert self.kernel.routes.get(prefix) is not FOREIGN
                number = self.kernel.write(prefix, part.want, flags(part))
                if number:
                    self._refused(part, prefix, number)
        for flight in batch.flights:
            self.table.settle(flight)

    def _refused(self, part: Part, prefix: bytes, number: int) -> None:
        shard, want = part.flight.shard, part.want
        there = self.kernel.routes.get(prefix)
        if want is None:
            return
        if there is want and number == errno.EEXIST:
            return
        if there is FOREIGN:
            self.table.refused(shard, prefix, want, Failure(None, State.CONFLICT, number, "foreign"))
        elif number == errno.EEXIST:
            self.table.refused(shard, prefix, want, Failure(self.other, State.PENDING, number, ""))
        else:
            before = part.flight.changes[prefix]
            held = before if before is not None and not before.absent else None
            if not want.absent:
                self.table.refused(shard, prefix, want, Failure(held, State.FAILED, number, ""))
            elif held is not None:
                self.table.refused(shard, prefix, want, Failure(held, State.PENDING, number, ""))

    @invariant()
    def deletions_are_counted(self) -> None:
        for shard in self.table.shards:
            assert shard.going == len(shard.changed.keys() - shard.desired.keys())

    @invariant()
    def what_is_new_is_in_one_place(self) -> None:
        for shard in self.table.shards:
            new = [prefix for prefixes in shard.fresh.values() for prefix in prefixes]
            assert len(new) == len(set(new))
            assert shard.changed.keys().isdisjoint(new)
            assert not any(prefix in place for prefix in new for place in (shard.failed, shard.stale))
            assert all(shard.desired[p] is target for target, prefixes in shard.fresh.items() for p in prefixes)
            assert shard.waiting == len(new) + len(shard.changed)
            assert not (self.table.watchers and (new or any(flight.fresh for flight in shard.flights)))

    @invariant()
    def references_are_exact(self) -> None:
        counted: dict[Target, int] = {}
        for shard in self.table.shards:
            named = [*shard.desired.values(), *shard.changed.values(), *shard.stale.values()]
            named += [held for flight in shard.flights for held in flight.changed.values()]
            named += [failure.held for failure in shard.failed.values()]
            for target in named:
                if target is not None:
                    counted[target] = counted.get(target, 0) + 1
        wanted = Counter(target for shard in self.table.shards for target in shard.desired.values())
        for target in [*self.targets, *self.released, *self.unwanted]:
            if target is not self.other:
                assert (target.refs, target.wanted) == (counted.get(target, 0), wanted[target])
                assert target.wanted or not target.refs or target in self.unwanted

    @invariant()
    def desired_is_desired(self) -> None:
        assert {p: t for shard in self.table.shards for p, t in shard.desired.items()} == self.desired

    @rule()  # and no invariant: whoever asks for a prefix spreads what waits
    def counts_are_those_of_each(self) -> None:
        each = Counter({status.prefix: status.state for status in self.table.statuses()}.values())
        assert +sum(self.table.counts(), Counter()) == each

    def teardown(self) -> None:
        for target in self.targets:
            target.ready = True
        self._work_off()
        self.kernel.bad.clear()
        self.table.retry(lambda failure: True)
        self._work_off()
        assert self.table.idle
        foreign = {p for p, target in self.kernel.routes.items() if target is FOREIGN}
        ours = {p: target for p, target in self.kernel.routes.items() if target is not FOREIGN}
        assert ours == {p: target for p, target in self.desired.items() if p not in foreign}
        for prefix, target in self.desired.items():
            found = self.table.status(prefix)
            assert found is not None
            assert found.desired is target
            assert found.state is (State.CONFLICT if prefix in foreign else State.INSTALLED)
        last = {result.prefix: result.state for result in self.results}
        assert all(last.get(prefix) is State.CONFLICT for prefix in foreign & set(self.desired))
        installed = set(self.desired) - foreign
        last = {r.prefix: r.state for n, r in enumerate(self.results) if n >= self.withdrawn.get(r.prefix, 0)}
        assert all(last.get(prefix, State.INSTALLED) is State.INSTALLED for prefix in installed)

    def _work_off(self) -> None:
        for _ in range(50):
            while self.batches or self.ahead:
                self._settle((self.batches or self.ahead).pop(0))
            self.take(100, hold=False)


Machine.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestTable = Machine.TestCase


def test_stale_routes() -> None:
    table = Table(Placement(4, 254, 20, 201), shards=2, on_result=lambda r: None, on_released=lambda t: None)
    a, b = Target(Kind.LEARNED), Target(Kind.LEARNED)
    for prefix in PREFIXES[:4]:
        table.leave_stale(prefix, a)
    table.set(PREFIXES[0], a)  # confirmed as it is
    table.set(PREFIXES[1], b)  # confirmed otherwise
    assert table.sweep(lambda held: held is a) == 2
    batch = Batch()
    table.take(batch, 100)
    assert wants(batch) == {
        PREFIXES[1]: b,
        PREFIXES[2]: None,
        PREFIXES[3]: None,
    }
    settle(table, batch)
    assert (a.refs, b.refs) == (1, 1)


def test_what_cannot_be_is_tried_a_limited_number_of_times() -> None:
    results: list[Result] = []
    table = Table(Placement(4, 254, 20, 201), shards=1, on_result=results.append, on_released=lambda t: None)
    table.set(PREFIXES[0], Target(Kind.COVER))
    turns = 0
    while not table.idle:
        batch = Batch()
        table.take(batch, 10)
        (part,) = batch.parts
        table.refused(part.flight.shard, PREFIXES[0], part.want, Failure(None, State.PENDING, errno.ENOMEM, ""))
        settle(table, batch)
        turns += 1
    assert turns == 3
    assert [(r.state, r.errno) for r in results] == [(State.FAILED, errno.ENOMEM)]


def test_seen_to_change_while_a_request_is_on_its_way() -> None:
    """Deleted by somebody just before our replacement arrives, and withdrawn meanwhile: it must be deleted again."""
    table = Table(Placement(4, 254, 20, 201), shards=1, on_result=lambda r: None, on_released=lambda t: None)
    a, b = Target(Kind.LEARNED), Target(Kind.LEARNED)

    for first in (a, b):
        table.set(PREFIXES[0], first)
        batch = Batch()
        table.take(batch, 10)
        if first is b:
            table.observe(PREFIXES[0], None)
            table.set(PREFIXES[0], None)
        settle(table, batch)
    assert [flags(part) for part in batch.parts] == [REPLACE]
    batch = Batch()
    table.take(batch, 10)
    assert wants(batch) == {PREFIXES[0]: None}
    settle(table, batch)
    assert table.idle
    # The same, told only after our replacement was answered.
    for target in (a, b):
        table.set(PREFIXES[0], target)
        batch = Batch()
        table.take(batch, 10)
        settle(table, batch)
    table.observe(PREFIXES[0], None)
    table.set(PREFIXES[0], None)
    batch = Batch()
    table.take(batch, 10)
    assert wants(batch) == {PREFIXES[0]: None}
    settle(table, batch)
    assert table.idle
    # And where it is still desired, nothing foreign can be overwritten.
    table.set(PREFIXES[0], a)
    batch = Batch()
    table.take(batch, 10)
    table.observe(PREFIXES[0], None)
    settle(table, batch)
    batch = Batch()
    table.take(batch, 10)
    assert [flags(part) for part in batch.parts] == [ADD]


def test_deletions_press_nobody_and_let_others_pass() -> None:
    table = Table(Placement(4, 254, 20, 201), shards=4, on_result=lambda _: None, on_released=lambda _: None)
    target = Target(Kind.LEARNED)
    runs = [Run(bytes((24, 10, second, third)) for third in range(64)) for second in range(40)]
    news = bytes((24, 10, 0, 200))

    def taken() -> list[bytes]:
        batch = Batch()
        table.take(batch, 1)
        settle(table, batch)
        return list(wants(batch))

    table.update([(run, target.key) for run in runs], lambda hops: target)
    assert table.pressing() == table.backlog() == 40 * 64
    while taken():
        pass
    table.update([(run, None) for run in runs], lambda hops: target)
    assert (table.pressing(), table.backlog()) == (0, 40 * 64)
    table.set(news, target)
    assert table.pressing() == 1
    assert news in taken() or news in taken()
    while taken():
        pass
    assert (table.pressing(), table.backlog()) == (0, 0)


def test_deletions_wait_for_each_other_unless_the_kernel_has_made_them() -> None:
    table = Table(Placement(4, 254, 20, 201), shards=16, on_result=lambda _: None, on_released=lambda _: None)
    a, b = Target(Kind.LEARNED), Target(Kind.LEARNED)
    runs = [Run(bytes((24, 10, second, third)) for third in range(16)) for second in range(40)]
    news = bytes((24, 10, 1, 200))

    def taken(*, hold: bool) -> dict[bytes, Target | None]:
        batch = Batch()
        table.take(batch, 10_000, hold=hold)
        settle(table, batch)
        return wants(batch)

    table.update([(run, ()) for run in runs], lambda hops: a)
    assert set(taken(hold=True).values()) == {a}
    table.update([(run, None) for run in runs], lambda hops: a)
    assert taken(hold=True) == {}
    table.set(news, b)
    held = taken(hold=True)
    assert held.pop(news) is b
    assert set(held.values()) == {None}  # those of the same shard go along
    assert 0 < len(held) < table.going
    a.absent = True
    assert taken(hold=True) == {}
    assert table.idle
    assert a.refs == 0


def test_few_at_a_time_go_ahead_of_many() -> None:
    table = Table(Placement(4, 254, 20, 201), shards=4, on_result=lambda _: None, on_released=lambda _: None)
    many, few = Target(Kind.LEARNED, key=(NextHop("a", bytes(4)),)), Target(Kind.LEARNED)
    few.ready = False
    runs = [Run(bytes((24, 10, second, third)) for third in range(64)) for second in range(40)]
    beside, alone, known = bytes((24, 10, 0, 200)), bytes((8, 11)), runs[0][0]

    def ahead() -> dict[bytes, Target | None]:
        batch = Batch()
        table.take_ahead(batch)
        settle(table, batch)
        return wants(batch)

    table.update([(run, many.key) for run in runs], lambda hops: many)
    assert ahead() == {}
    first = Batch()
    table.take(first, 10_000)
    table.update([((beside,), many.key), ((known,), None)], lambda hops: many)
    table.set(alone, few)
    assert ahead() == {beside: many}  # that of one waits for its next hop, of the other something is on its way
    few.ready = True
    assert ahead() == {alone: few}
    settle(table, first)
    assert ahead() == {known: None}
    assert ahead() == {}
    assert table.idle
