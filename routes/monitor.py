"""Events of the kernel on the asyncio loop: links, addresses, routes, next-hop objects, neighbours (rtnetlink(7)).

One monitor serves everybody in the process. What our own writers cause is dropped in the kernel, by a filter on the
port that a notification names, so that a bulk load costs no reading. Where the kernel had to drop events (ENOBUFS) the
subscribers are told to look at the whole again.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from config.kernel import ROUTE_PROTOCOL
from routes import netlink
from routes.interfaces import Interfaces
from routes.messages import AddressEvent, Event, LinkEvent, addresses_request, decode, links_request

log = logging.getLogger("podroute.routes")

_GROUPS = {"link": 1, "ipv4 address": 5, "ipv4 route": 7, "ipv6 address": 9, "ipv6 route": 11, "nexthop": 32}
_GROUP_NEIGHBOUR = 3
_SO_ATTACH_FILTER = 26
_PER_TURN = 256
"""Messages read before the loop gets its turn again: about 2 ms."""


class _Subscriber(NamedTuple):
    event: Callable[[Event], None]
    overrun: Callable[[], None]


class Monitor:
    """``interfaces`` is kept up to date before subscribers hear of an event.

    Construct and start it in the loop's thread, inside the namespace to be watched.
    """

    def __init__(self, *, protocol: int = ROUTE_PROTOCOL, receive_buffer: int = 64 << 20) -> None:
        self.interfaces = Interfaces()
        self.overruns = 0
        self._protocol = protocol
        self._receive_buffer = receive_buffer
        self._subscribers: list[_Subscriber] = []
        self._ignored: set[int] = set()
        self._program: ctypes.Array[ctypes.c_char] | None = None
        self._buffer = memoryview(bytearray(netlink.RECEIVE))
        self._sock: socket.socket | None = None
        self._query: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Begin to watch and read links and addresses. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._sock = netlink.open_socket(groups=_GROUPS.values(), receive_buffer=self._receive_buffer)
        self._query = netlink.open_socket()
        self._filter()
        self._read_interfaces()
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def stop(self) -> None:
        """Stop watching; harmless if never started."""
        if self._sock is not None and self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        if self._query is not None:
            self._query.close()
            self._query = None

    def subscribe(self, event: Callable[[Event], None], overrun: Callable[[], None]) -> None:
        """Call ``event`` for each event, in the kernel's order, and ``overrun`` after events were lost."""
        self._subscribers.append(_Subscriber(event, overrun))

    def watch_neighbours(self, watch: bool) -> None:
        """Hear of neighbours too from now on, or no more; only while it runs. Raises OSError."""
        if self._sock is not None:
            netlink.join(self._sock, _GROUP_NEIGHBOUR, leave=not watch)

    def ignore(self, ports: Iterable[int]) -> None:
        """Drop from now on what sockets with these port ids cause."""
        self._ignored.update(ports)
        if self._sock is not None:
            self._filter()

    def _filter(self) -> None:
        """Attach a classic BPF program: reject our writers' echoes, our IPv6 routes that the kernel itself removes, and
        what it says of each bucket of a resilient group.

        Such routes come one by one when a next-hop object or a device goes, which is known from its own event. BPF
        loads in network order, the header is in the host's: constants are swapped.
        """
        assert self._sock is not None
        load_port, load_kind, load_protocol = (0x20, 0, 0, 12), (0x28, 0, 0, 4), (0x30, 0, 0, 21)
        ports = sorted(self._ignored)
        tail = [
            load_kind,
            (0x15, 0, 4, socket.htons(netlink.RTM_DELROUTE)),
            load_port,
            (0x15, 0, 2, 0),
            load_protocol,
            (0x15, 1, 0, self._protocol),
            (0x06, 0, 0, 0xFFFFFFFF),
            (0x06, 0, 0, 0),
        ]
        reject = 2 + len(ports) + len(tail)  # place of the last instruction
        program = [load_kind, (0x15, reject - 2, 0, socket.htons(netlink.RTM_NEWNEXTHOPBUCKET)), load_port]
        program += [(0x15, reject - place - 1, 0, socket.htonl(port)) for place, port in enumerate(ports, start=3)]
        program += tail
        # Kept, for the kernel gets its address only: compiled code lets go of a variable after its last use.
        self._program = ctypes.create_string_buffer(b"".join([struct.pack("=HBBI", *step) for step in program]))
        head = struct.pack("@HP", len(program), ctypes.addressof(self._program))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)

    def _read_interfaces(self) -> list[Event]:
        """Read links and addresses anew, and return what differs from what was known."""
        assert self._query is not None
        requests = (netlink.RTM_GETLINK, links_request()), (netlink.RTM_GETADDR, addresses_request())
        decoded = (
            decode(data, msg)
            for kind, request in requests
            for data, msg in netlink.settled_dump(self._query, kind, request)
        )
        return self.interfaces.replace(event for event in decoded if event is not None)

    def _readable(self) -> None:
        for _ in range(_PER_TURN):
            if self._sock is None:
                return
            try:  # one message in general: a buffer for the largest each time would take as long as the reading
                size = self._sock.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overrun()
                return
            data = bytes(self._buffer[:size])
            for msg in netlink.messages(data):
                event = decode(data, msg)
                if event is not None:
                    self._tell(event)

    def _tell(self, event: Event) -> None:
        if isinstance(event, LinkEvent | AddressEvent) and not self.interfaces.apply(event):
            return
        for subscriber in self._subscribers:
            subscriber.event(event)

    def _discard(self) -> None:
        """Forget the events that still wait: they are older than the state that is about to be read."""
        assert self._sock is not None
        while True:
            try:
                self._sock.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def _overrun(self) -> None:
        """The socket's buffer was full: read links and addresses anew, and have everybody else do the like."""
        self.overruns += 1
        log.warning("netlink events were lost, reading the kernel's state anew")
        self._discard()
        for event in self._read_interfaces():
            for subscriber in self._subscribers:
                subscriber.event(event)
        for subscriber in self._subscribers:
            subscriber.overrun()
