"""rtnetlink sockets, message framing and dumps (RFC 3549, rtnetlink(7), netlink(7)), without a library.

A socket belongs for good to the network namespace of the thread that opens it: open in the thread that is inside, use
from any other.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x1, 0x4, 0x10, 0x100, 0x200
NLA_F_NESTED = 0x8000
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND, NLM_F_DUMP = 0x100, 0x200, 0x400, 0x800, 0x300

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106
RTM_NEWNEXTHOPBUCKET = 116

_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _DROP_MEMBERSHIP, _CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 1, 2, 10, 11, 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_ERR_MSG = 1
RECEIVE = 1 << 16
"""Size for recv(): the kernel fills dump buffers up to half of it."""

_HEADER = struct.Struct("=IHHII")
_read_header = _HEADER.unpack_from
_read_attribute = struct.Struct("=HH").unpack_from
_read_errno = struct.Struct("=i").unpack_from


class Message(NamedTuple):
    """Where one message's payload lies in a received buffer."""

    kind: int
    flags: int
    sequence: int
    port: int
    start: int
    end: int


class Refusal(NamedTuple):
    """What the kernel said no to: ``sequence`` of the request, positive ``errno``, its own words if it had any."""

    sequence: int
    errno: int
    text: str

    @property
    def words(self) -> str:
        return self.text or os.strerror(self.errno)


class DumpInterruptedError(OSError):
    """The kernel's table changed under a dump, which may have missed or doubled entries."""


def open_socket(
    *, groups: Iterable[int] = (), receive_buffer: int = 1 << 20, send_buffer: int = 1 << 20
) -> socket.socket:
    """Open a route netlink socket in the calling thread's namespace, joined to multicast ``groups`` (RTNLGRP_*).

    Buffer sizes are in octets, forced over the system's limits where the process may (CAP_NET_ADMIN).
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        for forced, plain, size in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF, receive_buffer),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF, send_buffer),
        ):
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, size)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, plain, size)
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            sock.setsockopt(_SOL_NETLINK, option, 1)
        sock.bind((0, 0))
        for group in groups:
            join(sock, group)
    except BaseException:
        sock.close()
        raise
    return sock


def join(sock: socket.socket, group: int, *, leave: bool = False) -> None:
    """Have a socket hear of a multicast group (RTNLGRP_*), or no more. Raises OSError."""
    sock.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP if leave else _ADD_MEMBERSHIP, group)


def port(sock: socket.socket) -> int:
    """Return the port id by which the kernel marks what this socket caused (nlmsg_pid of notifications)."""
    number: int = sock.getsockname()[0]
    return number


def message(kind: int, flags: int, payload: bytes, sequence: int = 0) -> bytes:
    """Frame one request."""
    return _HEADER.pack(16 + len(payload), kind, flags | NLM_F_REQUEST, sequence, 0) + payload


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute with its padding to 4 octets."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def messages(data: bytes) -> Iterator[Message]:
    """Walk a received buffer."""
    offset, size = 0, len(data)
    while offset + 16 <= size:
        length, kind, flags, sequence, sender = _read_header(data, offset)
        if length < 16 or offset + length > size:
            return
        yield Message(kind, flags, sequence, sender, offset + 16, offset + length)
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int, end: int) -> dict[int, bytes]:
    """Return attribute values by type; of a doubled type the last counts."""
    found: dict[int, bytes] = {}
    while offset + 4 <= end:
        length, kind = _read_attribute(data, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def refusal(data: bytes, msg: Message) -> Refusal:
    """Decode an NLMSG_ERROR message; errno 0 is an acknowledgement."""
    number = -_read_errno(data, msg.start)[0]
    text = ""
    if msg.flags & NLM_F_ACK_TLVS and msg.flags & NLM_F_CAPPED:
        words = attributes(data, msg.start + 20, msg.end).get(_ERR_MSG, b"")
        text = words.rstrip(b"\0").decode("utf-8", "replace")
    return Refusal(msg.sequence, number, text)


def receive_refusals(sock: socket.socket) -> tuple[list[Refusal], bool]:
    """Read what the kernel refused of the requests just sent.

    The flag is False where answers were lost (ENOBUFS): what was sent is then unverified.
    """
    answers, whole = receive_answers(sock)
    found = (refusal(data, msg) for data, msg in answers if msg.kind == NLMSG_ERROR)
    return [answer for answer in found if answer.errno], whole


def receive_answers(sock: socket.socket) -> tuple[list[tuple[bytes, Message]], bool]:
    """Read the answers to what was just sent; the kernel answers before send() returns, so this never waits.

    The flag is False where some were lost (ENOBUFS).
    """
    answers: list[tuple[bytes, Message]] = []
    whole = True
    while True:
        try:
            data = sock.recv(RECEIVE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return answers, whole
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            whole = False
            continue
        answers += [(data, msg) for msg in messages(data)]


def dump(sock: socket.socket, kind: int, payload: bytes, *, needle: bytes = b"") -> Iterator[tuple[bytes, Message]]:
    """Ask for a table and yield its messages, each with the buffer that holds it; only those that hold ``needle``.

    ``payload`` filters in the kernel (strict checking is on). A table that does not exist is empty. Raises OSError, and
    DumpInterruptedError at the end where the table changed meanwhile. Must be run to its end.
    """
    sock.send(message(kind, NLM_F_DUMP, payload, sequence=1))
    interrupted = False
    while True:
        data = sock.recv(RECEIVE)
        for msg in messages(data):
            interrupted |= bool(msg.flags & NLM_F_DUMP_INTR)
            if msg.kind == NLMSG_DONE:
                number = -_read_errno(data, msg.start)[0] if msg.end - msg.start >= 4 else 0
                if number and number != errno.ENOENT:
                    raise OSError(number, os.strerror(number))
                if interrupted:
                    raise DumpInterruptedError(errno.EINTR, "the kernel's table changed during the dump")
                return
            if msg.kind == NLMSG_ERROR:
                answer = refusal(data, msg)
                if answer.errno == errno.ENOENT:
                    return
                raise OSError(answer.errno, answer.words)
            if not needle or data.find(needle, msg.start, msg.end) >= 0:
                yield data, msg


def settled_dump(sock: socket.socket, kind: int, payload: bytes, attempts: int = 5) -> list[tuple[bytes, Message]]:
    """Dump a table of modest size, again where it changed meanwhile; the last attempt counts: events tell the rest."""
    while True:
        attempts -= 1
        found: list[tuple[bytes, Message]] = []
        try:
            for entry in dump(sock, kind, payload):
                found.append(entry)
        except DumpInterruptedError:
            if attempts > 0:
                continue
        return found


def ask(sock: socket.socket, kind: int, payload: bytes) -> tuple[bytes, Message] | None:
    """Send one request that is answered with one message, and return it; None where the kernel refuses.

    Raises OSError(ENOBUFS) where the answer was lost.
    """
    sock.send(message(kind, 0, payload, sequence=2))
    data = sock.recv(RECEIVE)
    for msg in messages(data):
        if msg.kind != NLMSG_ERROR:
            return data, msg
    return None
