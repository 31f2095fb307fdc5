"""TCP sockets as BGP needs them: local address, TTL and GTSM (RFC 5082), TCP-MD5 (RFC 2385), scope, send queue."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

OpenSocket = Callable[[int], socket.socket]
"""Makes a TCP socket of an address family (AF_INET, AF_INET6); whoever passes another one chooses its namespace."""

MAXIMUM_TTL = 255
MD5_KEY_LIMIT = 80
"""TCP_MD5SIG_MAXKEYLEN of linux/tcp.h: octets of a password."""

_TCP_MD5SIG = 14
_TCP_MD5SIG_EXT = 32
_TCP_MD5SIG_FLAG_PREFIX = 1
_IP_MINTTL = 21
_IPV6_MINHOPCOUNT = 73
_SIOCGIFNAME = 0x8910
_SIOCGIFINDEX = 0x8933
_SIOCOUTQ = 0x5411
_BACKLOG = 512


def open_socket(family: int) -> socket.socket:
    """Return a TCP socket in the namespace of the calling thread."""
    return socket.socket(family, socket.SOCK_STREAM)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address, and the interface that gives it meaning where it is link-local."""

    packed: bytes
    device: str = ""

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read ``10.1.1.1``, ``fd00::1`` or ``fe80::1%eth0``. Raises ValueError."""
        address = ip_address(text)
        scope = address.scope_id if isinstance(address, IPv6Address) else None
        if isinstance(address, IPv6Address) and address.is_link_local and not scope:
            raise ValueError(f"{text} is link-local: say on which interface, {text}%eth0")
        if scope and not address.is_link_local:
            raise ValueError(f"{text}: only a link-local address takes an interface")
        return cls(address.packed, scope or "")

    @property
    def family(self) -> int:
        return socket.AF_INET if len(self.packed) == 4 else socket.AF_INET6

    @property
    def address(self) -> str:
        """The text form without the interface."""
        return str(IPv4Address(self.packed) if len(self.packed) == 4 else IPv6Address(self.packed))

    def __str__(self) -> str:
        return f"{self.address}%{self.device}" if self.device else self.address

    def with_port(self, port: int) -> str:
        return f"{self}:{port}" if len(self.packed) == 4 else f"[{self}]:{port}"

    def sockaddr(self, sock: socket.socket, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
        """Return what bind and connect take, the interface looked up in the namespace of ``sock``. Raises OSError."""
        if len(self.packed) == 4:
            return (self.address, port)
        return (self.address, port, 0, device_index(sock, self.device) if self.device else 0)


def endpoint_of(sock: socket.socket, sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> Endpoint:
    """Return the endpoint of what getsockname, getpeername or accept said."""
    if len(sockaddr) == 2:
        return Endpoint(IPv4Address(sockaddr[0]).packed)
    address = IPv6Address(sockaddr[0].partition("%")[0])
    device = device_name(sock, sockaddr[3]) if address.is_link_local and sockaddr[3] else ""
    return Endpoint(address.packed, device)


def device_index(sock: socket.socket, device: str) -> int:
    """Return the index of an interface in the namespace of ``sock``. Raises OSError."""
    try:
        answer = fcntl.ioctl(sock, _SIOCGIFINDEX, struct.pack("16sI20x", device.encode(), 0))
    except OSError as error:
        raise OSError(error.errno, f"interface {device}: {os.strerror(error.errno or 0)}") from None
    return int(struct.unpack_from("16sI", answer)[1])


def device_name(sock: socket.socket, index: int) -> str:
    """Return the name of an interface in the namespace of ``sock``, its number where it has gone."""
    try:
        answer = fcntl.ioctl(sock, _SIOCGIFNAME, struct.pack("16sI20x", b"", index))
    except OSError:
        return str(index)
    return answer[:16].rstrip(b"\0").decode()


def listening(endpoint: Endpoint, port: int, opener: OpenSocket) -> socket.socket:
    """Return a listening socket, not blocking. Raises OSError."""
    sock = opener(endpoint.family)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if endpoint.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        set_ttl(sock, MAXIMUM_TTL)  # of SYN-ACKs: peers with GTSM expect it
        sock.bind(endpoint.sockaddr(sock, port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """What a peer's connections are given besides addresses."""

    ttl: int
    """Of packets sent, 1 to 255: 1 keeps a session on its link."""
    minimum_ttl: int = 0
    """Of packets received (GTSM); 0 accepts any."""
    password: bytes | None = field(default=None, repr=False)

    def apply(self, sock: socket.socket) -> None:
        """Set everything but the password. Raises OSError."""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        set_ttl(sock, self.ttl)
        if self.minimum_ttl:
            set_minimum_ttl(sock, self.minimum_ttl)


def dialling(local: Endpoint | None, peer: Endpoint, options: TcpOptions, opener: OpenSocket) -> socket.socket:
    """Return a socket to connect to ``peer`` with. Raises OSError with the reason for people as its text."""
    sock = opener(peer.family)
    try:
        options.apply(sock)
        if options.password is not None:
            set_md5(sock, peer, options.password)
        if local is not None:
            _bind(sock, local)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, local: Endpoint) -> None:
    try:
        sock.bind(local.sockaddr(sock, 0))
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise OSError(error.errno, f"local address {local} is not an address of this node") from None
        raise


def set_ttl(sock: socket.socket, ttl: int) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)


def set_minimum_ttl(sock: socket.socket, ttl: int) -> None:
    """Have the kernel drop packets that arrive with less (RFC 5082)."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, ttl)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, ttl)


def set_md5(sock: socket.socket, peer: Endpoint, password: bytes, *, length: int | None = None) -> None:
    """Sign and check segments to and from ``peer`` (RFC 2385), on a connection or for those a listener accepts.

    ``length`` is that of a prefix which ``peer`` begins; of several keys, the one of the longest prefix counts.
    An empty password takes the key away again. Raises OSError, ValueError for one longer than MD5_KEY_LIMIT.
    """
    if len(password) > MD5_KEY_LIMIT:
        raise ValueError(f"password of {len(password)} octets, TCP-MD5 takes {MD5_KEY_LIMIT} at most")
    if peer.family == socket.AF_INET:
        address = struct.pack("=HH4s", socket.AF_INET, 0, peer.packed)
    else:
        scope = device_index(sock, peer.device) if peer.device else 0
        address = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, peer.packed, scope)
    option, flags = (_TCP_MD5SIG, 0) if length is None else (_TCP_MD5SIG_EXT, _TCP_MD5SIG_FLAG_PREFIX)
    # struct tcp_md5sig: sockaddr_storage, flags, prefix length, key length, interface index, key
    key = struct.pack("=128sBBHi80s", address, flags, length or 0, len(password), 0, password)
    sock.setsockopt(socket.IPPROTO_TCP, option, key)


def reset(sock: socket.socket) -> None:
    """Close a connection with a reset, which leaves nothing of it behind, TIME_WAIT included."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def unacknowledged(fd: int) -> int:
    """Return how many octets written to a TCP socket its peer has not acknowledged yet (SIOCOUTQ)."""
    return int(struct.unpack("i", fcntl.ioctl(fd, _SIOCOUTQ, b"\0\0\0\0"))[0])
