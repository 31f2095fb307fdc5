"""The agent of a lab's node, asked over its own API socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from agent.client import AgentRefusedError, AgentUnavailableError, Client
from labs.errors import LabError
from labs.waiting import off_loop

SOCKET = "run/podroute/api.sock"


class AgentApi:
    """Every method raises LabError where no agent answers, or where it refuses."""

    def __init__(self, node: str, root: Path) -> None:
        self._node = node
        self._socket = root / SOCKET

    @property
    def present(self) -> bool:
        """There is a socket; an agent that was killed leaves one behind too."""
        return self._socket.exists()

    async def get(self, path: str, *, patience: float = 30.0, **query: str | float) -> Any:
        """Return the JSON answer of ``GET path``, ``"/v1/status"``; ``patience`` in seconds."""
        client = Client(str(self._socket), timeout=patience)
        return await self._ask(lambda: client.get(path, **query))

    async def post(self, path: str, **query: str | float) -> Any:
        """Return the JSON answer of ``POST path``, ``"/v1/peers/tor-v4/shutdown"``."""
        client = Client(str(self._socket))
        return await self._ask(lambda: client.post(path, **query))

    async def routes(self, **query: str | float) -> list[Any]:
        """Return the objects of ``/v1/routes``, with its parameters ``family``, ``prefix`` and ``limit``."""
        client = Client(str(self._socket))
        return list(await self._ask(lambda: list(client.stream("/v1/routes", **query))))

    async def blocks(self) -> list[str]:
        """Return the prefixes of the node's blocks, IPv4 first."""
        found = [block["prefix"] for block in await self.get("/v1/blocks")]
        return sorted(found, key=lambda prefix: (":" in prefix, prefix))

    async def answering(self, *, timeout: float = 60.0) -> None:  # noqa: ASYNC109
        """Wait until the agent answers; it is asked again every few milliseconds while it starts."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            try:
                if self.present:
                    await self.get("/v1/status")
                    return
                why = "no socket"
            except LabError as error:
                why = str(error)
            if loop.time() > deadline:
                raise LabError(f"node {self._node}: its agent does not answer within {timeout:g} s: {why}")
            await asyncio.sleep(0.02)

    async def converged(self, *, timeout: float = 60.0) -> None:  # noqa: ASYNC109
        """Wait until the agent answers and the node has converged. Raises LabError with what it still waits for."""
        await self.answering(timeout=timeout)
        answer = await self.get("/v1/converged", patience=timeout + 10, timeout=timeout)
        if not answer["converged"]:
            reasons = "; ".join(answer["waitingFor"])
            raise LabError(f"node {self._node} has not converged within {timeout:g} s, it waits for: {reasons}")

    async def _ask(self, question: Any) -> Any:
        try:
            return await off_loop(question, abandon=True)
        except (AgentUnavailableError, AgentRefusedError, OSError, ValueError) as error:
            raise LabError(f"node {self._node}: {error}") from None
