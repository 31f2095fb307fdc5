"""Keeps the host's neighbour entries of pods true, for they are permanent.

The plugin ``tuning`` changes MAC addresses right after ADD, and nobody tells. The kernel does: a socket that listens to
all namespaces hears of every link whose namespace this one has an id of, which holds for each pod's. It takes
CAP_NET_BROADCAST; without it the entries follow at CHECK and at the agent's start only.

A host end that somebody sets down loses its entries, and has them again once it is up.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from cni import netlink
from cni.errors import CniError
from cni.hooks import Addresses, Attachment
from cni.namespaces import check_pod, entered
from cni.podnet import PodLinks, packed
from cni.workers import Worker

log = logging.getLogger("podroute.cni")

_GROUP_LINK = 1
_LISTEN_ALL_NSID = 8
_HEADER = struct.Struct("=IHHII")
_ATTACH_FILTER = 26
_LOAD_HALF, _LOAD_WORD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x28, 0x20, 0x15, 0x45, 0x06
# Of RTM_NEWLINK those that no change of flags caused, and those of links that are set down (a new link's says that all
# flags have changed). BPF reads numbers big-endian.
_FILTER: Final = (
    (_LOAD_HALF, 0, 0, 4),
    (_JUMP_EQUAL, 0, 5, socket.htons(netlink.NEWLINK)),
    (_LOAD_WORD, 0, 0, _HEADER.size + 12),
    (_JUMP_EQUAL, 4, 0, 0),
    (_JUMP_EQUAL, 0, 2, socket.htonl(netlink.IFF_UP)),
    (_LOAD_WORD, 0, 0, _HEADER.size + 8),
    (_JUMP_SET, 0, 1, socket.htonl(netlink.IFF_UP)),
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, 0xFFFF),
)
_READING: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_EVENTS = 64
"""Read before the event loop gets its turn again."""
_GATHER = 0.02
"""Seconds in which events come together: an ADD makes several, and none of them is of interest."""


class Follower:
    def __init__(self, addresses: Addresses, links: PodLinks, worker: Worker) -> None:
        self._addresses = addresses
        self._links = links
        self._worker = worker
        self._pods: dict[int, bytes] = {}
        """The MAC addresses that pods' neighbour entries have, by the index of the host end."""
        self._down: set[int] = set()
        """Host ends that were set down."""
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._jobs: set[asyncio.Task[None]] = set()

    def start(self, sock: socket.socket) -> None:
        """Follow what ``sock`` of ``open_events`` hears; it is closed by ``stop``."""
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock, self._gather)

    async def stop(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        if self._jobs:
            await asyncio.wait(self._jobs)

    def know(self, index: int, mac: bytes) -> None:
        """Follow the pod behind a host end, whose MAC address is the one that its neighbour entries have."""
        self._pods[index] = mac

    def forget(self, index: int) -> None:
        self._pods.pop(index, None)
        self._down.discard(index)

    async def restore(self, pods: Sequence[tuple[int, bytes]]) -> None:
        """Follow pods of an earlier run: the indexes of their host ends, the MAC addresses that they had then."""
        macs = await self._worker(lambda: [self._links.mac(index) for index, _ in pods])
        for (index, mac), now in zip(pods, macs, strict=True):
            self.know(index, mac)
            if now not in (mac, b""):
                await self._look(index)

    async def check(self, index: int, attachment: Attachment, netns: int) -> None:
        """Make sure of one pod, whose namespace is at hand; the kernel's word may still be on its way."""
        now = await self._worker(lambda: self._links.mac(index))
        if now not in (self._pods.get(index, now), b""):
            await self._follow(index, attachment, lambda: os.dup(netns))

    def _gather(self) -> None:
        assert self._socket
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._timer = loop.call_later(_GATHER, self._read)

    def _read(self) -> None:
        assert self._socket
        asyncio.get_running_loop().add_reader(self._socket, self._gather)
        for _ in range(_EVENTS):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(65536, 64)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                log.warning("events of pods' interfaces were lost: all are looked up")
                self._begin(self.restore(list(self._pods.items())))
                return
            link = netlink.decode_link(data[_HEADER.size :])
            if ancillary:  # the id of the namespace; without one it is the host's own
                if self._pods.get(link.peer, link.mac) != link.mac:
                    self._begin(self._look(link.peer))
            elif link.index in self._pods and not link.up:
                self._down.add(link.index)
            elif link.index in self._down and link.operational:
                self._down.discard(link.index)
                self._begin(self._mend(link.index))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        job = asyncio.get_running_loop().create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _look(self, index: int) -> None:
        """Follow a pod by the path of its namespace, which the agent sees unless it lives in a container without."""
        if attachment := await self._attachment(index):
            path = str(attachment.attributes.get("netns", ""))
            await self._follow(index, attachment, lambda: os.open(path, _READING))

    async def _mend(self, index: int) -> None:
        if not (attachment := await self._attachment(index)):
            return
        fields = {"pod": str(attachment.handle)}
        try:
            await self._worker(lambda: self._links.mend([(index, packed(attachment.assignments))]))
        except OSError as error:
            fields["error"] = str(error)
            log.warning("a pod's interface went down and up, its neighbours cannot be set", extra={"fields": fields})
        else:
            log.info("pod's interface went down and up, its neighbours are set", extra={"fields": fields})

    async def _attachment(self, index: int) -> Attachment | None:
        handle = await self._worker(lambda: self._links.handle(index))
        return await self._addresses.lookup(handle) if handle else None

    async def _follow(self, index: int, attachment: Attachment, open_pod: Callable[[], int]) -> None:
        handle, addresses = attachment.handle, packed(attachment.assignments)

        def follow() -> bytes:
            namespace = open_pod()
            try:
                check_pod(namespace, self._links.host, "")
                return self._links.follow(index, namespace, handle, addresses)
            finally:
                os.close(namespace)

        fields = {"pod": str(handle)}
        try:
            mac = await self._worker(follow)
        except (OSError, CniError) as error:
            fields["error"] = str(error)
            log.warning("a pod has a new MAC address and cannot be entered", extra={"fields": fields})
            return
        if mac and self._pods.get(index, mac) != mac:
            self._pods[index] = mac
            log.info("pod's MAC address followed", extra={"fields": {**fields, "mac": mac.hex(":")}})


def open_events(host: int) -> socket.socket:
    """Return a socket that hears of links in all namespaces known in ``host``; blocks, for worker threads."""
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _FILTER)
    memory = ctypes.create_string_buffer(program)
    with entered(host, host):
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        filter_ = struct.pack("@HL", len(_FILTER), ctypes.addressof(memory))
        sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, filter_)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.setsockopt(netlink.SOL_NETLINK, _LISTEN_ALL_NSID, 1)
        sock.bind((0, 1 << (_GROUP_LINK - 1)))
    except BaseException:
        sock.close()
        raise
    return sock
