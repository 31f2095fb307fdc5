"""Messages to links, and waiting for what the kernel does with them later, as both ends of a pod's need it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cni import netlink
from cni.errors import CniError, Code
from cni.netlink import Message, Netlink

LIMIT: Final = 5.0
"""Seconds for what the kernel does in its own time: a thousandth of that is usual."""
_PAUSE = 0.0005


def set_link(index: int, body: bytes, step: str, *, up: bool = False) -> Message:
    return Message(netlink.SETLINK, 0, netlink.link_header(index, up=up) + body, step)


def await_carrier(kernel: Netlink, index: int) -> None:
    """Return when a link whose both ends are up carries packets. Raises CniError and OSError.

    A carrier that comes is dealt with by the kernel in its own time; until then the link drops what it is to send, and
    takes no IPv6 address into use. Since Linux 6.8 a question for the link makes the kernel deal with it
    (net/core/link_watch.c, linkwatch_sync_dev); before, the state is asked for until it is there.
    """

    def carries() -> bool:
        body = kernel.one(netlink.get_link_by_index(index))
        if body is None:
            raise CniError(Code.IO_FAILURE, f"interface {index} went away while it was being set up")
        return netlink.decode_link(body).operational

    _wait(carries, f"interface {index} has no carrier")


def await_local(kernel: Netlink, address: bytes) -> None:
    """Return when the kernel receives what is sent to an IPv6 address. Raises CniError and OSError.

    Even without duplicate address detection the route that says so is added after the address, by a work queue
    (net/ipv6/addrconf.c, addrconf_dad_work).
    """
    question = netlink.find_route(6, address, entry=True)

    def local() -> bool:
        body = kernel.one(question)
        return body is not None and netlink.decode_route(body).local

    _wait(local, f"{netlink.show(address)} is not in use")


def _wait(there: Callable[[], bool], trouble: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not there():
        if time.monotonic() > deadline:
            raise CniError(Code.IO_FAILURE, f"{trouble} after {LIMIT:.0f} seconds")
        time.sleep(_PAUSE)
