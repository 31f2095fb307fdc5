"""Whole agents for tests: each a process of its own in a network namespace, with files and sockets of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agent.client import Client
from tests.netns import Netns

PATIENCE = 60.0
"""Seconds that anything here may take; nothing should come near it."""
_COMMAND = (sys.executable, "-c", "from agent.cli import main; main()")


class Metrics:
    """What ``/metrics`` says, by name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self.values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        whole = name if name.startswith("process_") else f"podroute_{name}"
        return self.values[whole, frozenset(labels.items())]


class Agent:
    """One node's agent. ``start`` returns when it says that it runs; ``refused`` when it says why it does not."""

    def __init__(self, ns: Netns, directory: Path, name: str, asn: int, **config: Any) -> None:
        self.ns = ns
        self.name = name
        self.directory = directory / name
        self.directory.mkdir(parents=True)
        self.file = self.directory / "podroute.yaml"
        self.socket = self.directory / "api.sock"
        self.config: dict[str, Any] = {
            "apiVersion": "podroute/v1",
            "node": {"name": name, "as": asn, "routerId": f"192.0.2.{asn % 250 + 1}"},
            "stateDir": str(self.directory / "state"),
            "store": f"sqlite://{directory}/store.db",
            "api": {"socket": str(self.socket)},
            "cni": {
                "socket": str(self.directory / "cni.sock"),
                "binDir": str(self.directory / "bin"),
                "confDir": str(self.directory / "net.d"),
            },
            **config,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.client = Client(str(self.socket), timeout=PATIENCE)
        self._log = self.directory / "agent.log"

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def spawn(self, *, wrap: tuple[str, ...] = (), env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Run the agent's command line without waiting for anything; ``wrap`` goes before it."""
        self.file.write_text(yaml.safe_dump(self.config, sort_keys=False))
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                self.ns.command(*wrap, *_COMMAND, "agent", "--config", str(self.file)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
            )
        return self.process

    async def start(self, *, wrap: tuple[str, ...] = ()) -> Agent:
        ready = self.directory / "ready.sock"
        ready.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(ready))
            listener.settimeout(0.1)
            process = self.spawn(wrap=wrap, env={"NOTIFY_SOCKET": str(ready)})
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        if (await asyncio.to_thread(listener.recv, 64)) == b"READY=1":
                            return self
                    except TimeoutError:
                        if process.poll() is not None:
                            raise AssertionError(f"{self.name} did not start:\n{self.log}") from None

    async def refused(self, *, wrap: tuple[str, ...] = ()) -> str:
        """Start it, and return the one line with which it refused to run, exit status 1."""
        process = self.spawn(wrap=wrap)
        status = await asyncio.to_thread(process.wait, PATIENCE)
        assert status == 1, self.log
        assert "Traceback" not in self.log
        refusals = [line for line in self.log.splitlines() if line.startswith(("podroute:", str(self.file)))]
        assert len(refusals) == 1, self.log
        return refusals[0]

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        process = self.process
        assert process is not None
        process.send_signal(number)
        return await asyncio.to_thread(process.wait, PATIENCE)

    async def get(self, path: str, **query: str | float) -> Any:
        return await asyncio.to_thread(self.client.get, path, **query)

    async def read(self, path: str, accept: str = "") -> tuple[int, str, str]:
        """Return status, content type and text of what the socket answers."""
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession("http://agent", connector=connector, headers={"Accept": accept}) as session,
            session.get(path) as answer,
        ):
            return answer.status, answer.headers["Content-Type"], await answer.text()

    async def metrics(self) -> Metrics:
        return Metrics((await self.read("/metrics"))[2])

    async def metrics_when(self, name: str, value: float, **labels: str) -> Metrics:
        """Scrape until a metric has a value; return all of that scrape."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await self.metrics()
                if found(name, **labels) == value:
                    return found
                await asyncio.sleep(0.05)

    async def peer(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(peer for peer in await self.get("/v1/peers") if peer["name"] == name)
        return found

    async def routes(self, **query: str | float) -> dict[str, dict[str, Any]]:
        """Return the routes by prefix."""
        found = await asyncio.to_thread(lambda: list(self.client.stream("/v1/routes", **query)))
        return {route["prefix"]: route for route in found}

    async def without(self, prefix: str) -> None:
        """Wait until a prefix is neither known nor in the kernel."""
        async with asyncio.timeout(PATIENCE):
            while True:
                if not await self.routes(prefix=prefix):
                    return
                await asyncio.sleep(0.05)

    async def converged(self) -> None:
        answer = await self.get("/v1/converged", timeout=PATIENCE)
        assert answer["converged"], (answer, self.log)

    async def until(self, probe: str, path: str, name: str = "") -> dict[str, Any]:
        """Ask a path of the API until ``probe``, a word of the answer's text, is in it; return the answer."""
        answer: Any = None
        async with asyncio.timeout(PATIENCE):
            while True:
                if name:  # a dynamic neighbour may have yet to appear
                    answer = next((peer for peer in await self.get("/v1/peers") if peer["name"] == name), None)
                elif path.startswith("/v1/routes"):
                    answer = await self.routes()
                else:
                    answer = await self.get(path)
                if probe in str(answer):
                    found: dict[str, Any] = answer
                    return found
                await asyncio.sleep(0.05)

    def command(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run the `podroute` command against this agent."""
        return subprocess.run(
            [*_COMMAND, *argv],
            capture_output=True,
            text=True,
            env={**os.environ, "PODROUTE_SOCKET": str(self.socket), "COLUMNS": "200"},
            timeout=PATIENCE,
        )

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@asynccontextmanager
async def agents() -> AsyncIterator[tuple[Path, list[Agent]]]:
    """Yield a directory short enough for Unix sockets, and a list: the agents put into it end with the block."""
    directory = Path(tempfile.mkdtemp(prefix="podroute-test-", dir="/run"))
    running: list[Agent] = []
    try:
        yield directory, running
    finally:
        for agent in running:
            agent.close()
        shutil.rmtree(directory)
