"""The thread that talks to the kernel: bulk sends without acknowledgements, refusals mapped back by sequence number.

send() runs the requests in the kernel before it returns, without the GIL, so refusals are in the socket's buffer by
then and reading them never waits. Where that buffer overflowed (ENOBUFS) the job is marked unverified, and its owner
compares.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress

from routes import bulk, guard, netlink
from routes.batch import Batch
from routes.dumps import read_routes
from routes.encode import Placement
from routes.messages import Route, decode_route, match_request

log = logging.getLogger("podroute.routes")

_SINGLY = 4096
"""Up to so many routes in the way are asked for one by one, more are looked for in a dump."""


class Job(ABC):
    """``refused`` maps the place of a request to what the kernel said. ``done`` is called in the loop's thread."""

    def __init__(self, done: Callable[[Job], None]) -> None:
        self.done = done
        self.refused: dict[int, tuple[int, str]] = {}
        self.verified = True

    @abstractmethod
    def run(self, sock: socket.socket) -> None:
        """Send the requests and note what the kernel refuses. Runs in the writer's thread."""


class NexthopJob(Job):
    """Requests for next-hop objects, after the state file that tells whose they are."""

    def __init__(
        self,
        done: Callable[[Job], None],
        requests: Sequence[bytes],
        protocol: int,
        save: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(done)
        self._requests = requests
        self._protocol = protocol
        self._save = save

    def run(self, sock: socket.socket) -> None:
        if self._save is not None:
            try:
                self._save()
            except OSError as error:
                log.error("cannot write the state file: %s", error)
        self.refused, whole = guard.send(sock, self._requests, self._protocol)
        self.verified &= whole


class RouteJob(Job):
    """A batch of routes of one table. ``found`` maps places refused with EEXIST to what is there."""

    def __init__(self, done: Callable[[Job], None], batch: Batch, place: Placement) -> None:
        super().__init__(done)
        self.batch = batch
        self.found: dict[int, Route | None] = {}
        self.place = place

    def run(self, sock: socket.socket) -> None:
        for start, buffers in self.batch.sends():
            bulk.send(sock, buffers)
            refusals, whole = netlink.receive_refusals(sock)
            self.refused.update((start + one.sequence, (one.errno, one.words)) for one in refusals)
            self.verified &= whole
        taken = [place for place, (number, _) in self.refused.items() if number == errno.EEXIST]
        if taken:
            self._look(sock, taken)

    def _look(self, sock: socket.socket, taken: list[int]) -> None:
        """See what is in the way of these places."""
        prefixes = {place: self.batch.at(place)[1] for place in taken}
        missed = taken if len(taken) > _SINGLY else []
        for place in taken if not missed else []:
            answer = netlink.ask(sock, netlink.RTM_GETROUTE, match_request(self.place.family, prefixes[place]))
            route = decode_route(*answer) if answer is not None else None
            if route is not None and self._same(route, prefixes[place]):
                self.found[place] = route
            else:  # a more specific route covers its first address, or rules lead to other tables
                missed.append(place)
        if missed:
            wanted = {prefixes[place] for place in missed}
            there: dict[bytes, Route] = {}
            with suppress(netlink.DumpInterruptedError):  # what was missed is tried again
                for route in read_routes(sock, self.place.family, self.place.table):
                    if route.prefix in wanted and self._same(route, route.prefix):
                        there.setdefault(route.prefix, route)
            self.found.update((place, there.get(prefixes[place])) for place in missed)

    def _same(self, route: Route, prefix: bytes) -> bool:
        return (route.table, route.prefix, route.metric) == (self.place.table, prefix, self.place.metric)


class Writer:
    """Runs jobs in order. Its socket opens, in the caller's namespace, with the object."""

    def __init__(self, deliver: Callable[[Job], None], *, name: str, receive_buffer: int = 16 << 20) -> None:
        self._sock = netlink.open_socket(receive_buffer=receive_buffer, send_buffer=4 << 20)
        self._deliver = deliver
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.port = netlink.port(self._sock)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def close(self) -> None:
        """Finish what was submitted, end the thread and close the socket. Blocks."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        self._sock.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.run(self._sock)
            except OSError as error:
                log.error("netlink: %s", os.strerror(error.errno) if error.errno else error)
                job.verified = False
            self._deliver(job)
