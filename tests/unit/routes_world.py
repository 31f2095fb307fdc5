"""An installer and its reconciler in a world of peers, links and a kernel, where everything comes about step by step.

What is asked of the kernel waits in the writers' queues until ``work``, the answers until ``answer``, and what the
kernel has to tell until ``hear``, so that anything can happen between any two of them.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections import deque
from collections.abc import Sequence
from pathlib import Path as File
from random import Random
from typing import Any

from config.nexthop import NextHops
from routes import guard, netlink
from routes.encode import ADD, new_nexthop, numbered
from routes.installer import Installer
from routes.messages import (
    RTN_UNICAST,
    Event,
    Link,
    LinkEvent,
    Nexthop,
    NexthopEvent,
    Path,
    Resilience,
    Route,
    RouteEvent,
    decode_nexthop,
)
from routes.monitor import Monitor
from routes.others import Others
from routes.reconciler import Reconciler
from routes.target import Target
from routes.writer import Job, NexthopJob, RouteJob, Writer
from tests.unit.test_routes_nexthops import FIRST_ID, A, B, C, Objects, prepared

HOPS = {hop.peer: hop for hop in (A, B, C)}
PREFIXES = [bytes([24, 10, 0, number]) for number in range(12)]
METRIC = 20
_SOMEBODY = 99
"""Netlink port of another program."""
_OTHERS, _OTHERS_LINK = 11, 50
"""Protocol of its objects, and their interface."""
_IDLE_TURNS = 40
"""In so many turns of the loop the installer has followed what there was to follow."""


class Kernel(Objects):
    """Objects, the routes that go with them, and what it tells: not what a link takes along."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: dict[bytes, int | tuple[Path, ...]] = {}
        self.events: deque[Event] = deque()
        self.strangers: dict[int, Nexthop] = {}
        """Another program's objects, which nobody else may touch."""

    @property
    def ours(self) -> list[int]:
        return sorted(self.there.keys() - self.strangers.keys())

    def add_stranger(self, identifier: int) -> None:
        """Another program makes an object, or takes one over that is no group."""
        made = Nexthop(identifier, _OTHERS, bytes((10, 9, 9, 9)), _OTHERS_LINK, ())
        self.there[identifier] = self.strangers[identifier] = made
        self.events.append(NexthopEvent(made, False, _SOMEBODY))

    def remove_stranger(self, identifier: int) -> None:
        del self.strangers[identifier]
        self.delete(identifier, by_somebody=True)

    def delete(self, identifier: int, *, by_somebody: bool = False) -> bool:
        before = dict(self.there)
        if not super().delete(identifier):
            return False
        self.routes = {p: way for p, way in self.routes.items() if not isinstance(way, int) or way in self.there}
        if by_somebody:
            for former in (before.pop(identifier), *before.values()):
                now = self.there.get(former.id)
                if now is not former:
                    self.events.append(NexthopEvent(now or former, now is None, _SOMEBODY))
        return True

    def lose_link(self, ifindex: int) -> None:
        for identifier in [i for i, nexthop in self.there.items() if nexthop.ifindex == ifindex]:
            self.delete(identifier)
        for prefix, way in list(self.routes.items()):
            if not isinstance(way, int):
                left = tuple(path for path in way if path.ifindex != ifindex)
                self.routes[prefix] = left
                if not left:
                    del self.routes[prefix]

    def route(self, prefix: bytes) -> Route:
        way = self.routes[prefix]
        group, paths = (way, ()) if isinstance(way, int) else (0, way)
        return Route(4, 254, 201, RTN_UNICAST, prefix, METRIC, group, paths)

    def write(self, prefix: bytes, want: Target | None, flags: int) -> int:
        if want is None:
            return 0 if self.routes.pop(prefix, None) is not None else errno.ESRCH
        if want.id and want.id not in self.there:
            return errno.EINVAL
        if any(path.gateway in self.bad for path in want.hops):
            return errno.ENETUNREACH
        if flags == ADD and prefix in self.routes:
            return errno.EEXIST
        self.routes[prefix] = want.id or want.hops
        return 0

    def gateways(self, prefix: bytes) -> set[bytes]:
        way = self.routes.get(prefix, ())
        if isinstance(way, int):
            return {self.there[member].gateway for member, _ in self.there[way].members}
        return {path.gateway for path in way}


class Queue(Writer):
    """Jobs that wait for the test."""

    def __init__(self) -> None:
        self.port = 0
        self.jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self.jobs.append(job)


