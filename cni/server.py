"""The socket on which the agent answers its node's CNI plugin."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cni.errors import CniError, Code
from cni.hooks import Addresses, Handle, Hooks
from cni.namespaces import open_own
from cni.notes import make_directory
from cni.podnet import PodLinks, PodNetwork
from cni.request import LATEST
from cni.result import encode_error
from cni.verbs import Verbs
from cni.wire import HEADER, Answer, Message, WireError, decode_body, decode_header, encode_answer

log = logging.getLogger("podroute.cni")
T = TypeVar("T")

REQUEST_LIMIT = 4 << 20
"""Octets; GC on a node with thousands of containers is the largest call."""
REQUEST_TIME = 10.0
"""Seconds for a request to arrive, and for an answer to be taken."""
STOP_TIME = 10.0
"""Seconds that calls in flight have when the agent stops."""
WORKERS = 4
"""Threads that wire: the kernel does links one at a time anyway."""
_UCRED = struct.Struct("=iII")


class ServerError(Exception):
    """The socket cannot be had; the text says why and what would help."""


class CniServer:
    def __init__(
        self,
        socket_path: Path,
        addresses: Addresses,
        hooks: Hooks,
        *,
        notes: Path,
        network: PodNetwork,
        host: int | None = None,
    ) -> None:
        """``notes``: directory of deletions noted by the plugin. ``host``: descriptor of the node's network namespace,
        which the caller keeps open; None: the one that the constructing thread is in."""
        self._path = socket_path
        self._notes = notes
        self._own_host: int | None = None
        if host is None:
            host = self._own_host = open_own()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="cni")
        links = PodLinks(host, network)
        self._verbs = Verbs(addresses, hooks, links, self._in_thread)
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, put right what an earlier run left, then answer. Raises ServerError.

        It listens before it reads the noted deletions and answers after, so that a plugin which cannot connect has
        its note read, and none is overtaken by a new call.
        """
        try:
            make_directory(self._notes)
            self._listener = _listen(self._path)
        except OSError as error:
            raise ServerError(f"cannot listen on {self._path}: {error.strerror}") from error
        await self._verbs.recover(self._notes)
        self._accepting = asyncio.create_task(self._accept(self._listener))
        log.info("listening for the CNI plugin", extra={"fields": {"socket": str(self._path)}})

    async def stop(self) -> None:
        """Stop listening, let calls in flight finish, and close. Pods stay as they are."""
        if self._accepting:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
        if self._listener:
            self._path.unlink(missing_ok=True)
            self._listener.close()
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=STOP_TIME)
            for call in late:
                call.cancel()
        await self._verbs.stop()
        self._pool.shutdown(wait=True)
        if self._own_host is not None:
            os.close(self._own_host)
            self._own_host = None

    @property
    def verbs(self) -> Verbs:
        """What the agent asks of the CNI side beside the plugin's calls."""
        return self._verbs

    def deletes(self, handle: Handle) -> bool:
        """Tell whether a pod's deletion was answered for and is still under way."""
        return self._verbs.deletes(handle)

    async def settled(self) -> None:
        """Return when no deletion that was answered for is still under way."""
        await self._verbs.settled()

    def _in_thread(self, function: Callable[[], T], /) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.error("cannot accept the CNI plugin", extra={"fields": {"error": str(error)}})
                await asyncio.sleep(0.1)  # out of descriptors: some come back as calls end
                continue
            call = asyncio.create_task(self._serve(connection))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _serve(self, connection: socket.socket) -> None:
        descriptors: list[int] = []

        async def deliver(answer: Answer) -> bool:
            try:
                async with asyncio.timeout(REQUEST_TIME):
                    await asyncio.get_running_loop().sock_sendall(connection, encode_answer(answer))
            except (OSError, TimeoutError):
                return False
            return True

        try:
            with connection:
                connection.setblocking(False)
                try:
                    _check_peer(connection)
                    async with asyncio.timeout(REQUEST_TIME):
                        message = await _receive(connection, descriptors)
                except CniError as error:
                    log.warning("call refused", extra={"fields": {"code": error.code, "error": str(error)}})
                    await deliver(Answer(1, encode_error(error, LATEST)))
                    return
                except (OSError, TimeoutError) as error:
                    log.warning("call broke off", extra={"fields": {"error": str(error) or "too slow"}})
                    return
                await self._verbs.call(message, descriptors[0] if descriptors else None, deliver)
        except Exception:
            log.exception("call failed")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _listen(path: Path) -> socket.socket:
    """Return a listening socket, mode 0600, in place of one that a dead agent left. Raises OSError, ServerError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Of two agents that start at once, the second must see the first one's socket listening.
        fcntl.flock(directory, fcntl.LOCK_EX)
        _clear(path)
        os.fchmod(listener.fileno(), 0o600)  # what bind() then gives to the file, whatever the umask allows
        listener.bind(str(path))
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ServerError(f"{path} is in the way and is not a socket: remove it, or set `cni.socket` to another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        refused = probe.connect_ex(str(path)) == errno.ECONNREFUSED
    if not refused:
        raise ServerError(f"another agent is listening on {path}: stop it, or set `cni.socket` to another path")
    path.unlink()


def _check_peer(connection: socket.socket) -> None:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(credentials)
    if uid != 0:
        raise CniError(Code.INVALID_ENVIRONMENT, "only root may use podroute's plugin", f"process {pid} has uid {uid}")


async def _receive(connection: socket.socket, descriptors: list[int]) -> Message:
    """Read one request. The descriptors that came with it are appended as they come, for the caller to close."""
    try:
        header = decode_header(await _read(connection, HEADER.size, descriptors), limit=REQUEST_LIMIT)
        return decode_body(header, await _read(connection, header.length, descriptors))
    except WireError as error:
        raise CniError(Code.DECODING_FAILURE, "the plugin's request is not understood", str(error)) from None


async def _read(connection: socket.socket, length: int, descriptors: list[int]) -> bytes:
    data = bytearray()
    space = socket.CMSG_SPACE(array.array("i", [0]).itemsize)
    while len(data) < length:
        try:
            part, ancillary, _, _ = connection.recvmsg(length - len(data), space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await _readable(connection)
            continue
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                descriptors.extend(received)
        if not part:
            raise ConnectionError("the plugin went away")
        data += part
    return bytes(data)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
