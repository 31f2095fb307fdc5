"""FRR's zebra and bgpd in a network namespace of a test.

A router has a mount and a process namespace of its own: its files are where FRR expects them, other routers and the
host do not see them, and all of it goes when the test ends or is killed.
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.netns import Netns

DAEMONS = Path("/usr/lib/frr")
PATIENCE = 20.0
"""Seconds that a daemon may take to start or to end."""

_HOUSE = """set -e
for directory in /etc/frr /var/run/frr /var/log/frr; do
    mkdir -p $directory
    mount -t tmpfs -o mode=755,uid=$(id -u frr),gid=$(id -g frr) frr $directory
done
cat > /etc/frr/frr.conf
echo service integrated-vtysh-config > /etc/frr/vtysh.conf
echo ready
while :; do sleep 3600; done
"""


class Frr:
    """A router configured with ``config``, as ``vtysh`` takes it; ``options`` are further ones of its daemons."""

    def __init__(self, ns: Netns, config: str, *, options: Mapping[str, Sequence[str]] | None = None) -> None:
        self._options = options or {}
        argv = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "sh", "-c", _HOUSE]
        self._house = subprocess.Popen(
            ns.command(*argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_die_with_us
        )
        assert self._house.stdin is not None
        assert self._house.stdout is not None
        self._house.stdin.write(f"frr defaults datacenter\nlog file /var/log/frr/log\n{config}\n")
        self._house.stdin.close()
        if self._house.stdout.readline() != "ready\n":
            raise AssertionError("no namespaces for FRR")
        pid = self._house.pid
        self._inside = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        for name in ("zebra", "bgpd"):
            self.start(name)
        self.vtysh("-b")

    def start(self, name: str) -> None:
        """Start a daemon and wait until vtysh reaches it."""
        self.run(str(DAEMONS / name), "-d", "-A", "127.0.0.1", "-P", "0", *self._options.get(name, ()))
        self._until(f"test -S /var/run/frr/{name}.vty", f"start of {name}")

    def end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon: as an operator does, or with SIGKILL as a crash does."""
        pid = self.run("cat", f"/var/run/frr/{name}.pid").strip()
        self.run("kill", f"-{int(how)}", pid)
        self._until(f"! kill -0 {pid} 2>/dev/null", f"end of {name}")
        self.run("rm", "-f", f"/var/run/frr/{name}.vty")

    def vtysh(self, *argv: str) -> str:
        return self.run("vtysh", *argv)

    def show(self, command: str) -> Any:
        """Return what ``show COMMAND json`` says."""
        return json.loads(self.vtysh("-c", f"show {command} json") or "{}")

    def configure(self, *lines: str) -> None:
        argv = ["-c", "configure terminal"]
        for line in lines:
            argv += ["-c", line]
        self.vtysh(*argv)

    def run(self, *argv: str) -> str:
        # nsenter forks for the process namespace; the child's exit status is its own
        enter = ["nsenter", "--mount", "--pid", "--net", "--target", str(self._inside), *argv]
        done = subprocess.run(enter, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def close(self) -> None:
        self._house.kill()
        self._house.wait()
        assert self._house.stdout is not None
        self._house.stdout.close()

    def _until(self, test: str, what: str) -> None:
        script = f"for i in $(seq {int(PATIENCE / 0.02)}); do {test} && exit 0; sleep 0.02; done; exit 1"
        try:
            self.run("sh", "-c", script)
        except (AssertionError, subprocess.TimeoutExpired):
            raise AssertionError(f"{what} did not happen") from None


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
