"""From desired tables to the kernel and back: batches to the writer thread, what it refused to the prefixes.

Everything here runs on the loop; only jobs run in the threads. A few batches are under way at a time, so that the
kernel has work while the loop settles the one before.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from config.prefix import Family, text
from routes import guard, netlink
from routes.batch import Batch
from routes.causes import ANSWERS_LOST, DENIED, GROUP_REFUSED
from routes.encode import Placement
from routes.groups import PASSING, Operation
from routes.heirs import moves
from routes.leftovers import save, snapshot
from routes.live import protocol_name
from routes.messages import Route
from routes.nexthops import Registry
from routes.shard import Flight
from routes.state import Failure, Result, State
from routes.table import Table
from routes.target import Kind, Target
from routes.writer import Job, NexthopJob, RouteJob, Writer

log = logging.getLogger("podroute.routes")

_BATCH, _DEPTH = 8192, 2
"""So many requests in a batch, and batches under way. Between two sends the thread waits for the interpreter while the
kernel has nothing to do, compiled code lets go of it late, so batches are large; what is urgent goes ahead of them. The
loop settles one and makes the next in less time than the kernel takes for the other."""
_SHARDS = 32
_FULL, _ROOM = 32_768, 24_576
"""So many changes wait, deletions apart, that the queue is full, or so few that there is room again; the kernel takes 3
to 10 us each."""
_SEARCHED = 50_000
"""So many waiting changes are looked through in some milliseconds."""
_SHORT = 512
"""So many changes are through in the time that it would take to send some ahead of them."""
_MANY = 4096
_SHARE = 16
"""So many routes that are all to be deleted go with their group, where they are at least one in ``_SHARE`` of what is
left: for a group the kernel looks at every route there is, and for a deletion at its neighbours, which takes longer."""
_BULK = 8192
_LULL, _HOLD = 0.05, 1.0
"""So many deletions wait as long as there are ever more of them (seconds without more, seconds in all): spread over the
table each takes the kernel a fraction of what it takes among its neighbours, and a group may lose all its routes."""
_GONE = (errno.ESRCH, errno.ENOENT)
_DENIED = (errno.EPERM, errno.EACCES)


def log_crash(task: asyncio.Task[None]) -> None:
    """Say what ended a background task that should not have ended."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("routes are no longer kept in order", exc_info=task.exception())


def _ignore(table: Table, flight: Flight) -> None:
    pass


