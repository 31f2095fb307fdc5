"""etcd for tests: members on loopback addresses of their own, which needs neither root nor configuration."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = 30.0
CLIENT_PORT, PEER_PORT = 2379, 2380

needs_etcd = pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: run `sudo make setup`")


class Etcd:
    """A cluster. Its members are processes in a directory of their own; close ends and removes all of it."""

    def __init__(
        self,
        members: int = 1,
        *,
        hosts: Sequence[str] = (),
        arguments: Sequence[str] = (),
        scheme: str = "http",
        wrap: Sequence[str] = (),
    ) -> None:
        """``hosts``: addresses of the members, in place of loopback ones. ``wrap``: what goes before every command
        line, to enter a namespace for one.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="etcd-"))
        self.hosts = list(hosts) or [_unused_address() for _ in range(members)]
        self.url = "etcd://" + ",".join(self.hosts)
        self._arguments = arguments
        self._scheme = scheme
        self._wrap = wrap
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * len(self.hosts)

    def start(self) -> Etcd:
        for index in range(len(self.hosts)):
            self.start_member(index)
        self.wait_healthy()
        return self

    def start_member(self, index: int) -> None:
        host, scheme = self.hosts[index], self._scheme
        everybody = ",".join(f"m{number}=http://{other}:{PEER_PORT}" for number, other in enumerate(self.hosts))
        with open(self.directory / f"m{index}.log", "ab") as log:
            self._processes[index] = subprocess.Popen(
                [
                    *self._wrap,
                    *("setpriv", "--pdeathsig", "KILL"),  # whatever becomes of the tests
                    "etcd",
                    *("--name", f"m{index}", "--data-dir", str(self.directory / f"m{index}")),
                    *("--listen-client-urls", f"{scheme}://{host}:{CLIENT_PORT}"),
                    *("--advertise-client-urls", f"{scheme}://{host}:{CLIENT_PORT}"),
                    *("--listen-peer-urls", f"http://{host}:{PEER_PORT}"),
                    *("--initial-advertise-peer-urls", f"http://{host}:{PEER_PORT}"),
                    *("--initial-cluster", everybody),
                    *("--heartbeat-interval", "50", "--election-timeout", "500"),
                    *("--logger", "zap", "--log-level", "error"),
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "ETCD_UNSUPPORTED_ARCH": os.uname().machine},
            )

    def wait_healthy(self) -> None:
        """Return when a write is possible."""
        done = self.etcdctl("endpoint", "health", check=False)
        assert "is healthy" in done, done

    def etcdctl(self, *words: str, check: bool = True, arguments: Sequence[str] = ()) -> str:
        """Return what it prints. Raises AssertionError with that where it fails, unless ``check`` is false."""
        endpoints = ",".join(f"{self._scheme}://{host}:{CLIENT_PORT}" for host in self.hosts)
        patience = f"{PATIENCE:g}s"
        timeouts = ("--command-timeout", patience, "--dial-timeout", patience)
        done = subprocess.run(
            [*self._wrap, "etcdctl", "--endpoints", endpoints, *timeouts, *arguments, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "ETCDCTL_API": "3"},
        )
        if check and done.returncode:
            raise AssertionError(f"etcdctl {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def signal(self, index: int, number: int) -> None:
        process = self._processes[index]
        assert process is not None
        process.send_signal(number)

    def kill(self, index: int) -> None:
        process, self._processes[index] = self._processes[index], None
        if process is not None:
            process.kill()
            process.wait()

    def leader(self) -> int:
        """Return the index of the member that leads."""
        deadline = time.monotonic() + PATIENCE
        while True:  # on a busy machine they may be about to elect another one
            rows = [row.split(", ") for row in self.etcdctl("endpoint", "status", check=False).splitlines()]
            for host in (row[0] for row in rows if row[4:5] == ["true"]):
                return self.hosts.index(host.partition("://")[2].rpartition(":")[0])
            assert time.monotonic() < deadline, rows

    def close(self) -> None:
        for index in range(len(self.hosts)):
            self.kill(index)
        shutil.rmtree(self.directory)


@contextmanager
def etcd(members: int = 1) -> Iterator[Etcd]:
    cluster = Etcd(members)
    try:
        yield cluster.start()
    finally:
        cluster.close()


def _unused_address() -> str:
    """Return an address of 127.0.0.0/8, all of which is this machine's, that nobody uses."""
    while True:
        host = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        try:
            for port in (CLIENT_PORT, PEER_PORT):
                with socket.create_server((host, port)):
                    pass
        except OSError:
            continue
        return host
