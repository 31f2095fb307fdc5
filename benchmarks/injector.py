"""Peers of the daemon under test, made of a socket each: they send prepared octets and count what comes back."""

from __future__ import annotations

import socket
import threading
import time
from ipaddress import ip_address
from struct import unpack_from

from bgp import codec
from bgp.framing import EXTENDED_LIMIT, HEADER_SIZE, Framer
from bgp.messages import MessageType, Open
from bgp.nlri import decode
from bgp.update import split
from tests.netns import Netns

PATIENCE = 60.0


class Injector:
    """One peer. It connects, opens, and answers with KEEPALIVEs; a thread reads what the daemon sends."""

    def __init__(self, ns: Netns, address: str, daemon: str, asn: int, *, hold_time: int = 90) -> None:
        self.prefixes = 0
        """Prefixes received so far, withdrawn ones not counted."""
        self.arrived = 0.0
        """When the last of them came, by ``time.monotonic``."""
        self.keepalives: list[float] = []
        """When KEEPALIVEs came."""
        self.failed = ""
        with ns.entered():
            self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.bind((address, 0))
        self._sock.settimeout(PATIENCE)
        self._sock.connect((daemon, 179))
        self._framer = Framer(EXTENDED_LIMIT)
        self._lock = threading.Lock()
        self._up = threading.Event()
        self._changed = threading.Condition()
        ours = Open(asn=asn, hold_time=hold_time, identifier=ip_address(address).packed, families=frozenset((4,)))
        self._send(codec.encode_open(ours))
        self._interval = hold_time / 3
        self._stopped = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        if not self._up.wait(PATIENCE):
            raise AssertionError(f"no session of {address}: {self.failed}")
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        for start in range(0, len(data), 1 << 20):
            self._send(data[start : start + (1 << 20)])

    def wait(self, count: int, seconds: float) -> bool:
        """Wait until so many prefixes have come; False: they have not within ``seconds``."""
        with self._changed:
            return self._changed.wait_for(lambda: self.prefixes >= count, seconds)

    def close(self) -> None:
        """End the connection without a word."""
        self._stopped.set()
        self._sock.close()

    def _send(self, data: bytes) -> None:
        with self._lock:
            self._sock.sendall(data)

    def _keep_alive(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._send(codec.KEEPALIVE)
            except OSError:
                return

    def _read(self) -> None:
        while True:
            try:
                data = self._sock.recv(1 << 18)
            except TimeoutError:  # nothing to read; the limit is for writing
                continue
            except OSError as error:
                data, self.failed = b"", str(error)
            if not data:
                self.failed = self.failed or "the daemon closed the connection"
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        count = 0
        for kind, body in self._framer.feed(data):
            if kind == MessageType.UPDATE:
                count += len(decode(split(body)[2], 32))
            elif kind == MessageType.OPEN:
                self._send(codec.KEEPALIVE)
            elif kind == MessageType.KEEPALIVE:
                self.keepalives.append(time.monotonic())
                self._up.set()
            elif kind == MessageType.NOTIFICATION:
                self.failed = f"NOTIFICATION {unpack_from('!BB', body)} of {len(body) + HEADER_SIZE} octets"
        if count:
            with self._changed:
                self.prefixes += count
                self.arrived = time.monotonic()
                self._changed.notify_all()
