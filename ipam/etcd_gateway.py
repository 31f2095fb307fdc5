"""Calls to etcd's JSON gateway (etcd v3, 3.4 and later): which member to ask, who we are, what a failure means.

The gateway is gRPC as JSON: octets are base64, 64-bit integers are strings, and whatever is false, 0 or empty is left
out of an answer. https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import aiohttp

from ipam.errors import StoreDeniedError, StoreError, StoreUnavailableError

log = logging.getLogger("podroute.ipam")

Json = dict[str, Any]
Endpoint = tuple[str, int]

TIMEOUT = 5.0
"""Seconds that one member may take for one call."""
_CONNECT = 0.4
"""How much of that until there is a connection."""
_IDLE = 3.0
"""Seconds of silence on a stream before its member is asked whether it still lives."""

# gRPC status codes
_INVALID_ARGUMENT, _NOT_FOUND, _DENIED, _EXHAUSTED, _UNAVAILABLE, _UNAUTHENTICATED = 3, 5, 7, 8, 14, 16
_NOT_PROPOSED = ("etcdserver: no leader", "etcdserver: not capable", "etcdserver: server stopped")
"""Refusals that are sure to have changed nothing."""
_NO_AUTHENTICATION = "authentication is not enabled"
_OLD_TOKEN = "revision of auth store is old"
"""Users or roles have changed since a token that says of when it is (JWT) was given."""


class NotFoundError(Exception):
    """What a call names is not there."""


class _Failure(Exception):  # noqa: N818 (never leaves this module)
    """One member failed; ``sure``: it has changed nothing."""

    def __init__(self, why: str, *, sure: bool) -> None:
        super().__init__(why)
        self.sure = sure


class Gateway:
    """One client of one etcd cluster. Calls may run side by side; all belong to one event loop."""

    def __init__(
        self,
        url: str,
        endpoints: Sequence[Endpoint],
        *,
        tls: ssl.SSLContext | None = None,
        user: str | None = None,
        password: str = "",
        timeout: float = TIMEOUT,
        first: int | None = None,
    ) -> None:
        """``first``: the number of the member to begin with; None: any."""
        self.url = url
        self._scheme = "https" if tls else "http"
        self._tls = tls
        self._endpoints = list(endpoints)
        self._next = random.randrange(len(self._endpoints)) if first is None else first
        self._user = user
        self._password = password
        self._timeout = timeout
        self._connect = _CONNECT * timeout
        self._limits = aiohttp.ClientTimeout(total=timeout, sock_connect=self._connect)
        self._token: str | None = None
        self._session: aiohttp.ClientSession | None = None
        self.calls = 0
        """Round trips so far."""

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def open(self) -> None:
        connector = aiohttp.TCPConnector(limit=64, ssl=True if self._tls is None else self._tls)
        self._session = aiohttp.ClientSession(connector=connector)

    async def call(self, path: str, body: Json, *, repeatable: bool) -> Json:
        """Ask one member after the other until one answers.

        ``repeatable``: whether the same call may be made again when it is not known whether it was carried out.
        Raises StoreUnavailableError, StoreDeniedError, StoreError, NotFoundError.
        """
        why: list[str] = []
        for _ in range(len(self._endpoints)):
            index = self._next
            try:
                return await self._call_as_user(self._endpoints[index], path, body)
            except _Failure as failure:
                why.append(f"{_name(self._endpoints[index])}: {failure}")
                self._fail_over(index)
                if not failure.sure and not repeatable:
                    text = "; what was asked of it may have happened or not"
                    raise StoreUnavailableError(self._unavailable(why) + text) from failure
        raise StoreUnavailableError(self._unavailable(why))

    async def stream(self, path: str, body: Json) -> AsyncGenerator[Json, None]:
        """Yield the messages of a call that has no end. Raises as ``call`` does, and when the member is lost."""
        index = self._next
        endpoint = self._endpoints[index]
        try:
            async with aclosing(self._messages(endpoint, path, body)) as messages:
                async for message in messages:
                    yield message
        except _Failure as failure:
            self._fail_over(index)
            raise StoreUnavailableError(self._unavailable([f"{_name(endpoint)}: {failure}"])) from failure
        except _StaleTokenError as error:
            raise StoreUnavailableError(f"store {self.url} does not know us any more: authenticating again") from error

    def _fail_over(self, index: int) -> None:
        """Let the next call begin with another member, unless somebody saw to it already."""
        if self._next == index:
            self._next = (index + 1) % len(self._endpoints)

    def _unavailable(self, why: Sequence[str]) -> str:
        return f"store {self.url} does not answer ({'; '.join(why)})"

    # One member

    async def _call_as_user(self, endpoint: Endpoint, path: str, body: Json) -> Json:
        if self._user is not None and self._token is None:
            self._token = await self._authenticate(endpoint)
        token = self._token
        try:
            return await self._once(endpoint, path, body)
        except _StaleTokenError:
            if self._token == token:
                self._token = await self._authenticate(endpoint)
        try:
            return await self._once(endpoint, path, body)
        except _StaleTokenError as error:
            raise _Failure("refuses the token that it has just given", sure=True) from error

    async def _authenticate(self, endpoint: Endpoint) -> str:
        answer = await self._once(endpoint, "/auth/authenticate", {"name": self._user, "password": self._password})
        return str(answer["token"])

    async def _once(self, endpoint: Endpoint, path: str, body: Json) -> Json:
        try:
            async with self._request(endpoint, path, body) as response:
                text = await response.read()
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise self._lost(error) from error
        answer = _parse(text, response.status)
        if response.status != 200:
            self._refuse(answer, path)
        return answer

    async def _messages(self, endpoint: Endpoint, path: str, body: Json) -> AsyncGenerator[Json, None]:
        if self._user is not None:
            self._token = await self._authenticate(endpoint)
        forever = aiohttp.ClientTimeout(total=None, sock_connect=self._connect)
        rest = b""
        try:
            async with self._request(endpoint, path, body, forever) as response:
                if response.status != 200:
                    self._refuse(_parse(await response.read(), response.status), path)
                while True:
                    try:
                        async with asyncio.timeout(_IDLE):
                            chunk = await response.content.readany()
                    except TimeoutError:
                        await self._check(endpoint)
                        continue
                    if not chunk:
                        raise _Failure("closed the stream", sure=True)
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in filter(None, lines):
                        message = _parse(line, 200)
                        if "error" in message:
                            self._refuse(message["error"], path)
                        yield message.get("result", {})
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise self._lost(error) from error

    async def _check(self, endpoint: Endpoint) -> None:
        """Raise _Failure where a silent member has stopped, or has lost its cluster."""
        status = await self._call_as_user(endpoint, "/maintenance/status", {})
        if not int(status.get("leader", 0)):
            raise _Failure("has no leader", sure=True)

    def _request(self, endpoint: Endpoint, path: str, body: Json, limits: aiohttp.ClientTimeout | None = None) -> Any:
        if self._session is None:
            raise StoreError(f"store {self.url} is not open")
        self.calls += 1
        headers = {"Authorization": self._token} if self._token and path != "/auth/authenticate" else {}
        target = f"{self._scheme}://{_name(endpoint)}/v3{path}"
        return self._session.post(target, data=json.dumps(body), headers=headers, timeout=limits or self._limits)

    def _refuse(self, answer: Json, path: str) -> None:
        """Raise what a refusal means."""
        text = str(answer.get("message") or answer.get("error") or "no reason given")
        code = answer.get("code", answer.get("grpc_code", 0))
        if code == _UNAVAILABLE or "request timed out" in text or "too many requests" in text:
            raise _Failure(text, sure=text in _NOT_PROPOSED or "connection refused" in text)
        stale = code == _UNAUTHENTICATED or _OLD_TOKEN in text
        if stale and self._user is not None and path != "/auth/authenticate":
            raise _StaleTokenError
        if code == _NOT_FOUND:
            raise NotFoundError(text)
        who = f"as user {self._user}" if self._user else "without a user"
        if code in (_DENIED, _UNAUTHENTICATED) or "authentication" in text or "user name is empty" in text:
            right = (
                "set user and passwordFile under `store`, and give that user a role with read and write on the prefix "
                "/podroute/v1/"
            )
            if _NO_AUTHENTICATION in text:
                right = "turn it on (etcdctl auth enable), or leave user and passwordFile out"
            raise StoreDeniedError(f"store {self.url} refuses us {who} ({text}): {right}")
        if code == _EXHAUSTED:
            raise StoreError(
                f"store {self.url} is full ({text}): compact and defragment it, then disarm its alarm (etcdctl)"
            )
        raise StoreError(f"store {self.url} refuses {path}: {text}")

    def _lost(self, error: Exception) -> _Failure:
        """Say what became of a connection."""
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return _Failure(f"its certificate is not trusted: {error.certificate_error}", sure=True)
        if isinstance(error, aiohttp.ClientConnectorError):
            return _Failure(str(error.os_error.strerror or error.os_error), sure=True)
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return _Failure(f"no connection within {self._connect:g} s", sure=True)
        if isinstance(error, TimeoutError):
            return _Failure(f"no answer within {self._timeout:g} s", sure=False)
        return _Failure(f"connection lost ({error or type(error).__name__})", sure=False)


class _StaleTokenError(Exception):
    """The token has expired, or the member has been started anew."""


def _name(endpoint: Endpoint) -> str:
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse(text: bytes, status: int) -> Json:
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise _Failure(f"answers what no etcd does (HTTP status {status}: {text[:60]!r})", sure=status == 404)
