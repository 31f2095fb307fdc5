"""FRR's zebra and bgpd in a network namespace of a test."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.house import House
from tests.netns import Netns

DAEMONS = Path("/usr/lib/frr")


class Frr:
    """A router configured with ``config``, as ``vtysh`` takes it; ``options`` are more arguments by daemon."""

    def __init__(self, ns: Netns, config: str, *, options: Mapping[str, Sequence[str]] | None = None) -> None:
        self._options = options or {}
        files = {
            "/etc/frr/frr.conf": f"frr defaults datacenter\nlog file /var/log/frr/log\n{config}\n",
            "/etc/frr/vtysh.conf": "service integrated-vtysh-config\n",
        }
        self._house = House(ns, ("/etc/frr", "/var/run/frr", "/var/log/frr"), files, user="frr")
        for name in ("zebra", "bgpd"):
            self.start(name)
        self.vtysh("-b")

    def start(self, name: str) -> None:
        """Start a daemon and wait until vtysh reaches it."""
        self.run(str(DAEMONS / name), "-d", "-A", "127.0.0.1", "-P", "0", *self._options.get(name, ()))
        self._house.until(f"test -S /var/run/frr/{name}.vty", f"start of {name}")

    def end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon: as an operator does, or with SIGKILL as a crash does."""
        self._house.end(self.run("cat", f"/var/run/frr/{name}.pid").strip(), how)
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
        return self._house.run(*argv)

    def close(self) -> None:
        self._house.close()
