"""Very many requests to the kernel in one system call, which makes way for others between pieces (sendmmsg(2)).

One send() of some thousand requests keeps its processor until the last is carried out, tens of milliseconds in which
no other thread of that processor runs, however urgent (on servers the kernel is usually not preemptible). Several sends
in turn would each wait for the interpreter, with nothing to do for the kernel meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Sequence

PIECE = 256
"""Requests that are carried out without making way: about a millisecond."""
_MOST = 1024
"""UIO_MAXIOV: what sendmmsg() takes at once."""


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint32),
        ("vector", ctypes.c_void_p),
        ("vector_size", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("sent", ctypes.c_uint))


_libc = ctypes.CDLL(None, use_errno=True)


def send(sock: socket.socket, buffers: Sequence[bytearray]) -> None:
    """Send framed requests in order; all of one buffer have one length. Raises OSError."""
    if len(buffers) == 1 and len(buffers[0]) <= _length(buffers[0]) * PIECE:
        sock.send(buffers[0])
        return
    places = [place for buffer in buffers for place in _pieces(buffer)]
    vectors = (_Iovec * len(places))(*places)
    messages = (_Mmsghdr * len(places))()
    vector = ctypes.addressof(vectors)
    for message in messages:
        message.header.vector, message.header.vector_size = vector, 1
        vector += ctypes.sizeof(_Iovec)
    done = 0
    while done < len(places):
        count = _libc.sendmmsg(
            sock.fileno(),
            ctypes.byref(messages, done * ctypes.sizeof(_Mmsghdr)),
            min(len(places) - done, _MOST),
            0,
        )
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        done += count


def _pieces(buffer: bytearray) -> list[_Iovec]:
    """Return where each piece of a buffer is."""
    base, step = ctypes.addressof(ctypes.c_char.from_buffer(buffer)), _length(buffer) * PIECE
    return [_Iovec(base + at, min(step, len(buffer) - at)) for at in range(0, len(buffer), step)]


def _length(buffer: bytearray) -> int:
    """Return the length of the requests in a buffer."""
    return int.from_bytes(buffer[:4], sys.byteorder)
