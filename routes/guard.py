"""Requests for next-hop objects, but for those that would hit another program's. Blocking.

The kernel changes and deletes objects by id alone: it refuses a deletion that names a protocol (rtm_del_nexthop), and
asks of a replacement only that the id exists. So it is asked whose the ids are in the moment before. What is left is
that moment, in which another program would have to take an id of ours over.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

from routes import netlink
from routes.encode import get_nexthop, numbered
from routes.messages import decode_nexthop

Refused = dict[int, tuple[int, str]]
"""What was refused: errno and text by place."""

_AT_A_TIME = 64
"""So few requests are between the question and the last of the answers to it: the kernel is through with them in well
below a millisecond, unless routes go with an object."""
_TAKEN_OVER = errno.ENOENT, "another program has taken the id over"

_read = struct.Struct("=4xHH20xI").unpack_from
"""Kind, flags and id of a request: NHA_ID is the first attribute of all."""


def send(sock: socket.socket, requests: Sequence[bytes], protocol: int) -> tuple[Refused, bool]:
    """Send what is not to another program's objects; ``protocol`` makes one ours. Empty requests are places only.

    Objects that another program has taken over are refused with ENOENT, for ours are gone. The flag is False where
    answers were lost (ENOBUFS). Raises OSError.
    """
    refused: Refused = {}
    whole = True
    for start in range(0, len(requests), _AT_A_TIME):
        some = list(requests[start : start + _AT_A_TIME])
        others, answered = _others(sock, some, protocol)
        for place in others:
            some[place] = b""
            refused[start + place] = _TAKEN_OVER
        if any(some):
            sock.send(numbered(some))
        refusals, told = netlink.receive_refusals(sock)
        refused.update((start + one.sequence, (one.errno, one.words)) for one in refusals)
        whole &= answered and told
    return refused, whole


def _others(sock: socket.socket, requests: Sequence[bytes], protocol: int) -> tuple[list[int], bool]:
    """Return the places of requests that would change what belongs to another program; False: answers were lost."""
    asked = [b""] * len(requests)
    for place, request in enumerate(requests):
        if request:
            kind, flags, identifier = _read(request)
            if kind == netlink.RTM_DELNEXTHOP or flags & netlink.NLM_F_REPLACE:
                asked[place] = get_nexthop(identifier)
    if not any(asked):
        return [], True
    sock.send(numbered(asked))
    answers, whole = netlink.receive_answers(sock)
    found = ((msg.sequence, decode_nexthop(data, msg)) for data, msg in answers if msg.kind == netlink.RTM_NEWNEXTHOP)
    return [place for place, nexthop in found if nexthop.protocol != protocol], whole
