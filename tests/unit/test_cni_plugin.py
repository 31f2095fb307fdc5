"""The plugin's file by itself, in Python and compiled: what it imports, and what it says where no agent is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from cni import install as module
from cni.compiled import SOURCE, compile_program
from cni.install import InstallSettings, choose_interpreter, install
from cni.wire import HEADER, Answer, decode, encode_answer

CONFIG = b'{"cniVersion":"0.4.0","name":"podroute","type":"podroute"}'


@pytest.fixture(scope="module")
def program() -> bytes:
    return compile_program("cc")


@pytest.fixture
def place(tmp_path: Path) -> InstallSettings:
    return InstallSettings(tmp_path / "cni.sock", tmp_path / "notes", tmp_path / "bin", tmp_path / "net.d")


@pytest.fixture
def script(place: InstallSettings) -> InstallSettings:
    install(place, plugin="python")
    return place


@pytest.fixture(params=["python", "compiled"])
def settings(
    place: InstallSettings, request: pytest.FixtureRequest, program: bytes, monkeypatch: pytest.MonkeyPatch
) -> InstallSettings:
    monkeypatch.setattr(module, "program", lambda: (program, "compiled"))
    install(place, plugin=request.param)
    return place


def run(
    settings: InstallSettings, verb: str, *options: str, stdin: bytes = CONFIG, netns: str = "/proc/self/ns/net"
) -> subprocess.CompletedProcess[bytes]:
    command = [str(settings.binary)]
    if options:
        command = [choose_interpreter(), "-IS", *options, str(settings.binary)]
    environment = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": netns}
    return subprocess.run(command, env=environment if verb else {}, input=stdin, capture_output=True, timeout=30)


class Agent(threading.Thread):
    """Answers one request."""

    def __init__(self, path: Path, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
        self.frame = b""
        self.descriptors: Sequence[int] = ()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.start()

    def run(self) -> None:
        with self.listener, self.listener.accept()[0] as connection:
            self.frame, self.descriptors, _, _ = socket.recv_fds(connection, HEADER.size, 8)
            left = HEADER.unpack(self.frame)[3]
            while left:
                data = connection.recv(left)
                self.frame += data
                left -= len(data)
            connection.sendall(encode_answer(self.answer))


def test_what_it_imports(script: InstallSettings) -> None:
    """A module more is a millisecond more for every container."""
    agent = Agent(script.socket, Answer(1, b'{"code":11}\n'))
    done = run(script, "ADD", "-X", "importtime")
    agent.join()
    for descriptor in agent.descriptors:
        os.close(descriptor)
    assert (done.returncode, done.stdout) == (1, b'{"code":11}\n')
    bare = subprocess.run(
        [choose_interpreter(), "-IS", "-X", "importtime", "-c", "pass"], capture_output=True, timeout=30
    )
    assert imported(done.stderr) - imported(bare.stderr) <= {"_socket"}


def test_what_it_says_to_an_agent(settings: InstallSettings) -> None:
    agent = Agent(settings.socket, Answer(1, b'{"code":11}\n'))
    done = run(settings, "ADD")
    agent.join()
    assert (done.returncode, done.stdout, done.stderr) == (1, b'{"code":11}\n', b"")
    message = decode(agent.frame, limit=1 << 20)
    assert message.environment["CNI_CONTAINERID"] == "c1"
    assert message.stdin == CONFIG
    assert message.netns_errno == 0
    (descriptor,) = agent.descriptors
    assert os.fstat(descriptor).st_ino == os.stat("/proc/self/ns/net").st_ino
    os.close(descriptor)


def test_both_plugins_say_the_same_of_a_namespace_that_is_gone(settings: InstallSettings) -> None:
    agent = Agent(settings.socket, Answer(0, b""))
    done = run(settings, "DEL", netns="/nowhere")
    agent.join()
    assert (done.returncode, agent.descriptors) == (0, [])
    assert decode(agent.frame, limit=1 << 20).netns_errno == errno.ENOENT


def test_works_with_an_interpreter_that_was_upgraded_since(script: InstallSettings) -> None:
    """Compiled code is good for one version; the source is there for the others."""
    text = script.binary.read_text()
    script.binary.write_text(re.sub(r"sys\.hexversion == \d+:\n    code = .*\n", "False:\n    pass\n", text))
    assert "marshal.loads" not in script.binary.read_text()
    assert json.loads(run(script, "VERSION", stdin=b"").stdout)["cniVersion"] == "1.1.0"
    assert b"podroute CNI plugin" in run(script, "").stderr


def imported(lines: bytes) -> set[str]:
    rows = [line.rpartition("|")[2].strip() for line in lines.decode().splitlines() if line.startswith("import time:")]
    return set(rows)


def test_a_large_request_and_a_large_answer(settings: InstallSettings) -> None:
    stdin = b'{"x":"' + b"x" * 3_000_000 + b'"}'
    agent = Agent(settings.socket, Answer(0, b"y" * 3_000_000))
    done = run(settings, "GC", stdin=stdin)
    agent.join()
    assert decode(agent.frame, limit=4 << 20).stdin == stdin
    assert (done.returncode, done.stdout) == (0, b"y" * 3_000_000)
    for descriptor in agent.descriptors:
        os.close(descriptor)


def test_without_a_verb_it_says_what_it_is(settings: InstallSettings) -> None:
    done = run(settings, "")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"podroute CNI plugin" in done.stderr


def test_version(settings: InstallSettings) -> None:
    done = run(settings, "VERSION", stdin=b"")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "cniVersion": "1.1.0",
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (CONFIG, "0.4.0"),
        (b"{", "1.1.0"),
        (b"[]", "1.1.0"),
        (b'{"cniVersion":"7"}', "1.1.0"),
        (b"\xff", "1.1.0"),
        (b"[" * 50000, "1.1.0"),
    ],
)
def test_errors_come_in_the_version_asked_for(settings: InstallSettings, stdin: bytes, version: str) -> None:
    done = run(settings, "ADD", stdin=stdin)
    error = json.loads(done.stdout)
    assert (done.returncode, error["code"], error["cniVersion"]) == (1, 11, version)
    assert str(settings.socket) in error["details"]


def test_a_deletion_is_noted_as_it_would_have_been_sent(settings: InstallSettings) -> None:
    done = run(settings, "DEL")
    assert (done.returncode, done.stdout) == (0, b"")
    (note,) = settings.notes.iterdir()
    assert note.suffix == ".del"
    assert decode(note.read_bytes(), limit=1 << 20).environment["CNI_COMMAND"] == "DEL"


class Fickle(threading.Thread):
    """Takes calls and ends each with what it is given to say; nothing ends it before it has read the request."""

    def __init__(self, path: Path, says: Sequence[bytes]) -> None:
        super().__init__()
        self.says = says
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.start()

    def run(self) -> None:
        with self.listener:
            for words in self.says:
                with self.listener.accept()[0] as connection:
                    connection.recv(65536)
                    connection.sendall(words)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (b"", "closed the connection without an answer"),
        (b"PRCN\0\1\0\0\0\0\0\x09part", "closed the connection without an answer"),
        (b"HTTP/1.1 400 Bad Request\r\n", "what listens there is not podroute's agent"),
    ],
)
def test_half_an_answer_is_none(settings: InstallSettings, words: bytes, why: str) -> None:
    """An ADD that the agent may have carried out is not sent again: the runtime deletes first."""
    agent = Fickle(settings.socket, [words])
    done = run(settings, "ADD")
    agent.join()
    error = json.loads(done.stdout)
    assert (done.returncode, error["code"]) == (1, 11)
    assert why in error["details"]


def test_an_agent_that_hangs(place: InstallSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is asked once: the runtime has waited long enough."""
    hasty = tmp_path / "plugin.c"
    hasty.write_text(SOURCE.read_text().replace("{PATIENCE, 0}", "{0, 100000}"))
    program = compile_program("cc", hasty)
    monkeypatch.setattr(module, "program", lambda: (program, "compiled"))
    install(place, plugin="compiled")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(place.socket))
        deaf.listen(8)
        assert json.loads(run(place, "ADD").stdout)["code"] == 11
        assert run(place, "DEL").returncode == 0
        deaf.setblocking(False)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                deaf.accept()[0].close()
                asked += 1
    assert asked == 2
    assert len(list(place.notes.iterdir())) == 1


def test_a_deletion_that_the_agent_did_not_answer_is_tried_once_more(settings: InstallSettings) -> None:
    agent = Fickle(settings.socket, [b"", b"PRCN\0\1\0\0\0\0\0\0"])
    done = run(settings, "DEL")
    agent.join()
    assert (done.returncode, done.stdout) == (0, b"")
    assert list(settings.notes.iterdir()) == [], "answered for after all"


def test_compiles_without_a_warning(tmp_path: Path) -> None:
    strict = tmp_path / "cc"
    strict.write_text('#!/bin/sh\nexec cc -Werror -Wconversion -Wshadow -Wpedantic -Wno-overlength-strings "$@"\n')
    strict.chmod(0o755)
    assert compile_program(str(strict))[:4] == b"\x7fELF"
