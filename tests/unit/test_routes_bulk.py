"""Requests in bulk: what the kernel gets, in which pieces, and what of a failure is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from config.prefix import make
from routes import bulk
from routes.encode import ADD, MOST, Placement, delete_shape, route_batch, via_nexthop, write_shape
from routes.messages import RTN_UNICAST
from routes.netlink import messages

PLACE = Placement(4, 254, 20, 201)
SHAPE = write_shape(PLACE, ADD, RTN_UNICAST, 0, via_nexthop(1))
PREFIXES = [make(4, number << 8, 24) for number in range(MOST)]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Stand for a netlink socket and the kernel: what is sent at once arrives at once."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        yield here, there


def arrivals(pair: tuple[socket.socket, socket.socket], buffers: list[bytearray]) -> list[bytes]:
    """Return what arrives, piece by piece, when these are sent."""
    here, there = pair
    found: list[bytes] = []

    def receive() -> None:
        while data := there.recv(1 << 20):
            found.append(data)

    receiver = threading.Thread(target=receive)
    receiver.start()
    bulk.send(here, buffers)
    here.shutdown(socket.SHUT_WR)
    receiver.join()
    return found


@pytest.mark.parametrize("count", [1, bulk.PIECE - 1, bulk.PIECE, bulk.PIECE + 1, MOST])
def test_a_buffer_goes_in_pieces(pair: tuple[socket.socket, socket.socket], count: int) -> None:
    buffer = route_batch(SHAPE, PREFIXES[:count])
    found = arrivals(pair, [buffer])
    assert b"".join(found) == buffer
    assert [len(list(messages(each))) for each in found[:-1]] == [bulk.PIECE] * ((count - 1) // bulk.PIECE)


def test_requests_of_different_lengths(pair: tuple[socket.socket, socket.socket]) -> None:
    gone = delete_shape(PLACE)
    buffers = [
        route_batch(gone, PREFIXES[:3]),
        route_batch(SHAPE, PREFIXES[3:1003], 3),
        route_batch(gone, PREFIXES[:1]),
    ]
    found = arrivals(pair, buffers)
    assert b"".join(found) == b"".join(buffers)
    assert all(0 < len(list(messages(each))) <= bulk.PIECE for each in found)


def test_more_buffers_than_one_call_takes(pair: tuple[socket.socket, socket.socket]) -> None:
    buffers = [route_batch(SHAPE, [prefix], number) for number, prefix in enumerate(PREFIXES[:2500])]
    assert arrivals(pair, buffers) == buffers


@pytest.mark.parametrize("count", [1, MOST])
def test_what_the_socket_refuses_is_told(pair: tuple[socket.socket, socket.socket], count: int) -> None:
    here, there = pair
    there.close()
    with pytest.raises(BrokenPipeError):
        bulk.send(here, [route_batch(SHAPE, PREFIXES[:count])])
