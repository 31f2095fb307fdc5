"""One end of a stream of numbered UDP packets in both directions, at a fixed rate over several ports.

Stands alone (``python3 -I probe.py OWN OTHER PORT PORTS RATE``), because it runs inside a container. Prints ``ready``;
a line on standard input starts it, another has it stop sending and print ``stopped``; at the end of the input it takes
what has arrived, and prints one JSON object: what it sent and what it got. Times are seconds of CLOCK_MONOTONIC, which
all network namespaces of a host share.
"""

from __future__ import annotations

import json
import math
import select
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any

PACKET = struct.Struct("!Qd")
LINGER = 0.5
"""Seconds to wait for packets on their way, once both ends have stopped sending."""


class Stream:
    """One port: packets out are numbered from 0, packets in are held against the numbers they carry."""

    def __init__(self, own: str, other: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind((own, port))
        self.target = (other, port)
        self.sent = self.received = 0
        self.first: float | None = None
        self.last: float | None = None
        self.next = 0
        self.seen: float | None = None
        self.gaps: list[tuple[float | None, float, int]] = []

    def send(self, now: float) -> None:
        self.last = now
        if self.first is None:
            self.first = now
        packet = PACKET.pack(self.sent, now)
        self.sent += 1
        # No route, for example: the packet counts as lost.
        with suppress(OSError):
            self.socket.sendto(packet, self.target)

    def receive(self) -> None:
        while True:
            try:
                packet = self.socket.recv(64)
            except OSError:
                return
            number, sent_at = PACKET.unpack(packet)
            self.received += 1
            if number > self.next:
                self.gaps.append((self.seen, sent_at, number - self.next))
            if number >= self.next:
                self.next, self.seen = number + 1, sent_at

    def report(self) -> dict[str, Any]:
        names = ("sent", "received", "first", "last", "next", "seen", "gaps")
        return {name: getattr(self, name) for name in names}


def main() -> None:
    own, other, port, ports, rate = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    streams = [Stream(own, other, port + number) for number in range(ports)]
    poll = select.poll()
    by_number = {stream.socket.fileno(): stream for stream in streams}
    for number in by_number:
        poll.register(number, select.POLLIN)
    poll.register(0, select.POLLIN)
    print("ready", flush=True)
    sys.stdin.readline()
    interval, turn = 1 / rate, 0
    due = time.monotonic()
    sending, end = True, math.inf
    while (now := time.monotonic()) < end:
        if sending and now >= due:
            streams[turn % ports].send(now)
            turn += 1
            due = max(due + interval, now - interval)
        wait = min(due if sending else math.inf, end) - time.monotonic()
        for number, _ in poll.poll(None if wait == math.inf else max(0.0, wait * 1000)):
            if number:
                by_number[number].receive()
            elif sending:
                sys.stdin.readline()
                sending = False
                print("stopped", flush=True)
            else:
                end = time.monotonic() + LINGER
                poll.unregister(0)
    for stream in streams:  # that time may have passed while nothing could be read
        stream.receive()
    print(json.dumps([stream.report() for stream in streams]), flush=True)


if __name__ == "__main__":
    main()
