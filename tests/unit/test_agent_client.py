"""What the command line says when no agent answers, another program does, or its output cannot be written."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from agent.client import AgentUnavailableError, Client

ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: "


@contextmanager
def answering(path: Path, octets: bytes) -> Iterator[None]:
    """Have somebody say this to whoever connects first."""

    def serve() -> None:
        with listener.accept()[0] as made:
            made.recv(4096)
            made.sendall(octets)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize("octets", [b"SSH-2.0-OpenSSH\r\n", ANSWER + b"2\r\n\r\n{", ANSWER + b"90\r\n\r\n[]"])
def test_what_is_no_agent_or_breaks_off(tmp_path: Path, octets: bytes) -> None:
    path = tmp_path / "api.sock"
    with answering(path, octets), pytest.raises(AgentUnavailableError) as caught:
        Client(str(path)).get("/v1/status")
    assert str(caught.value) == (
        f"what answers on {path} is no agent's API, or it broke off: name api.socket with --socket"
    )


def test_no_agent(tmp_path: Path) -> None:
    with pytest.raises(
        AgentUnavailableError, match=r"no agent answers on .*api.sock \(No such file .*: start one with"
    ):
        Client(str(tmp_path / "api.sock")).get("/v1/status")


def test_an_agent_that_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(AgentUnavailableError, match=r"does not answer within 0.01 s: stopped, or overloaded$"):
            list(Client(str(path), timeout=0.01).stream("/v1/routes"))


@pytest.mark.root
def test_a_socket_of_roots_says_who_may_ask(tmp_path: Path) -> None:
    """As another user: that an agent should be started would be the wrong advice."""
    (tmp_path / "locked").mkdir(mode=0o700)
    code = (
        f"import os, sys; sys.path[:0] = {sys.path!r}; from agent.client import Client; os.setuid(65534)\n"
        f"try: Client({str(tmp_path / 'locked/api.sock')!r}).get('/v1/status')\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{tmp_path}/locked/api.sock may not be used (Permission denied): ask as root\n", done.stderr


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with answering(path, ANSWER + b"2\r\n\r\n[]"), open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", "from agent.cli import main; main()", "peers", "--json", "--socket", str(path)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert done.stderr == "podroute: the output cannot be written (No space left on device): make room\n"
    assert done.returncode == 1