class Netlink(socket.socket):
    """A socket to the kernel of this world, for next-hop objects."""

    @classmethod
    def to(cls, kernel: Kernel) -> Netlink:
        made = cls.__new__(cls)
        made._kernel, made._answers = kernel, deque()
        return made

    def send(self, data: Any, flags: int = 0) -> int:
        for message in netlink.messages(data):
            answer = self._answer(message, data[message.start - 16 : message.end])
            if answer:
                self._answers.append(numbered([*[b""] * message.sequence, answer]))
        return len(data)

    def recv(self, *_: int) -> bytes:
        if self._answers:
            return self._answers.popleft()
        raise BlockingIOError

    def _answer(self, message: netlink.Message, request: bytes) -> bytes:
        if message.kind != netlink.RTM_GETNEXTHOP:
            number = self._kernel.one(request)
            return netlink.message(netlink.NLMSG_ERROR, 0, struct.pack("=i", -number)) if number else b""
        (asked,) = netlink.messages(request)
        found = self._kernel.there.get(decode_nexthop(request, asked).id)
        if found is None:
            return netlink.message(netlink.NLMSG_ERROR, 0, struct.pack("=i", -errno.ENOENT))
        return new_nexthop(found.id, found.protocol, found.gateway or b"none", found.ifindex)

    _kernel: Kernel
    _answers: deque[bytes]