class Installer:
    """``other`` stands for a route of ours in the kernel that leads elsewhere than desired."""

    def __init__(
        self,
        registry: Registry,
        *,
        table: int,
        protocol: int,
        state_file: Path,
        on_results: Callable[[list[Result]], None],
        on_unverified: Callable[[str], None],
        on_room: Callable[[], None],
    ) -> None:
        self.on_settled: Callable[[Table, Flight], None] = _ignore
        """Called with changes of which the kernel holds now what is desired, or has refused it."""
        self.registry = registry
        self.tables: dict[tuple[Family, int], Table] = {}
        self.counters: Counter[str] = Counter()
        self.other = Target(Kind.OTHER)
        self.nexthop_jobs = 0
        """Jobs for next-hop objects submitted so far."""
        self._table, self._protocol = table, protocol
        self._state_file = state_file
        self._on_results = on_results
        self._on_unverified = on_unverified
        self._on_room = on_room
        self._full = False
        self._results: list[Result] = []
        self._going = 0
        """How many deletions waited when it was last looked at."""
        self._hold_until = self._hold_at_most = 0.0
        self._hold_timer: asyncio.TimerHandle | None = None
        self._released: list[Target] = []
        self._unwanted: dict[Target, int] = {}
        """Targets to which nothing is to lead any more, each with how many may name it when it is looked at next."""
        self._repairing: dict[Table, dict[bytes, str]] = {}
        self._repaired: Counter[str] = Counter()
        self._scheduled = False
        self._route_jobs = 0
        self._ahead_jobs = 0
        self._nexthop_jobs = 0
        self._hurrying = False
        """Requests for next-hop objects are on their way past the writer: the next ones wait for them."""
        self._turn = 0
        self._move: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._nexthops_idle = asyncio.Event()
        self._nexthops_idle.set()
        self._doubt = False
        self._denied = False
        self._loop = asyncio.get_running_loop()
        self._writer: Writer | None = None
        self._urgent: Writer | None = None
        self._instant: socket.socket | None = None

    def open(self, *, receive_buffer: int) -> list[int]:
        """Open the writers' sockets in this thread's namespace and return their port ids."""
        self._writer = Writer(self._deliver, name="podroute-routes", receive_buffer=receive_buffer)
        self._urgent = Writer(self._deliver, name="podroute-urgent", receive_buffer=receive_buffer)
        self._instant = netlink.open_socket()
        return [self._writer.port, self._urgent.port, netlink.port(self._instant)]

    def start(self) -> None:
        assert self._writer is not None
        assert self._urgent is not None
        self._writer.start()
        self._urgent.start()
        self.schedule()

    async def close(self) -> None:
        """Finish what is under way; what is only desired stays undone."""
        if self._move is not None:
            self._move.cancel()
            await asyncio.wait([self._move])
        for writer in (self._urgent, self._writer):
            if writer is not None:
                await asyncio.to_thread(writer.close)
        self._urgent = self._writer = None
        if self._instant is not None:
            self._instant.close()
            self._instant = None

    def table(self, family: Family, metric: int) -> Table:
        """Return the desired table of a metric; the kernel knows no IPv6 route of metric 0."""
        metric = metric or (1024 if family == 6 else 0)
        found = self.tables.get((family, metric))
        if found is None:
            place = Placement(family, self._table, metric, self._protocol)
            found = Table(
                place,
                shards=_SHARDS,
                on_result=self._result,
                on_released=self._released.append,
                on_unwanted=self._not_wanted,
            )
            self.tables[family, metric] = found
        return found

    @property
    def idle(self) -> bool:
        return self._idle.is_set()

    @property
    def backlog(self) -> int:
        return sum(table.backlog() for table in self.tables.values())

    @property
    def _pressing(self) -> int:
        return sum(table.pressing() for table in self.tables.values())

    @property
    def full(self) -> bool:
        if not self._full and self._pressing > _FULL:
            self._full = True
            self.counters["full"] += 1
        return self._full

    async def drained(self) -> None:
        """Wait until the kernel has been told everything, and no answer of it is in doubt."""
        while not self._idle.is_set():
            await self._idle.wait()

    async def nexthops_settled(self) -> None:
        """Wait until no request for next-hop objects is under way."""
        await self._nexthops_idle.wait()

    def doubt(self, unverified: bool) -> None:
        """Until a comparison has shown what the kernel holds, nothing is drained."""
        self._doubt = unverified
        self.schedule()

    def schedule(self) -> None:
        """Have changes sent with the loop's next turn."""
        self._idle.clear()
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def hurry(self, table: Table) -> None:
        """Send at once what changed a few at a time, if it would have to wait for the many others."""
        if table.ahead and self._urgent is not None and (self._route_jobs or self.backlog > _SHORT):
            self._send_ahead(table)

    def urgent(self, requests: Sequence[bytes]) -> None:
        """Send past everything that waits, in a thread: the kernel may take its time over these."""
        if requests and self._urgent is not None:
            self._submit(self._urgent, NexthopJob(self._nexthops_done, requests, self._protocol))

    def at_once(self, requests: Sequence[bytes]) -> None:
        """Send before this returns. For what takes the kernel no longer than handing it to a thread would take us."""
        if requests and self._instant is not None:
            guard.send(self._instant, requests, self._protocol)  # they are also among the gathered requests

    def refresh(self) -> None:
        """Have next-hop groups follow what their next hops resolve to now.

        Traffic leaves lost ones past the routes that wait. Other requests for next-hop objects are not overtaken, and
        do not overtake: what the one makes the other may need.
        """
        if self.registry.refresh() and not self._nexthop_jobs and self._urgent is not None:
            self._hurrying = True
            self._send(self.registry.take(), self._urgent)
        self.schedule()

    def raw(self, requests: list[bytes]) -> None:
        """Send requests whose refusal is of no interest, in order with the others."""
        if requests and self._writer is not None:
            self._submit(self._writer, NexthopJob(self._nexthops_done, requests, self._protocol))

    def repair(self, table: Table, prefix: bytes, held: Target | None, cause: str) -> None:
        """The kernel holds something else than it should; ``cause`` is logged and counted once it is right again."""
        causes = self._repairing.get(table)
        if causes is None:
            causes = self._repairing[table] = {}
        causes[prefix] = cause
        table.observe(prefix, held)
        self.schedule()

    def _flush(self) -> None:
        self._scheduled = False
        if self._writer is None:
            return
        self._retire()
        released, self._released[:] = self._released[:], []
        self.registry.release(released)
        if self.registry.fresh and self.backlog < _SEARCHED:
            self.registry.realize(moves(self.tables.values(), self.registry.fresh))
        operations = self.registry.take() if not self._hurrying else []
        if operations:
            self._send(operations, self._writer)
        if self.registry.outdated and self._move is None:
            self._move = self._loop.create_task(self._follow())
            self._move.add_done_callback(log_crash)
        tables = list(self.tables.values())
        for table in tables:
            if table.ahead and self.backlog <= _SHORT:
                table.ahead.clear()
            elif table.ahead:
                self._send_ahead(table)
        hold = self._hold()
        idle_turns = 0
        while self._route_jobs < _DEPTH and idle_turns < len(tables):
            self._turn = (self._turn + 1) % len(tables)
            idle_turns = 0 if self._send_routes(tables[self._turn], hold) else idle_turns + 1
        if self._released:
            self.schedule()  # given up by changes that needed no request, after the registry was told
        if self._full and self._pressing < _ROOM:
            self._full = False
            self._on_room()
        self._tell()

    def _not_wanted(self, target: Target) -> None:
        if target.kind is Kind.LEARNED and self.registry.objects and target.refs >= _MANY:
            self._unwanted[target] = target.refs

    def _retire(self) -> None:
        """Delete the groups of which all routes are to be deleted, instead of route by route.

        What some of them are to be replaced with is sent before, and must not be overtaken.
        """
        for target, most in list(self._unwanted.items()) if not self._hurrying else ():
            tables = self.tables.values()
            if target.wanted or target.absent or target.refs * _SHARE < sum(table.size for table in tables):
                del self._unwanted[target]
            elif target.refs <= most:
                if sum(table.condemned(target) for table in tables) == target.refs:
                    self.registry.retire(target)
                    del self._unwanted[target]
                else:  # some are to lead elsewhere first
                    self._unwanted[target] = target.refs // 2

    def _hold(self) -> bool:
        """Tell whether deletions are to wait."""
        before, self._going = self._going, sum(table.going for table in self.tables.values())
        now = self._loop.time()
        if self._going < _BULK:
            self._hold_at_most = 0.0
            return False
        if self._going > before:
            self._hold_at_most = self._hold_at_most or now + _HOLD
            self._hold_until = min(now + _LULL, self._hold_at_most)
        if now >= self._hold_until:
            return False
        if self._hold_timer is None:
            self._hold_timer = self._loop.call_at(self._hold_until, self._hold_over)
        return True

    def _hold_over(self) -> None:
        self._hold_timer = None
        self.schedule()

    def _send(self, operations: list[Operation], writer: Writer) -> None:
        def done(job: Job) -> None:
            self.registry.completed(operations, job.refused)
            if self.registry.doubtful:
                self.registry.doubtful = False
                self._on_unverified(GROUP_REFUSED)
            self._nexthops_done(job)

        targets = snapshot(self.registry) if self.registry.changed else None
        self.registry.changed = False
        path = self._state_file
        keep = (lambda: save(path, targets)) if targets is not None else None
        # Without next-hop objects an operation has no request: it waits for the state file only.
        requests = [operation.request for operation in operations]
        self._submit(writer, NexthopJob(done, requests, self._protocol, keep))

    def _submit(self, writer: Writer, job: NexthopJob) -> None:
        self._nexthops_idle.clear()
        self._nexthop_jobs += 1
        self.nexthop_jobs += 1
        writer.submit(job)

    def _send_routes(self, table: Table, hold: bool) -> bool:
        assert self._writer is not None
        batch = Batch()
        table.take(batch, _BATCH, hold=hold)
        if not batch.flights:
            return False
        if not batch.size:
            self._settle(table, batch)
            self.schedule()
            return False
        self._route_jobs += 1
        self._writer.submit(RouteJob(self._routes_done, batch, table.place))
        return True

    def _send_ahead(self, table: Table) -> None:
        """Send what changed a few at a time past a queue, in the other thread; one batch of it at a time."""
        assert self._urgent is not None
        if self._ahead_jobs:
            return
        batch = Batch()
        table.take_ahead(batch)
        if batch.size:
            self._ahead_jobs += 1
            self._urgent.submit(RouteJob(self._ahead_done, batch, table.place))
        else:
            self._settle(table, batch)

    def _deliver(self, job: Job) -> None:
        """In a writer's thread."""
        self._loop.call_soon_threadsafe(job.done, job)

    def _permitted(self, job: Job) -> bool:
        """Tell whether we may change anything; say so once when we no longer may."""
        if not any(number in _DENIED for number, _ in job.refused.values()):
            return True
        if not self._denied:
            self._denied = True
            log.error("the kernel lets podroute change nothing: permission denied; it needs CAP_NET_ADMIN")
        return False

    def _nexthops_done(self, job: Job) -> None:
        self._permitted(job)
        self._nexthop_jobs -= 1
        if not self._nexthop_jobs:
            self._hurrying = False
            self._nexthops_idle.set()
        if not job.verified:
            self._on_unverified(ANSWERS_LOST)
        self.schedule()

    def _ahead_done(self, job: Job) -> None:
        self._ahead_jobs -= 1
        self._carried_out(job)

    def _routes_done(self, job: Job) -> None:
        self._route_jobs -= 1
        self._carried_out(job)

    def _carried_out(self, job: Job) -> None:
        assert isinstance(job, RouteJob)
        batch = job.batch
        table = self.tables[job.place.family, job.place.metric]
        for place in job.refused:
            self._refused(table, job, place)
        self._settle(table, batch)
        self.counters["requests"] += batch.size
        self.counters["refused"] += len(job.refused)
        for number, count in Counter(number for number, _ in job.refused.values()).items():
            self.counters[f"refused, {errno.errorcode.get(number, number)}"] += count
        if causes := self._repairing.get(table):
            self._count_repairs(job, causes)
        if not job.verified:
            self._on_unverified(ANSWERS_LOST)
        if self._permitted(job) and self._denied:
            self._denied = False
            self._on_unverified(DENIED)
        self.schedule()

    def _settle(self, table: Table, batch: Batch) -> None:
        for flight in batch.flights:
            table.settle(flight)
            self.on_settled(table, flight)

    def _refused(self, table: Table, job: RouteJob, place: int) -> None:
        number, words = job.refused[place]
        part, prefix = job.batch.at(place)
        flight = part.flight
        want: Target | None = part.want
        shard = flight.shard
        before = flight.changes[prefix]
        held = before if before is not None and not before.absent else None
        if want is None:
            if number not in _GONE:
                state = State.PENDING if number in PASSING else State.FAILED
                table.refused(shard, prefix, want, Failure(held, state, number, words))
        elif number == errno.EEXIST:
            self._in_the_way(table, flight, prefix, want, job.found.get(place))
        elif want.absent:
            # Its group went while this was on its way: a matter of the target, not of the prefix.
            if held is not None:
                table.refused(shard, prefix, want, Failure(held, State.PENDING, number, words))
        else:
            state = State.PENDING if number in PASSING else State.FAILED
            table.refused(shard, prefix, want, Failure(held, state, number, words))
            if number in (errno.EINVAL, errno.ENOENT) and want.id:
                self._on_unverified(GROUP_REFUSED)

    def _in_the_way(self, table: Table, flight: Flight, prefix: bytes, want: Target, route: Route | None) -> None:
        """An entry with this prefix and metric exists where we thought there was none."""
        shard = flight.shard
        if route is None:
            table.refused(shard, prefix, want, Failure(None, State.PENDING, errno.EEXIST, "in the way, and gone again"))
        elif route.protocol != self._protocol:
            words = f"a route of protocol {protocol_name(route.protocol)} with metric {route.metric} is in the way"
            table.refused(shard, prefix, want, Failure(None, State.CONFLICT, errno.EEXIST, words))
        elif not want.matches(route):
            table.refused(shard, prefix, want, Failure(self.other, State.PENDING, errno.EEXIST, "not as desired"))

    def _count_repairs(self, job: RouteJob, causes: dict[bytes, str]) -> None:
        """Count what has been repaired, unless it is to be done again."""
        place = -1
        for part in job.batch.parts:
            for prefix in part.prefixes:
                place += 1
                cause = causes.get(prefix)
                if cause is None:
                    continue
                if place not in job.refused:
                    self._repaired[cause] += 1
                if prefix not in part.flight.shard.dirty:
                    del causes[prefix]

    async def _follow(self) -> None:
        """Move prefixes off targets that are not current, a shard at a time."""
        try:
            while self.registry.outdated:
                self.registry.outdated = False
                for table in list(self.tables.values()):
                    for shard in table.shards:
                        if table.follow(shard, self.registry.successor):
                            self.schedule()
                        await asyncio.sleep(0)
            self.registry.moved()
        finally:
            self._move = None
        self.schedule()

    def report(self, result: Result) -> None:
        """Tell ``on_results`` of a state that others have brought about."""
        self._results.append(result)
        self.schedule()

    def _result(self, result: Result) -> None:
        self._results.append(result)

    def _tell(self) -> None:
        if self._results:
            results, self._results = self._results, []
            for result in results:
                self.counters[f"results {result.state}"] += 1
                if result.state is not State.INSTALLED:
                    fields = {
                        "prefix": text(result.family, result.prefix),
                        "state": result.state,
                        "reason": result.text,
                    }
                    log.debug("route not installed", extra={"fields": fields})
            self._on_results(results)
        busy = self._route_jobs or self._ahead_jobs or self._nexthop_jobs or self._scheduled or self._move is not None
        if busy or self._doubt or self._released or not all(table.idle for table in self.tables.values()):
            return
        self._repairing.clear()
        repaired, self._repaired = self._repaired + self.registry.repaired, Counter()
        self.registry.repaired.clear()
        for cause, count in repaired.items():
            self.counters[f"repaired, {cause}"] += count
            log.warning("repaired routes", extra={"fields": {"cause": cause, "routes": count}})
        self._idle.set()
