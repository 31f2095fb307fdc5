"""An agent's CNI half as a process of its own, which kills itself before a given step.

    python -m tests.kernel.cni_agent DIRECTORY HOST_NETNS STEP

Steps are counted over the kernel's and the ledger's, as they come; 0: live on. Says "ready" when it listens.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cni import inside, netlink, podnet
from cni.podnet import PodNetwork
from cni.server import CniServer
from tests.kernel.cni_node import Hooks, Ledger


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
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), os.open(sys.argv[2], os.O_RDONLY), int(sys.argv[3])))
