"""Where the agent serves over TCP what anybody may read. It moves to another address without a gap."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from agent.errors import StartError

Address = tuple[str, int]


class TcpSite:
    """Serves a web application, or nothing: ``make`` returns a new one for each address that it is served on."""

    def __init__(self, make: Callable[[], web.Application]) -> None:
        self._make = make
        self._socket: socket.socket | None = None
        self._runner: web.AppRunner | None = None

    def open(self, address: Address | None) -> socket.socket | None:
        """Return a socket that listens on an address, for ``serve``; None for None.

        The present one may listen on the same port at another address. Raises StartError.
        """
        if address is None:
            return None
        present = self._socket if self._socket and self._socket.getsockname()[1] == address[1] else None
        with _shared(present):
            return _listening(address, shared=present is not None)

    async def serve(self, opened: socket.socket | None) -> None:
        """Serve on what ``open`` returned, and nowhere else."""
        before, self._runner, self._socket = self._runner, None, opened
        if opened is not None:
            self._runner = web.AppRunner(self._make(), access_log=None, shutdown_timeout=1.0)
            await self._runner.setup()
            await web.SockSite(self._runner, opened).start()
        if before is not None:
            await before.cleanup()

    async def close(self) -> None:
        await self.serve(None)


@contextmanager
def _shared(present: socket.socket | None) -> Iterator[None]:
    """Let another socket of ours be bound to the port of this one: 0.0.0.0 beside 127.0.0.1."""
    if present is None:
        yield
        return
    present.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        yield
    finally:
        present.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def _listening(address: Address, *, shared: bool) -> socket.socket:
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # [::] is every address, of IPv4 too
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not ipaddress.ip_address(host).is_unspecified))
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
        made.listen(128)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    except OSError as error:
        made.close()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise StartError(
            f"metrics.listen: cannot listen on {where}: {os.strerror(error.errno or 0)}; it must be a free port at an "
            "address of this node (`ss -ltnp` shows who listens)"
        ) from error
    return made
