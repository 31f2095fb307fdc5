"""Links by name, and messages to them, as both ends of a pod's need them."""

from __future__ import annotations

from cni import netlink
from cni.errors import CniError, Code
from cni.netlink import Message, Netlink


def index_of(kernel: Netlink, link: str) -> int:
    """Return a link's index. Raises CniError where it is gone."""
    body = kernel.one(netlink.get_link(link))
    if body is None:
        raise CniError(Code.IO_FAILURE, f"interface {link} went away while it was being set up")
    return netlink.decode_link(body).index


def set_link(index: int, body: bytes, step: str, *, up: bool = False) -> Message:
    return Message(netlink.SETLINK, 0, netlink.link_header(index, up=up) + body, step)
