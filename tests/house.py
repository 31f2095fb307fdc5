"""A router of a test in namespaces of its own.

It has a mount and a process namespace beside its network namespace: its files are where it expects them, other routers
and the host do not see them, and all of it goes when the test ends or is killed.
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.netns import Netns

PATIENCE = 60.0
"""Seconds that a daemon may take to start or to end."""
BIRD_CONF = "/run/bird/bird.conf"
GOBGP_CONF, GOBGP_LOG = "/run/gobgp/gobgp.toml", "/run/gobgp/log"

_HOUSE = """set -e
mount -t tmpfs -o mode=755 house /run
for directory in $1; do
    mkdir -p $directory
    mount -t tmpfs -o mode=755,uid=$(id -u $0),gid=$(id -g $0) house $directory
done
echo mounted
while :; do sleep 3600; done
"""


class House:
    """Runs commands in a mount and a process namespace inside ``ns``.

    ``directories`` are empty and private, owned by ``user``; ``files`` go into them by path. Those that the host lacks
    are in /run, which is the house's own: one made elsewhere would stay on the host, and be taken for a lab's leftover.
    """

    def __init__(self, ns: Netns, directories: Sequence[str], files: Mapping[str, str], *, user: str = "root") -> None:
        argv = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._house = subprocess.Popen(
            ns.command(*argv, "sh", "-c", _HOUSE, user, " ".join(directories)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_us,
        )
        assert self._house.stdout is not None
        if self._house.stdout.readline() != "mounted\n":
            raise AssertionError("no namespaces for a router")
        pid = self._house.pid
        self._inside = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        for path, text in files.items():
            self.run("sh", "-c", 'cat > "$0"', path, stdin=text)

    def run(self, *argv: str, stdin: str = "") -> str:
        """Run a command inside and return its output. Raises AssertionError with what it printed."""
        # nsenter forks for the process namespace; the child's exit status is its own
        enter = ["nsenter", "--mount", "--pid", "--net", "--target", str(self._inside), *argv]
        done = subprocess.run(enter, input=stdin, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def begin(self, *argv: str, log: str = "/dev/null") -> None:
        """Start a command inside that stays, and is started again when it dies."""
        self.run("sh", "-c", f"while :; do {' '.join(argv)}; sleep 0.2; done >>{log} 2>&1 &")

    def until(self, test: str, what: str) -> None:
        """Wait until a shell command succeeds inside. Raises AssertionError."""
        script = f"for i in $(seq {int(PATIENCE / 0.02)}); do {test} && exit 0; sleep 0.02; done; exit 1"
        try:
            self.run("sh", "-c", script)
        except (AssertionError, subprocess.TimeoutExpired):
            raise AssertionError(f"{what} did not happen") from None

    def end(self, pid: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End a process inside and wait until it is gone."""
        self.run("kill", f"-{int(how)}", pid)
        self.until(f"! kill -0 {pid} 2>/dev/null", f"end of process {pid}")

    def close(self) -> None:
        self._house.kill()
        self._house.wait()
        assert self._house.stdout is not None
        self._house.stdout.close()


class Bird:
    """BIRD 2, configured with ``config``; it has protocol ``device`` already. ``recovering``: from a restart."""

    def __init__(self, ns: Netns, config: str, *, recovering: bool = False) -> None:
        config = f'log "/run/bird/log" all;\nprotocol device {{ scan time 1; }}\n{config}\n'
        self.house = House(ns, ("/run/bird",), {BIRD_CONF: config})
        self.house.run("bird", "-p", "-c", BIRD_CONF)
        argv = ["bird", "-c", BIRD_CONF, "-s", "/run/bird/bird.ctl", "-P", "/run/bird/pid"]
        self.house.run(*argv, *(["-R"] if recovering else []))
        self.house.until("birdc -s /run/bird/bird.ctl show status >/dev/null", "start of BIRD")

    def birdc(self, command: str) -> str:
        return self.house.run("birdc", "-r", "-s", "/run/bird/bird.ctl", *command.split())

    def command(self, command: str) -> str:
        """Run a command that changes something."""
        return self.house.run("birdc", "-s", "/run/bird/bird.ctl", *command.split())

    def close(self) -> None:
        self.house.close()


class Gobgp:
    """GoBGP, configured with ``config`` in TOML. It installs no routes. ``recovering``: from a restart."""

    def __init__(self, ns: Netns, config: str, *, recovering: bool = False) -> None:
        self.house = House(ns, ("/run/gobgp",), {GOBGP_CONF: config})
        self.house.begin(
            "gobgpd",
            "-f",
            GOBGP_CONF,
            "--pprof-disable",
            "--api-hosts",
            "127.0.0.1:50051",
            *(["--graceful-restart"] if recovering else []),
            log=GOBGP_LOG,
        )
        self.house.until("gobgp global >/dev/null 2>&1", "start of GoBGP")

    def gobgp(self, command: str) -> str:
        return self.house.run("gobgp", *command.split())

    def show(self, command: str) -> object:
        """Return what ``gobgp COMMAND -j`` says."""
        return json.loads(self.gobgp(f"{command} -j"))

    def close(self) -> None:
        self.house.close()


def die_with_us() -> None:
    """Have the kernel kill a child process when its parent dies; for ``preexec_fn``."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
