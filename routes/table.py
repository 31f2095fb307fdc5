"""Desired routes of one family and metric, and in what the kernel is known to differ. No I/O.

The desired state is the truth and the kernel a cache of it: for most prefixes the kernel holds what is desired, so
only differences are stored. Changes coalesce per prefix until they are taken. The table is cut into shards by hash, so
that no dict grows so large that its resizing stops the loop, and so that a shard whose changes are on their way to the
kernel leaves the others free.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from config.nexthop import NextHops
from config.prefix import LEAD, Run
from routes.batch import Batch, Part
from routes.encode import ADD, REPLACE, Placement, delete_shape
from routes.shard import Flight, Fresh, Shard, spread
from routes.state import Failure, Result, RouteStatus, State
from routes.target import Kind, Target

_ATTEMPTS = 3
_LOOK = 2
"""So many times as many changes are looked at for a batch as it may have requests."""
_FEW = 64
_MOST_AHEAD = 1024
"""So few prefixes that are told together go ahead of a long queue, and never more than so many: they would not be ahead
of much."""
_NOWHERE = "no next hop can be reached"


@contextmanager
def watched(tables: Collection[Table]) -> Iterator[None]:
    """Let another thread ask the shards of tables what is ``unsettled``."""
    for table in tables:
        table.watchers += 1
        for shard in table.shards:
            shard.spread()
            for flight in shard.flights:
                flight.spread()
    try:
        yield
    finally:
        for table in tables:
            table.watchers -= 1


class Table:
    """``on_result`` hears of prefixes whose state is worth telling; ``on_released`` of targets nothing names now.

    ``on_unwanted`` hears of targets to which no prefix is to lead any more, though the kernel may still hold some so.
    """

    def __init__(
        self,
        place: Placement,
        *,
        shards: int,
        on_result: Callable[[Result], None],
        on_released: Callable[[Target], None],
        on_unwanted: Callable[[Target], None] = lambda target: None,
    ) -> None:
        self.place = place
        self._shift = sys.hash_info.hash_bits - shards.bit_length() + 1
        """The highest bits of a hash choose the shard, for a dict chooses its slots by the lowest."""
        self._lead = LEAD[place.family]
        self.shards = [Shard() for _ in range(shards)]
        self._delete = delete_shape(place)
        self._unsure = Target(Kind.OTHER)
        """Stands for what the kernel holds where it was seen to change while a request was on its way."""
        self._on_result = on_result
        self._on_released = on_released
        self._on_unwanted = on_unwanted
        self.ahead: dict[bytes, None] = {}
        """Prefixes told a few at a time, which need not wait until it is their shard's turn."""
        self._next = 0
        self._news = False
        self.watchers = 0
        """So many other threads may ask shards what is ``unsettled``: nothing waits or travels that is not spread."""

    def shard(self, prefix: bytes) -> Shard:
        return self.shards[hash(prefix[: self._lead]) >> self._shift]  # a negative index counts from the end

    def update(
        self,
        changes: Iterable[tuple[Sequence[bytes], NextHops | None]],
        resolve: Callable[[NextHops], Target],
    ) -> None:
        """Take in many changes at once; ``resolve`` is called once for each run of equal next hops."""
        last: NextHops | None = None
        target: Target | None = None
        few: list[bytes] = []
        for prefixes, hops in changes:
            if len(few) <= _FEW:
                few += prefixes
            if hops is not last:
                last = hops
                target = resolve(hops) if hops is not None else None
            if not (isinstance(prefixes, Run) and self._update_run(prefixes, target)):
                self._update(prefixes, target)
        if len(few) <= _FEW:
            self._note(few)

    def _update(self, prefixes: Iterable[bytes], target: Target | None) -> None:
        if target is None or self.watchers:
            for prefix in prefixes:
                shard = self.shard(prefix)
                if shard.desired.get(prefix) is not target or shard.stale:
                    self._set(shard, prefix, target)
            return
        shards, shift, lead = self.shards, self._shift, self._lead
        gained = 0
        for prefix in prefixes:
            shard = shards[hash(prefix[:lead]) >> shift]
            if shard.stale or shard.failed or (shard.changed and prefix in shard.changed):
                if shard.desired.get(prefix) is not target or shard.stale:
                    self._set(shard, prefix, target)
                continue
            desired = shard.desired
            size = len(desired)
            old = desired.setdefault(prefix, target)
            if len(desired) > size:  # what _set would do, for by far the most
                new = shard.fresh.get(target)
                if new is None:
                    new = shard.fresh[target] = []
                new.append(prefix)
                gained += 1
            elif old is not target:
                self._set(shard, prefix, target)
        target.refs += gained
        target.wanted += gained

    def _update_run(self, run: Run, target: Target | None) -> bool:
        """Do what ``_update`` does where the kernel holds what is desired of all of a run, and all of it changes."""
        shard = self.shard(run[0])
        if shard.failed or shard.stale or self.watchers:
            return False
        if shard.changed and not shard.changed.keys().isdisjoint(run):
            return False
        desired = shard.desired
        if target is not None and self._gain(shard, run, target):
            return True
        dirty = shard.dirty
        if not dirty.keys().isdisjoint(run):
            return False
        olds = list(map(desired.get, run))
        if None in olds or target in olds:
            return False
        dirty.update(zip(run, olds, strict=True))  # the references move along
        if target is not None:
            desired.update(dict.fromkeys(run, target))
            target.refs += len(run)
            target.wanted += len(run)
        else:
            for prefix in run:
                del desired[prefix]
            shard.going += len(run)
        for old, count in Counter(olds).items():
            assert old is not None
            self._less_wanted(old, count)
        return True

    @staticmethod
    def _gain(shard: Shard, run: Run, target: Target) -> bool:
        """Take in a run that is all new; False if one is not, and then nothing has changed."""
        desired = shard.desired
        size = len(desired)
        for prefix in run:
            desired.setdefault(prefix, target)
            size += 1
            if len(desired) < size:
                for other in run:
                    if other == prefix:
                        break
                    del desired[other]
                return False
        new = shard.fresh.get(target)
        if new is None:
            shard.fresh[target] = list(run)
        else:
            new += run
        target.refs += len(run)
        target.wanted += len(run)
        return True

    def set(self, prefix: bytes, target: Target | None) -> None:
        self._set(self.shard(prefix), prefix, target)
        self._note((prefix,))

    def _note(self, few: Iterable[bytes]) -> None:
        if len(self.ahead) < _MOST_AHEAD:
            self.ahead.update(dict.fromkeys(few))

    def _set(self, shard: Shard, prefix: bytes, target: Target | None) -> None:
        desired, dirty = shard.desired, shard.dirty
        old = desired.get(prefix)
        if target is not None:
            target.refs += 1
            target.wanted += 1
            desired[prefix] = target
        elif old is not None:
            del desired[prefix]
        if prefix in dirty:
            shard.going += (target is None) - (old is None)
            if old is not None:
                self._unref(old)
        elif prefix in shard.failed:
            dirty[prefix] = shard.failed.pop(prefix).held  # the reference moves along
            shard.going += target is None
            if old is not None:
                self._unref(old)
        elif old is None and prefix in shard.stale:
            dirty[prefix] = shard.stale.pop(prefix)
            shard.going += target is None
        elif old is not target:
            dirty[prefix] = old  # as does that of the desired route, which the kernel holds
            shard.going += target is None
        elif old is not None:
            self._unref(old)
        if old is not None:
            self._less_wanted(old, 1)

    def observe(self, prefix: bytes, held: Target | None) -> None:
        """Learn what the kernel holds in truth; it will be set right."""
        shard = self.shard(prefix)
        if held is None or shard.on_its_way(prefix):
            held = self._unsure  # before or after what is, or was, on its way? The next request will tell
        held.refs += 1
        before: Target | None = None
        if prefix in shard.dirty:
            before = shard.dirty[prefix]
        elif prefix in shard.failed:
            before = shard.failed.pop(prefix).held
        elif prefix in shard.stale:
            before = shard.stale.pop(prefix)
        if prefix not in shard.dirty and prefix not in shard.desired:
            shard.going += 1
        shard.dirty[prefix] = held
        if before is not None:
            self._unref(before)

    def leave_stale(self, prefix: bytes, held: Target) -> None:
        """Note a route that an earlier run left."""
        held.refs += 1
        self.shard(prefix).stale[prefix] = held

    def sweep(self, unwanted: Callable[[Target], bool]) -> int:
        """Have stale routes deleted, and return how many; ``unwanted`` is asked once for each target."""
        count = 0
        held_here = {held for shard in self.shards for held in shard.stale.values()}
        going = {held for held in held_here if unwanted(held)}
        for shard in self.shards if going else ():
            for prefix in [p for p, held in shard.stale.items() if held in going]:
                shard.dirty[prefix] = shard.stale.pop(prefix)
                shard.going += 1
                count += 1
        return count

    def follow(self, shard: Shard, successor: Callable[[Target], Target]) -> int:
        """Move a shard's prefixes off targets that are no longer current, and return how many."""
        moving = [(prefix, target) for prefix, target in shard.desired.items() if not target.current]
        for prefix, target in moving:
            self._set(shard, prefix, successor(target))
        return len(moving)

    def condemned(self, target: Target) -> int:
        """Return how many routes the kernel holds this way that are to be deleted, or will be changed before that."""
        count = 0
        for shard in self.shards:
            here = list(shard.changed.values()).count(target)
            if here and shard.going < len(shard.changed):
                here = sum(held is target and prefix not in shard.desired for prefix, held in shard.changed.items())
            count += here + sum(list(f.changed.values()).count(target) for f in shard.flights if not f.ahead)
        return count

    @property
    def size(self) -> int:
        """How many prefixes are desired."""
        return sum(len(shard.desired) for shard in self.shards)

    def take(self, batch: Batch, limit: int, *, hold: bool = False) -> None:
        """Fill a batch up to about ``limit`` requests, from shards in turn that have nothing on its way.

        It may be fewer where there is much that needs no request: looking at that is work too. Every other time those
        come first in which something is to be more than deleted: deletions may be very many. With ``hold`` the others
        wait.
        """
        self._news = not self._news
        looked = 0
        for deletions in (False,) if hold else (False, True) if self._news else (True,):
            for _ in range(len(self.shards)):
                if batch.size >= limit or looked >= _LOOK * limit:
                    return
                shard = self.shards[self._next]
                self._next = (self._next + 1) % len(self.shards)
                waiting = shard.waiting
                if waiting and not shard.flights and (deletions or shard.has_news):
                    looked += waiting
                    self._take(shard, batch)

    def _take(self, shard: Shard, batch: Batch) -> None:
        fresh = self._fresh(shard) if shard.fresh else {}
        changed, all_going = shard.changed, len(shard.changed) == shard.going
        shard.changed, shard.going = {}, 0
        flight = Flight(shard, changed, fresh)
        there = {held is not None and not held.absent for held in set(changed.values())} if all_going else {True, False}
        if len(there) > 1:
            self._send(batch, flight)
            return
        if changed or fresh:
            self._depart(batch, flight)
            batch.add(Part(flight, None, self._delete, list(changed) if True in there else []))
        for want, prefixes in fresh.items():
            batch.add(Part(flight, want, want.shape(self.place, ADD), prefixes))

    @staticmethod
    def _fresh(shard: Shard) -> Fresh:
        """Take the new prefixes that lead to where the kernel knows; those that lead nowhere become like others."""
        fresh = shard.fresh
        taken = {target: prefixes for target, prefixes in fresh.items() if target.ready and not target.absent}
        shard.fresh = {target: prefixes for target, prefixes in fresh.items() if not target.ready}
        if len(taken) + len(shard.fresh) < len(fresh):
            spread({t: prefixes for t, prefixes in fresh.items() if t.ready and t.absent}, shard.changed)
        return taken

    def take_ahead(self, batch: Batch) -> None:
        """Fill a batch with what was told a few at a time, also of shards that have something else on its way."""
        ahead, self.ahead = self.ahead, {}
        changes: dict[Shard, dict[bytes, Target | None]] = {}
        for prefix in ahead:
            shard = self.shard(prefix)
            if shard.on_its_way(prefix):
                self.ahead[prefix] = None
            elif prefix in shard.dirty:
                changes.setdefault(shard, {})[prefix] = shard.dirty.pop(prefix)
                shard.going -= prefix not in shard.desired
        for shard, some in changes.items():
            self._send(batch, Flight(shard, some, ahead=True))
            self.ahead.update((prefix, None) for prefix in ahead if prefix in shard.dirty)

    def _send(self, batch: Batch, flight: Flight) -> None:
        """Add a flight to a batch, without what has to wait for its next hops."""
        shard, changed = flight.shard, flight.changed
        added, replaced, deleted, waiting = self._sorted(shard, changed)
        for prefix in waiting:
            shard.changed[prefix] = changed.pop(prefix)
        if not changed and not flight.fresh:
            return
        self._depart(batch, flight)
        batch.add(Part(flight, None, self._delete, deleted))
        for flags, wanted in ((REPLACE, replaced), (ADD, flight.fresh), (ADD, added)):
            for want, prefixes in wanted.items():
                batch.add(Part(flight, want, want.shape(self.place, flags), prefixes))

    def _sorted(
        self, shard: Shard, dirty: Mapping[bytes, Target | None]
    ) -> tuple[dict[Target, list[bytes]], dict[Target, list[bytes]], list[bytes], list[bytes]]:
        """Return what is to be added, replaced, deleted, and what has to wait for its next hops."""
        desired, unsure = shard.desired, self._unsure
        added: dict[Target, list[bytes]] = {}
        replaced: dict[Target, list[bytes]] = {}
        deleted: list[bytes] = []
        waiting: list[bytes] = []
        last: Target | None = None
        alike: list[bytes] = []
        for prefix, held in dirty.items():
            want = desired.get(prefix)
            if want is last and want is not None and (held is None or held is unsure):  # one more like the last one
                alike.append(prefix)
                continue
            if held is not None and held.absent:
                held = None
            if want is not None:
                if not want.ready:
                    waiting.append(prefix)
                    continue
                if want.absent:
                    self._report(shard, prefix, State.UNRESOLVED, want.errno, want.text or _NOWHERE)
                    want = None
            if want is held:
                continue
            if want is None:
                deleted.append(prefix)
            elif held is None or held is unsure:
                last, alike = want, added.setdefault(want, [])
                alike.append(prefix)
            else:
                replaced.setdefault(want, []).append(prefix)
        return added, replaced, deleted, waiting

    def _depart(self, batch: Batch, flight: Flight) -> None:
        flight.shard.flights.append(flight)
        batch.flights.append(flight)

    def settle(self, flight: Flight) -> None:
        """Close a flight, after the refused ones of it were told with ``refused``."""
        shard = flight.shard
        shard.flights.remove(flight)
        if shard.attempts or shard.complained:
            self._recovered(shard, flight.changes)
        for held, count in Counter(flight.changed.values()).items() if flight.changed else ():
            if held is not None:
                held.refs -= count
                if not held.refs:
                    self._on_released(held)

    def _recovered(self, shard: Shard, done: dict[bytes, Target | None]) -> None:
        """Forget what was the matter with prefixes that are done."""
        for prefix in [p for p in shard.attempts if p in done and p not in shard.dirty]:
            del shard.attempts[prefix]
        for prefix in [p for p in shard.complained if p in done]:
            if prefix not in shard.dirty and prefix not in shard.failed:
                target = shard.desired.get(prefix)
                if target is None:
                    del shard.complained[prefix]
                elif not target.absent:
                    del shard.complained[prefix]
                    self._on_result(self._result(prefix, State.INSTALLED, 0, ""))

    def refused(self, shard: Shard, prefix: bytes, want: Target | None, failure: Failure) -> None:
        """Learn that the kernel refused one request of the batch that is being settled.

        ``failure.held`` is what the kernel holds now. With state PENDING it is tried again, a limited number of times.
        """
        held, state, number, text = failure
        if state is State.PENDING:
            shard.attempts[prefix] = shard.attempts.get(prefix, 0) + 1
            if shard.attempts[prefix] >= _ATTEMPTS:
                state = State.FAILED
        if shard.dirty.get(prefix) is self._unsure:
            return
        if held is not None:
            held.refs += 1
        if prefix in shard.dirty:  # changed meanwhile, on the assumption that this one would succeed
            before, shard.dirty[prefix] = shard.dirty[prefix], held
            if before is not None:
                self._unref(before)
        elif state is State.PENDING:
            shard.dirty[prefix] = held
            shard.going += prefix not in shard.desired
        elif want is not None:
            shard.failed[prefix] = Failure(held, state, number, text)
            self._report(shard, prefix, state, number, text)
        elif held is not None:  # a deletion that cannot be: the next comparison finds the route again
            self._report(shard, prefix, state, number, text)
            self._unref(held)
            for flight in shard.flights:  # this one does not settle it: what was told stays told
                if flight.changes.pop(prefix, None) is not None:
                    self._unref(held)

    def retry(self, wanted: Callable[[Failure], bool]) -> int:
        """Try failed routes again, and return how many."""
        count = 0
        for shard in self.shards:
            for prefix in [p for p, failure in shard.failed.items() if wanted(failure)]:
                shard.dirty[prefix] = shard.failed.pop(prefix).held
                count += 1
        return count

    def status(self, prefix: bytes) -> RouteStatus | None:
        """Return what is known of one prefix, None if it is neither desired nor left over."""
        shard = self.shard(prefix)
        want = shard.desired.get(prefix)
        metric = self.place.metric
        if prefix in shard.failed:
            held, state, number, text = shard.failed[prefix]
            return RouteStatus(prefix, metric, want, held, state, number, text)
        if prefix in shard.stale:
            return RouteStatus(prefix, metric, None, shard.stale[prefix], State.STALE, 0, "left by an earlier run")
        if prefix in shard.dirty:
            return RouteStatus(prefix, metric, want, shard.dirty[prefix], State.PENDING, 0, "")
        for flight in shard.flights:
            if prefix in flight.changes:
                return RouteStatus(prefix, metric, want, flight.changes[prefix], State.PENDING, 0, "")
        if want is None:
            return None
        if want.absent:
            return RouteStatus(prefix, metric, want, None, State.UNRESOLVED, want.errno, want.text or _NOWHERE)
        return RouteStatus(prefix, metric, want, want, State.INSTALLED, 0, "")

    def statuses(self) -> Iterator[RouteStatus]:
        """Yield every prefix; the table may change between two steps."""
        for shard in self.shards:
            for prefix in [*shard.desired, *shard.stale]:
                found = self.status(prefix)
                if found is not None:
                    yield found

    def counts(self) -> Iterator[Counter[State]]:
        """Yield how many prefixes are in which state, a shard at a time; the table may change between two steps."""
        for shard in self.shards:
            found: Counter[State] = Counter()
            for target, count in Counter(shard.desired.values()).items():
                found[State.UNRESOLVED if target.absent else State.INSTALLED] += count
            for prefix in {*shard.failed, *shard.stale, *shard.dirty}.union(*(f.changes for f in shard.flights)):
                status, want = self.status(prefix), shard.desired.get(prefix)
                if want is not None:
                    found[State.UNRESOLVED if want.absent else State.INSTALLED] -= 1
                if status is not None and (want is not None or prefix in shard.stale):
                    found[status.state] += 1
            yield found

    def leftovers(self) -> list[bytes]:
        """Return the prefixes that an earlier run left and nobody has confirmed yet."""
        return [prefix for shard in self.shards for prefix in shard.stale]

    @property
    def has_stale(self) -> bool:
        return any(shard.stale for shard in self.shards)

    @property
    def idle(self) -> bool:
        return not any(shard.changed or shard.fresh or shard.flights for shard in self.shards)

    def backlog(self) -> int:
        """Return how many changes the kernel has not been told of, or not answered to."""
        count = 0
        for shard in self.shards:
            count += shard.waiting
            for flight in shard.flights:
                count += len(flight)
        return count

    def pressing(self) -> int:
        """Return how many they are without deletions that have not been taken.

        These take no memory that the routes did not take before, and the more of them wait the less the kernel has to
        do: it deletes neighbours one after the other at several times the cost of routes from all over the table.
        """
        return self.backlog() - self.going

    @property
    def going(self) -> int:
        """How many deletions have not been taken."""
        return sum(shard.going for shard in self.shards)

    def _report(self, shard: Shard, prefix: bytes, state: State, number: int, text: str) -> None:
        if shard.complained.get(prefix) != (state, number):
            shard.complained[prefix] = state, number
            self._on_result(self._result(prefix, state, number, text))

    def _result(self, prefix: bytes, state: State, number: int, text: str) -> Result:
        return Result(self.place.table, self.place.family, prefix, state, number, text)

    def _less_wanted(self, target: Target, count: int) -> None:
        target.wanted -= count
        if not target.wanted:
            self._on_unwanted(target)

    def _unref(self, target: Target) -> None:
        target.refs -= 1
        if not target.refs:
            self._on_released(target)