class World:
    """Steps are methods; which peer, prefix or object they are about is up to ``random``."""

    def __init__(self, seed: int, *, objects: bool, resilience: Resilience | None) -> None:
        self.random = Random(seed)
        self.registry, self.resolver, _ = prepared(objects=objects, resilience=resilience)
        self.kernel = Kernel()
        self.doubted = False
        self.failures: list[object] = []
        """What was raised in the loop's callbacks."""
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.failures.append(context))
        self.installer = Installer(
            self.registry,
            table=254,
            protocol=201,
            state_file=File("unused"),
            on_results=lambda _: None,
            on_unverified=self._doubt,
            on_room=lambda: None,
        )
        self._netlink = self.installer._instant = Netlink.to(self.kernel)
        self.queues = Queue(), Queue()
        self.installer._writer, self.installer._urgent = self.queues
        self.table = self.installer.table(4, METRIC)
        self.reconciler = Reconciler(
            self.installer,
            socket.socket.__new__(socket.socket),  # neither this nor the next is used
            table=254,
            protocol=201,
            interval=1e9,
            others=Others(Monitor()),
            on_link=self._link_heard,
        )
        self.reconciler._up = {hop.address[2] + 1: True for hop in HOPS.values()}
        self.announced: dict[str, set[bytes]] = {peer: set() for peer in HOPS}
        self._undecided: deque[bytes] = deque()
        self._answers: deque[Job] = deque()
        self._down: set[bytes] = set()
        self._unresolved: set[bytes] = set()

    def announce(self, peer: str, prefixes: Sequence[bytes] | None = None) -> None:
        changed = set(prefixes or self._some()) - self.announced[peer]
        self.announced[peer] |= changed
        self._undecided += sorted(changed)

    def withdraw(self, peer: str) -> None:
        changed = self.announced[peer].intersection(self._some())
        self.announced[peer] -= changed
        self._undecided += sorted(changed)

    def lose(self, peer: str) -> None:
        quick, slow = self.registry.peer_lost(peer)
        self.installer.at_once(quick)
        self.installer.urgent(slow)
        self.installer.schedule()
        self._undecided += sorted(self.announced[peer])
        self.announced[peer].clear()

    def back(self, peer: str) -> None:
        self._decide(len(self._undecided))
        self.registry.peer_back(peer)
        self.installer.schedule()

    def decide(self, _: str) -> None:
        self._decide(self.random.choice((1, 3, 99)))

    def resolve(self, peer: str) -> None:
        self._unresolved ^= {HOPS[peer].address}
        self._look_again()

    def silence(self, peer: str) -> None:
        """A gateway falls silent, or answers again."""
        self.resolver.silent ^= {HOPS[peer].address}
        self._look_again()

    def link(self, peer: str) -> None:
        """The link to a peer goes or returns."""
        address = HOPS[peer].address
        ifindex, up = address[2] + 1, address in self.kernel.bad
        self.kernel.bad ^= {address}
        if not up:
            self.kernel.lose_link(ifindex)
        self.kernel.events.append(LinkEvent(Link(ifindex, f"up{address[2]}", 0x41 if up else 0x1), False))

    def meddle(self, _: str) -> None:
        """Somebody deletes an object, a group or a route, or changes a group."""
        kernel, choose = self.kernel, self.random
        ours = kernel.ours
        groups = [kernel.there[i] for i in ours if kernel.there[i].members]
        if groups and choose.random() < 0.3:
            group = choose.choice(groups)
            other = choose.choice([i for i, nexthop in kernel.there.items() if not nexthop.members])
            changed: Nexthop = group._replace(members=((other, 1),))
            kernel.there[group.id] = changed
            kernel.events.append(NexthopEvent(changed, False, _SOMEBODY))
        elif ours and choose.random() < 0.6:
            kernel.delete(choose.choice(ours), by_somebody=True)
        elif kernel.routes:
            prefix = choose.choice(sorted(kernel.routes))
            kernel.events.append(RouteEvent(kernel.route(prefix), True, False, _SOMEBODY))
            del kernel.routes[prefix]

    def kind(self, _: str) -> None:
        """The configuration asks for groups of another kind."""
        self.registry.set_resilience(
            self.random.choice((None, Resilience(64, 100, 0), Resilience(64, 200, 0), Resilience(128, 100, 0)))
        )
        self.installer.schedule()

    def scarcity(self, _: str) -> None:
        """The kernel runs out of memory for a while, or has some again."""
        self.kernel.scarce = self.random.choice((0, 1, 2, 5))

    def stranger(self, _: str) -> None:
        """Another program takes an id that we have, had, or are about to have, or parts from one."""
        kernel, choose = self.kernel, self.random
        if kernel.strangers and choose.random() < 0.3:
            kernel.remove_stranger(choose.choice(sorted(kernel.strangers)))
            return
        singles = [i for i in kernel.ours if not kernel.there[i].members]
        if singles and choose.random() < 0.4:
            kernel.add_stranger(choose.choice(singles))
            return
        coming = self.registry.ids.take()
        self.registry.ids.free(coming)
        free = [i for i in range(max(FIRST_ID, coming - 9), coming + 3) if i not in kernel.there]
        kernel.add_stranger(choose.choice(free))

    async def turn(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    def work(self, _: str) -> None:
        """The kernel does what one of the writers has for it."""
        queues = [queue for queue in self.queues if queue.jobs]
        if queues:
            job = self.random.choice(queues).jobs.popleft()
            if isinstance(job, NexthopJob):
                job.refused = guard.send(self._netlink, job._requests, job._protocol)[0]
            elif isinstance(job, RouteJob):
                self._write(job)
            self._answers.append(job)

    def answer(self, _: str) -> None:
        if self._answers:
            job = self._answers.popleft()
            job.done(job)

    def hear(self, _: str) -> None:
        if self.kernel.events:
            self.reconciler.event(self.kernel.events.popleft())

    def compare(self, _: str) -> None:
        """What a comparison does that the kernel's answers have called for, while nothing is under way."""
        if self.doubted and not self._answers and not any(queue.jobs for queue in self.queues):
            self.doubted = False
            self.reconciler._compare_objects(list(self.kernel.there.values()), "a comparison")
            self.registry.compared()
            self.installer.refresh()
            self.table.retry(lambda _: True)

    async def rest(self, *, periodic: bool = False) -> None:
        """Let everything be well, and come to its end; ``periodic``: then there is the periodic comparison, too."""
        self.kernel.scarce = 0
        await self._end()
        if periodic:
            self.doubted = True
            self._compare_routes()
            await self._end()

    async def _end(self) -> None:
        for peer in sorted(HOPS):
            self.back(peer)
            if HOPS[peer].address in self.kernel.bad:
                self.link(peer)
        self._unresolved.clear()
        self.resolver.silent.clear()
        self._look_again()
        idle = 0
        while idle < _IDLE_TURNS:
            await asyncio.sleep(0)
            idle += 1
            while self._answers or self.kernel.events or any(queue.jobs for queue in self.queues):
                idle = 0
                for step in (self.work, self.answer, self.hear):
                    step("")
            self.compare("")

    def _decide(self, count: int) -> None:
        for _ in range(min(count, len(self._undecided))):
            prefix = self._undecided.popleft()
            hops: NextHops = tuple(hop for peer, hop in HOPS.items() if prefix in self.announced[peer])
            self.table.update([([prefix], hops or None)], self.registry.target)
            self.installer.schedule()

    def _some(self) -> list[bytes]:
        return self.random.sample(PREFIXES, self.random.choice((1, 2, 12)))

    def _compare_routes(self) -> None:
        for prefix in PREFIXES:
            shard = self.table.shard(prefix)
            want = shard.desired.get(prefix)
            if shard.unsettled(prefix):
                continue
            if prefix not in self.kernel.routes:
                if want is not None and not want.absent and want.ready:
                    self.installer.repair(self.table, prefix, None, "a comparison")
            elif want is None or not want.matches(self.kernel.route(prefix)):
                self.installer.repair(self.table, prefix, self.installer.other, "a comparison")

    def _doubt(self, _: str) -> None:
        self.doubted = True

    def _link_heard(self, event: LinkEvent) -> None:
        address = bytes([10, 0, event.link.ifindex - 1, 2])
        (self._down.discard if event.link.up else self._down.add)(address)
        self.resolver.lost = self._down | self._unresolved

    def _look_again(self) -> None:
        self.resolver.lost = self._down | self._unresolved
        self.reconciler.refresh()

    def _write(self, job: RouteJob) -> None:
        place = 0
        for part in job.batch.parts:
            flags = int.from_bytes(part.shape[6:8], "little") & ~1
            for prefix in part.prefixes:
                number = self.kernel.write(prefix, part.want, flags)
                if number:
                    job.refused[place] = number, f"errno {number}"
                if number == errno.EEXIST:
                    job.found[place] = self.kernel.route(prefix)
                place += 1
