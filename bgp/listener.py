"""Listening sockets: hands over connections from configured peers, turns away everybody else."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable

from bgp.quiet import Quiet
from bgp.sockets import Endpoint, OpenSocket, endpoint_of, listening, reset, set_md5
from bgp.status import SpeakerError

log = logging.getLogger("podroute.bgp")

_PER_TURN = 64
"""Connections accepted in one turn of the event loop: a flood leaves the sessions their share."""
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_PAUSE = 1.0
_QUIET = 60.0
"""Seconds between two log lines about strangers."""

_HINTS = {
    errno.EADDRINUSE: "is another BGP speaker running? `ss -ltnp` shows it; bgp.listen chooses another address or port",
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "it is not an address of this node",
    errno.EAFNOSUPPORT: "the kernel lacks this address family: leave it out of bgp.listen",
}

_KEY_HINTS = {
    errno.ENOMEM: "each password of a listening socket counts towards sysctl net.core.optmem_max: raise it",
    errno.ENOPROTOOPT: "the kernel lacks CONFIG_TCP_MD5SIG",
}

Accept = Callable[[socket.socket, Endpoint], bool]
"""Takes a connection and who it is from; False: a stranger, which the listener turns away."""


class Listener:
    """One listening socket under the event loop. Raises SpeakerError where it cannot listen."""

    def __init__(self, address: str, port: int, opener: OpenSocket, accept: Accept) -> None:
        self.endpoint = Endpoint.parse(address)
        self.refused = 0
        """Connections from addresses of no peer, turned away."""
        self._accept = accept
        self._loop = asyncio.get_running_loop()
        self._quiet = Quiet(_QUIET)
        self._pause: asyncio.TimerHandle | None = None
        try:
            self._sock = listening(self.endpoint, port, opener)
        except OSError as error:
            cause = os.strerror(error.errno or 0)
            hint = _HINTS.get(error.errno or 0)
            where = self.endpoint.with_port(port)
            raise SpeakerError(f"cannot listen on {where}: {cause}{f' ({hint})' if hint else ''}") from None
        self.port: int = self._sock.getsockname()[1]
        self._loop.add_reader(self._sock, self._ready)

    def set_password(self, peer: Endpoint, password: bytes, *, length: int | None = None) -> None:
        """Have connections of ``peer``, or out of the prefix of ``length`` that it begins, signed (TCP-MD5).

        An empty password takes the key away. Raises SpeakerError.
        """
        if peer.family != self._sock.family:
            return
        try:
            set_md5(self._sock, peer, password, length=length)
        except FileNotFoundError:  # there was no key to take away
            pass
        except OSError as error:
            whose = peer if length is None else f"{peer}/{length}"
            text = f"cannot set the TCP-MD5 password of {whose}: {os.strerror(error.errno or 0)}"
            hint = _KEY_HINTS.get(error.errno or 0)
            raise SpeakerError(f"{text} ({hint})" if hint else text) from None

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _ready(self) -> None:
        for _ in range(_PER_TURN):
            try:
                sock, sockaddr = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._rest(error)
                    return
                continue  # that connection failed before it was accepted
            remote = endpoint_of(sock, sockaddr)
            if not self._accept(sock, remote):
                self._refuse(sock, remote)

    def _refuse(self, sock: socket.socket, remote: Endpoint) -> None:
        reset(sock)
        self.refused += 1
        count = self._quiet.admit(self._loop.time())
        if count:
            log.warning(
                "connection refused: not an address of a peer",
                extra={"fields": {"address": str(remote), "count": count}},
            )

    def _rest(self, error: OSError) -> None:
        """Descriptors or memory have run out: accepting again at once would only spin."""
        log.error("cannot accept connections: %s", os.strerror(error.errno or 0))
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(_PAUSE, self._loop.add_reader, self._sock, self._ready)
