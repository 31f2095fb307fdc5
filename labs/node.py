"""One node of a running lab: run commands in it, ask its FRR, ping from it, stop and start its process."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from labs.agents import AgentApi
from labs.errors import CommandError, LabError
from labs.namespaces import Namespaces, Stream
from labs.processes import LAB, NODE, Process, await_end
from labs.waiting import off_loop

T = TypeVar("T")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Result:
    """What a command printed, and its exit status (negative: the signal that ended it)."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Ping:
    """What ping(8) counted."""

    sent: int
    received: int
    output: str

    @property
    def lost(self) -> int:
        return self.sent - self.received

    def __bool__(self) -> bool:
        """All packets were answered."""
        return self.sent > 0 and self.received == self.sent


def search_path() -> str:
    """Return the PATH of nodes: the programs of the virtual environment that runs this, then the system's."""
    return f"{Path(sys.executable).parent}:{PATH}"


class Node:
    def __init__(
        self,
        lab: str,
        name: str,
        namespaces: Namespaces,
        *,
        directory: Path,
        command: Sequence[str],
        env: Mapping[str, str],
        image: str = "",
    ) -> None:
        self.lab = lab
        self.name = name
        self.namespaces = namespaces
        self.directory = directory
        """Where the runner keeps this node's logs and its process number, on the host."""
        self.command = tuple(command)
        self.image = image
        self.env = {"HOME": "/root", "LANG": "C.UTF-8", "PATH": search_path(), **env, LAB: lab, NODE: name}
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def root(self) -> Path:
        """The node's files as seen from here: ``node.root / "run/podroute/api.sock"``."""
        return Path(f"/proc/{self.namespaces.holder.pid}/root")

    @property
    def netns(self) -> str:
        """Path of the node's network namespace, usable from here."""
        return self.namespaces.path("net")

    @property
    def agent(self) -> AgentApi:
        """The API of the agent in this node."""
        return AgentApi(self.name, self.root)

    @property
    def log(self) -> Path:
        """What the node's own command has printed, on the host."""
        return self.directory / "command.log"

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in a thread inside the node; sockets opened there stay in the node."""
        return self.namespaces.call(function)

    def popen(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = subprocess.DEVNULL,
        stderr: Stream = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start a program in the node as a child of this process. What still runs when the lab goes down is killed.

        Raises LabError where there is no such program.
        """
        try:
            process = self.namespaces.spawn(
                argv, env={**self.env, **(env or {})}, stdin=stdin, stdout=stdout, stderr=stderr
            )
        except OSError as error:
            raise LabError(f"node {self.name}: {argv[0]}: {error.strerror}, PATH is {self.env['PATH']}") from None
        self._children = [child for child in self._children if child.poll() is None]
        self._children.append(process)
        return process

    async def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 60.0,  # noqa: ASYNC109
        input: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command in the node and return what it printed. No shell is involved.

        Raises CommandError where it fails (unless ``check`` is false) or takes more than ``timeout`` seconds.
        """
        process = self.popen(*argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            stdout, stderr = await off_loop(lambda: process.communicate(input.encode(), timeout), abandon=True)
        except subprocess.TimeoutExpired:
            stdout, stderr = await self._stop(process)
            text = f"node {self.name}: {shlex.join(argv)}: no end within {timeout:g} s"
            raise CommandError(text, returncode=None, stdout=stdout.decode(), stderr=stderr.decode()) from None
        except asyncio.CancelledError:
            process.kill()
            raise
        result = Result(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
        if check and result.returncode:
            said = (result.stderr or result.stdout).strip()
            text = f"node {self.name}: {shlex.join(argv)}: exit status {result.returncode}: {said}"
            raise CommandError(text, returncode=result.returncode, stdout=result.stdout, stderr=result.stderr)
        return result

    async def frr(self, *commands: str) -> str:
        """Run commands in FRR's shell and return what they print."""
        arguments = [word for command in commands for word in ("-c", command)]
        return (await self.run("vtysh", *arguments)).stdout

    async def frr_json(self, command: str) -> Any:
        """Return the answer to a command of FRR's shell, ``"show bgp summary json"``."""
        text = await self.frr(command)
        try:
            return json.loads(text)
        except ValueError:
            raise LabError(f"node {self.name}: `{command}` did not answer in JSON: {text.strip()[:200]}") from None

    async def ping(
        self,
        destination: str,
        *,
        count: int = 1,
        source: str | None = None,
        interval: float = 0.01,
        wait: float = 1.0,
        size: int | None = None,
    ) -> Ping:
        """Send echo requests, one per ``interval`` seconds; wait ``wait`` seconds for answers to the last."""
        argv = ["ping", "-n", "-c", str(count), "-i", str(interval), "-W", str(wait)]
        argv += ["-I", source] if source else []
        argv += ["-s", str(size)] if size is not None else []
        result = await self.run(*argv, destination, check=False, timeout=count * (interval + 1) + wait + 60)
        counted = re.search(r"(\d+) packets transmitted, (\d+) received", result.stdout)
        sent, received = (int(counted[1]), int(counted[2])) if counted else (0, 0)
        return Ping(sent, received, result.stdout + result.stderr)

    # The process that the node's image or command stands for

    @property
    def process(self) -> Process | None:
        """The node's own command while it runs."""
        try:
            pid, start = self._record.read_text().split()
        except (OSError, ValueError):
            # Never started, or ended at once.
            return None
        process = Process(int(pid), int(start))
        return process if process.running() else None

    def start(self) -> None:
        """Start the node's own command; its output is appended to ``log``. Raises LabError."""
        if not self.command:
            raise LabError(f"node {self.name}: its definition has no cmd")
        if self.process:
            raise LabError(f"node {self.name}: its command runs already")
        with open(self.log, "ab") as log:
            process = self.namespaces.background(self.command, env=self.env, log=log)
        self._record.write_text(f"{process.pid} {process.start}\n" if process else "")

    async def stop(self, number: int = signal.SIGTERM, *, timeout: float = 60.0) -> None:  # noqa: ASYNC109
        """Send the node's own command a signal and wait until it is gone. Raises LabError after ``timeout`` seconds."""
        process = self.process
        if process is None:
            return
        process.kill(number)
        if await off_loop(lambda: await_end([process], timeout)):
            raise LabError(f"node {self.name}: {shlex.join(self.command)}: runs {timeout:g} s after signal {number}")

    def logs(self) -> str:
        """Return everything that the node's command and daemons have written to their logs."""
        parts = []
        for path in sorted(self.directory.rglob("*.log")):
            with suppress(OSError):
                parts.append(f"== {self.name}: {path.name}\n{path.read_text(errors='replace')}")
        return "\n".join(parts)

    def reap(self) -> None:
        """Collect the exit status of what ran in the node and was killed. Blocks."""
        for child in self._children:
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream:
                    with suppress(OSError):
                        stream.close()
        self.namespaces.reap()

    @property
    def _record(self) -> Path:
        return self.directory / "process"

    async def _stop(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        process.kill()
        try:
            return await off_loop(lambda: process.communicate(timeout=1))
        except subprocess.TimeoutExpired:
            # Something it started holds its output open.
            return b"", b""
