"""An agent's CNI half as a process of its own, which kills itself before a given step.

    python -m tests.kernel.cni_agent

Reads lines of JSON, one at a time: a directory, the path of the host's network namespace, a step. It forks an agent,
for importing one takes longer than most agents of a test live; that one says its process number when it listens. Steps
are counted over the kernel's and the ledger's, as they come; 0: live on.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from select import select
from typing import Any

from cni import inside, netlink, podnet
from cni.podnet import PodNetwork
from cni.server import CniServer
from tests.kernel.cni_node import Hooks, Ledger

_PR_SET_PDEATHSIG = 1


class Fuse:
    """Kills the process before its n-th step."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.burn()
            return function(*arguments, **named)

        return call

    def before_coroutine(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **named: Any) -> Any:
            self.burn()
            result = await function(*arguments, **named)
            self.burn()
            return result

        return call


async def main(directory: Path, host: int, steps: int) -> None:
    ledger = Ledger(file=directory / "ledger.json")
    server = CniServer(
        directory / "run" / "cni.sock", ledger, Hooks(), notes=directory / "notes", network=PodNetwork(), host=host
    )
    await server.start()
    fuse = Fuse(steps)
    for owner, name in ((netlink.Netlink, "transact"), (podnet, "set_sysctl"), (inside, "set_sysctl")):
        setattr(owner, name, fuse.before(getattr(owner, name)))
    for name in ("allocate", "release"):
        setattr(ledger, name, fuse.before_coroutine(getattr(ledger, name)))
    print(os.getpid(), flush=True)
    await asyncio.Event().wait()


def serve() -> None:
    """Fork an agent for each line, and wait for its end."""
    for line in sys.stdin:
        directory, host, steps = json.loads(line)
        if pid := os.fork():
            os.waitpid(pid, 0)
            continue
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            asyncio.run(main(Path(directory), os.open(host, os.O_RDONLY), steps))
        except BaseException:
            traceback.print_exc()
            print("failed", flush=True)
        finally:
            os._exit(1)


class Agents:
    """Starts agents, one at a time; they go with this process."""

    def __init__(self) -> None:
        command = ("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", __name__)
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        with self._process:
            self._process.kill()

    def start(self, directory: Path, host: str, steps: int) -> Agent:
        """Return an agent that listens; blocks."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([str(directory), host, steps]), file=self._process.stdin, flush=True)
        return Agent(int(self._process.stdout.readline()))


class Agent:
    def __init__(self, pid: int) -> None:
        self._process = os.pidfd_open(pid)

    @property
    def lives(self) -> bool:
        return not select([self._process], [], [], 0)[0]

    def kill(self) -> None:
        """Kill it where it lives, and return when it has ended."""
        if self.lives:
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
        select([self._process], [], [])
        os.close(self._process)


if __name__ == "__main__":
    serve()
