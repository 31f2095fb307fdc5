"""Inside a lab node: stop its agent, or start it and wait until it serves. For the conformance suite's commands.

python -m tests.runtime.agent_switch stop|start
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

COMMAND = ("podroute", "agent", "--config", "/etc/podroute/podroute.yaml")
SOCKET = Path("/run/podroute/cni.sock")


def agents() -> list[int]:
    """Return the process numbers of agents: a node sees its own processes only."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if b"agent" in words and words[-2:-1] == [COMMAND[-1].encode()] and state != "Z":
                found.append(int(entry.name))
    return found


def stop() -> None:
    for pid in agents():
        os.kill(pid, signal.SIGTERM)
    _await(lambda: not agents())


def start() -> None:
    SOCKET.unlink(missing_ok=True)
    with open("/run/agent.log", "ab") as log:
        subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    _await(lambda: SOCKET.exists() and not subprocess.run([*COMMAND[:1], "status"], capture_output=True).returncode)
    subprocess.run(["podroute", "wait-converged", "--timeout", "60"], check=True, stdout=subprocess.DEVNULL)


def _await(held: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not held():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


if __name__ == "__main__":
    {"stop": stop, "start": start}[sys.argv[1]]()
