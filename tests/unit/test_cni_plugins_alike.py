"""The plugin in Python and the compiled one do the same: what each asks of an agent, says, and leaves, is compared."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cni.install import InstallSettings, Kind, install
from cni.wire import HEADER, Answer, encode_answer

KINDS: tuple[Kind, Kind] = ("python", "compiled")
LIST = b'{"cniVersion":"1.0.0","name":"podroute","type":"podroute"}'
STDIN = {
    "whole": LIST,
    "version": LIST.replace(b"1.0.0", b"0.3.1"),
    "unknown version": LIST.replace(b"1.0.0", b"9.0.0"),
    "broken": b'{"cniVersion":',
    "empty": b"",
}
AWAY = "away"
AGENTS: Mapping[str, bytes | None] = {
    AWAY: None,
    "success": encode_answer(Answer(0, b'{"ips":[]}\n')),
    "refusal": encode_answer(Answer(1, b'{"code":101}\n')),
    "silence": b"",
    "half": encode_answer(Answer(0, b"much more"))[:-4],
    "foreign": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}
POD = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/proc/self/ns/net", "CNI_PATH": "/opt/cni/bin"}
CALLS = {
    "ADD": POD,
    "ADD without a namespace": {**POD, "CNI_NETNS": ""},
    "ADD into nowhere": {**POD, "CNI_NETNS": "/nowhere"},
    "ADD with arguments": {**POD, "CNI_ARGS": "IP=10.64.0.9;K8S_POD_NAME=p", "OTHER": "x"},
    "CHECK": POD,
    "DEL": POD,
    "DEL without a container": {"CNI_IFNAME": "eth0"},
    "GC": {"CNI_PATH": "/opt/cni/bin"},
    "STATUS": {"CNI_PATH": "/opt/cni/bin"},
    "VERSION": {},
    "UNKNOWN": POD,
    "": {},
}


@dataclass(frozen=True)
class Outcome:
    status: int
    stdout: bytes
    stderr: bytes
    asked: tuple[tuple[bytes, int], ...]
    """What an agent received, and how many descriptors."""
    noted: tuple[bytes, ...]


class Agent(threading.Thread):
    """Says the same to every caller."""

    def __init__(self, path: Path, says: bytes) -> None:
        super().__init__()
        self.says = says
        self.asked: list[tuple[bytes, int]] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.start()

    def run(self) -> None:
        with suppress(OSError):
            while True:
                with self.listener.accept()[0] as connection:
                    frame, descriptors, _, _ = socket.recv_fds(connection, HEADER.size, 8)
                    for descriptor in descriptors:
                        os.close(descriptor)
                    left = HEADER.unpack(frame)[3]
                    while left and (data := connection.recv(left)):
                        frame += data
                        left -= len(data)
                    self.asked.append((frame, len(descriptors)))
                    connection.sendall(self.says)

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.join()
        self.listener.close()


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, InstallSettings]:
    """Return the settings of both kinds, which differ by the directory of the plugin only."""
    place = tmp_path_factory.mktemp("alike")
    both = {}
    for kind in KINDS:
        both[kind] = InstallSettings(place / "cni.sock", place / "notes", place / kind, place / "net.d")
        install(both[kind], plugin=kind)
    return both


def call(settings: InstallSettings, environment: Mapping[str, str], stdin: bytes, says: bytes | None) -> Outcome:
    agent = None if says is None else Agent(settings.socket, says)
    try:
        done = subprocess.run([settings.binary], env=environment, input=stdin, capture_output=True, timeout=30)
    finally:
        if agent:
            agent.stop()
            settings.socket.unlink()
    notes = sorted(settings.notes.iterdir())
    noted = tuple(note.read_bytes() for note in notes)
    for note in notes:
        note.unlink()
    return Outcome(done.returncode, done.stdout, done.stderr, tuple(agent.asked) if agent else (), noted)


@pytest.mark.parametrize("name", CALLS)
def test_alike(plugins: dict[Kind, InstallSettings], name: str) -> None:
    environment = {"CNI_COMMAND": name.partition(" ")[0], **CALLS[name]}
    cases = [("whole", agent) for agent in AGENTS]
    if name in ("ADD", "DEL"):  # input matters to the agent, and to errors where there is none
        cases += product(STDIN, [AWAY, "success"])
    for stdin, agent in cases if name else cases[:2]:
        python, compiled = (call(plugins[kind], environment, STDIN[stdin], AGENTS[agent]) for kind in KINDS)
        assert python == compiled, (stdin, agent)


def test_a_difference_would_be_seen(plugins: dict[Kind, InstallSettings]) -> None:
    one = call(plugins["python"], {"CNI_COMMAND": "DEL", **POD}, LIST, None)
    assert one.noted
    assert one != replace(one, noted=())
    other: Any = call(plugins["compiled"], {"CNI_COMMAND": "DEL", **POD}, LIST, AGENTS["success"])
    assert one != other
