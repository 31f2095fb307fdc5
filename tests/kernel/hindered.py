"""An agent that loses its right to write routes, or its ears, while it runs, and gets them back.

``python -m tests.kernel.hindered ... agent --config FILE`` runs such an agent: SIGUSR1 takes CAP_NET_ADMIN away from
all that it sends on netlink sockets, and gives it back; SIGUSR2 makes it deaf to the kernel's events, and hear again.
The kernel asks for the capabilities of the thread that sends, so these go for the length of a send(), whichever thread
it is.
"""

from __future__ import annotations

import ctypes
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from routes import bulk, netlink

CAP_NET_ADMIN = 12
_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)

taken = threading.Event()
"""Set while the privilege is away."""
deaf = threading.Event()
"""Set while events are not heard."""


class Hindered(socket.socket):
    """A socket that cannot send what needs the privilege while it is ``taken``, and hears no events while ``deaf``."""

    def send(self, data: Any, flags: int = 0) -> int:
        if not taken.is_set():
            return super().send(data, flags)
        with _without(CAP_NET_ADMIN):
            return super().send(data, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Only events are read so: while ``deaf``, what has come is lost."""
        size = super().recv_into(buffer, nbytes, flags)
        while deaf.is_set():
            size = super().recv_into(buffer, nbytes, flags)
        return size


def deprivable(open_socket: Callable[..., socket.socket] = netlink.open_socket) -> Callable[..., socket.socket]:
    """Return what opens netlink sockets as ``open_socket`` does, that lose the privilege while it is ``taken``."""

    def opened(**options: Any) -> socket.socket:
        sock = open_socket(**options)
        return Hindered(sock.family, sock.type, sock.proto, sock.detach())

    return opened


def deprived_bulk(send: Callable[..., None] = bulk.send) -> Callable[..., None]:
    """Return what sends in bulk as ``send`` does, without the privilege while it is ``taken``."""

    def sending(sock: socket.socket, buffers: Sequence[bytearray]) -> None:
        with _without(CAP_NET_ADMIN) if taken.is_set() else nullcontext():
            send(sock, buffers)

    return sending


@contextmanager
def _without(capability: int) -> Iterator[None]:
    """Take a capability out of the calling thread's effective set (capset(2))."""
    before = _capabilities("capget", bytes(24))
    low = struct.unpack_from("=I", before)[0] & ~(1 << capability)
    _capabilities("capset", struct.pack("=I", low) + before[4:])
    try:
        yield
    finally:
        _capabilities("capset", before)


def _capabilities(call: str, data: bytes) -> bytes:
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0))
    sets = ctypes.create_string_buffer(data, len(data))
    if getattr(_libc, call)(header, sets):
        raise OSError(ctypes.get_errno(), call)
    return sets.raw


def _turned_by(number: signal.Signals, event: threading.Event) -> None:
    signal.signal(number, lambda *_: event.clear() if event.is_set() else event.set())


def main() -> None:
    netlink.open_socket, bulk.send = deprivable(), deprived_bulk()
    _turned_by(signal.SIGUSR1, taken)
    _turned_by(signal.SIGUSR2, deaf)
    from agent.cli import main as podroute

    sys.argv = ["podroute", *sys.argv[sys.argv.index("agent") :]]
    podroute()


if __name__ == "__main__":
    main()
