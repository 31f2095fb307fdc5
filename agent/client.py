"""Ask a running agent over its Unix socket, for the command line."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

DEFAULT_SOCKET = "/run/podroute/api.sock"


class AgentUnavailableError(Exception):
    """No agent answers on the socket; the text says what to do."""


class AgentRefusedError(Exception):
    """The agent answered with an error; the text is its own."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """HTTP over ``socket_path``. ``timeout`` in seconds bounds every read; None waits for ever."""

    def __init__(self, socket_path: str = DEFAULT_SOCKET, timeout: float | None = 30) -> None:
        self.socket_path = socket_path
        self.timeout = timeout

    def get(self, path: str, **query: str | float | None) -> Any:
        """Return the JSON answer of ``GET path``. Raises AgentUnavailableError, AgentRefusedError."""
        return self._whole("GET", path, query)

    def post(self, path: str, **query: str | float | None) -> Any:
        return self._whole("POST", path, query)

    def stream(self, path: str, **query: str | float | None) -> Iterator[Any]:
        """Yield the objects of an NDJSON answer as they arrive."""
        with self._explained(), self._response("GET", path, query) as response:
            for line in response:
                yield json.loads(line)

    def _whole(self, method: str, path: str, query: dict[str, str | float | None]) -> Any:
        with self._explained(), self._response(method, path, query) as response:
            return json.loads(response.read())

    def _response(self, method: str, path: str, query: dict[str, str | float | None]) -> http.client.HTTPResponse:
        given = {key: value for key, value in query.items() if value is not None}
        target = f"{path}?{urlencode(given)}" if given else path
        connection = _UnixConnection(self.socket_path, self.timeout)
        try:
            connection.request(method, target, headers={"Connection": "close"})
            response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        # The response owns the socket from here on ("Connection: close").
        if response.status >= 400:
            with response:
                raise AgentRefusedError(_error_text(response.read(), response.status))
        return response

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise AgentUnavailableError for whatever keeps an agent from answering, or from finishing its answer."""
        try:
            yield
        except PermissionError as error:
            raise AgentUnavailableError(
                f"{self.socket_path} may not be used ({error.strerror}): ask as root"
            ) from error
        except TimeoutError as error:
            raise AgentUnavailableError(
                f"the agent on {self.socket_path} does not answer within {self.timeout:g} s: stopped, or overloaded"
            ) from error
        except OSError as error:
            raise AgentUnavailableError(
                f"no agent answers on {self.socket_path} ({error.strerror or error}): "
                "start one with `podroute agent`, or name its socket with --socket"
            ) from error
        except (http.client.HTTPException, ValueError) as error:
            raise AgentUnavailableError(
                f"what answers on {self.socket_path} is no agent's API, or it broke off: name api.socket with --socket"
            ) from error


def _error_text(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {status}"
