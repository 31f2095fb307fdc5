"""The agent's socket: who may call, what it refuses, and the plugin when nobody answers."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from cni import plugin, server
from cni.server import CniServer, ServerError
from cni.wire import HEADER
from tests.kernel.cni_node import INTERPRETER, Ledger, Node, open_descriptors, pings
from tests.netns import Netns
from tests.unit.test_cni_old_plugin import ADD, DEL

pytestmark = pytest.mark.root
MakeNetns = Callable[[], Netns]


@pytest_asyncio.fixture
async def node(tmp_path: Path, netns: MakeNetns) -> AsyncIterator[Node]:
    node = Node(tmp_path, netns())
    await node.start()
    yield node
    await node.stop()


class TestRefused:
    async def test_the_hosts_own_namespace(self, node: Node) -> None:
        refused = await node.add("c1", node.host)
        assert refused.json["code"] == 8
        assert "host's own" in refused.json["msg"]

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("/dev/null", "is not a network namespace"),
            ("/proc/self/ns/mnt", "is not a network namespace"),
            ("/gone", "No such file"),
        ],
    )
    async def test_what_is_no_network_namespace(self, node: Node, path: str, text: str) -> None:
        refused = await node.call("ADD", "c1", path)
        assert refused.json["code"] == 8
        assert text in refused.stdout.decode()
        assert await node.remains() == []

    @pytest.mark.parametrize(
        ("verb", "env", "stdin", "code"),
        [
            ("ADD", {}, b"{", 6),
            ("ADD", {}, b"[]", 6),
            ("ADD", {}, b"", 6),
            ("ADD", {}, b'{"cniVersion":"9.9.9","name":"n"}', 1),
            ("ADD", {}, b'{"cniVersion":"1.0.0"}', 7),
            ("ADD", {"CNI_CONTAINERID": "../x"}, None, 4),
            ("ADD", {"CNI_IFNAME": "eth0/1"}, None, 4),
            ("BUY", {}, None, 4),
        ],
    )
    async def test_bad_input(self, node: Node, verb: str, env: dict[str, str], stdin: bytes | None, code: int) -> None:
        outcome = await node.call(verb, "c1", "/proc/self/ns/net", env=env, stdin=stdin)
        assert (outcome.status, outcome.json["code"]) == (1, code)
        assert await node.remains() == []

    async def test_a_caller_that_is_not_root(self, netns: MakeNetns) -> None:
        """The socket's mode keeps it out; and so do its credentials, should somebody loosen the mode."""
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o755)
            node = Node(Path(directory), netns())
            await node.start()
            assert node.installed.socket.stat().st_mode & 0o777 == 0o600
            away = await node.call("STATUS", user=65534)
            assert away.json["code"] == 50
            assert "Permission denied" in away.json["details"]
            node.installed.socket.chmod(0o666)
            refused = await node.call("STATUS", user=65534)
            assert (refused.status, refused.json["code"]) == (1, 4)
            assert "uid 65534" in refused.json["details"]
            await node.stop()


async def exchange(path: Path, *parts: bytes, end: bool = True) -> bytes:
    """Send bytes as they are, and return the output in the answer; nothing where there is no answer."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if end:
            writer.write_eof()
        header = await reader.readexactly(HEADER.size)
        return await reader.readexactly(HEADER.unpack(header)[3])
    except asyncio.IncompleteReadError:
        return b""
    finally:
        writer.close()


async def test_a_plugin_of_protocol_version_1(node: Node, netns: MakeNetns) -> None:
    """As it was installed by the first release, to the byte; its descriptor comes with the first one."""
    pod = netns()
    for request, status in ((ADD, 0), (ADD, 1), (DEL, 0), (DEL, 0)):
        with socket.socket(socket.AF_UNIX) as old:
            old.setblocking(False)
            await asyncio.get_running_loop().sock_connect(old, str(node.installed.socket))
            socket.send_fds(old, [request], [pod.fd])
            header = await asyncio.get_running_loop().sock_recv(old, HEADER.size)
            assert HEADER.unpack(header)[:3] == (b"PRCN", 1, status)
    assert await node.remains() == []


class TestBytes:
    async def test_a_request_in_small_parts(self, node: Node) -> None:
        frame = plugin.request({b"CNI_COMMAND": b"VERSION"}, b'{"cniVersion":"1.1.0"}', 0)
        answer = await exchange(node.installed.socket, *(frame[n : n + 1] for n in range(len(frame))))
        assert json.loads(answer)["supportedVersions"]

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", "not a request of podroute's CNI plugin"),
            (HEADER.pack(b"PRCN", 2, 3, 10), "version 2"),
            (HEADER.pack(b"PRCN", 1, 3, 1 << 30), "at most"),
            (HEADER.pack(b"PRCN", 1, 3, 2) + b"xx", "cut off"),
            (HEADER.pack(b"PRCN", 1, 3, 4) + b"\xff\xff\xff\xff", "longer than the request"),
        ],
    )
    async def test_what_is_no_request(self, node: Node, data: bytes, text: str) -> None:
        answer = json.loads(await exchange(node.installed.socket, data))
        assert answer["code"] == 6
        assert text in answer["details"]
        assert (await node.call("STATUS")).status == 0

    async def test_one_that_breaks_off(self, node: Node) -> None:
        assert await exchange(node.installed.socket, b"PRCN") == b""
        assert (await node.call("STATUS")).status == 0

    async def test_one_that_dawdles(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "REQUEST_TIME", 0.05)
        assert await exchange(node.installed.socket, b"PRCN", end=False) == b""

    async def test_descriptors_beyond_the_first_are_closed(self, node: Node) -> None:
        frame = plugin.request({b"CNI_COMMAND": b"STATUS"}, b'{"cniVersion":"1.1.0","name":"n"}', 0)
        with open_descriptors():
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(node.installed.socket))
                socket.send_fds(client, [frame], [0, 1, 2, 0, 1, 2])
                client.setblocking(False)
                loop = asyncio.get_running_loop()
                while await loop.sock_recv(client, 65536):
                    pass


class TestSocket:
    def server(self, node: Node) -> CniServer:
        return CniServer(
            node.installed.socket,
            node.ledger,
            node.hooks,
            notes=node.installed.notes,
            network=node.network,
            host=node.host.fd,
        )

    async def test_of_a_live_agent_is_not_taken(self, node: Node) -> None:
        second = self.server(node)
        with pytest.raises(ServerError, match=r"another agent is listening on .*cni\.sock: stop it"):
            await second.start()
        await second.stop()
        assert (await node.call("STATUS")).status == 0

    async def test_of_a_dead_agent_is_replaced(self, node: Node) -> None:
        path = node.installed.socket
        await node.stop()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        await node.start()
        assert (await node.call("STATUS")).status == 0

    async def test_a_file_in_its_place_is_not_removed(self, node: Node) -> None:
        await node.stop()
        node.installed.socket.write_text("precious")
        second = self.server(node)
        with pytest.raises(ServerError, match="is not a socket"):
            await second.start()
        await second.stop()
        assert node.installed.socket.read_text() == "precious"

    async def test_is_gone_after_stop(self, node: Node) -> None:
        await node.stop()
        assert not node.installed.socket.exists()

    async def test_a_path_that_cannot_be(self, node: Node, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        broken = CniServer(
            tmp_path / "file" / "cni.sock", Ledger(), node.hooks, notes=tmp_path / "n", network=node.network
        )
        with pytest.raises(ServerError, match="cannot listen on"):
            await broken.start()
        await broken.stop()


class TestAgentAway:
    @pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50), ("BUY", 4)])
    @pytest.mark.parametrize("version", ["0.4.0", "1.1.0"])
    async def test_errors(self, node: Node, netns: MakeNetns, verb: str, code: int, version: str) -> None:
        await node.stop()
        outcome = await node.call(verb, "c1", netns().path, version=version)
        assert outcome.status == 1
        assert (outcome.json["code"], outcome.json["cniVersion"]) == (code, version)

    async def test_version_needs_no_agent(self, node: Node) -> None:
        with_agent = await node.call("VERSION")
        await node.stop()
        assert await node.call("VERSION") == with_agent

    async def test_a_deletion_is_worked_off_later(self, node: Node, netns: MakeNetns) -> None:
        await node.add("c1", netns())
        await node.add("c2", netns())
        await node.stop()
        node.hooks.pods.clear()
        outcome = await node.delete("c1")
        assert (outcome.status, outcome.stdout) == (0, b"")
        assert "next start" in outcome.stderr
        assert len(list(node.installed.notes.iterdir())) == 1
        await node.start()
        assert [handle.container_id for handle in node.ledger.held] == ["c2"]
        assert list(node.installed.notes.iterdir()) == []
        assert len([trace for trace in node.traces() if ": pr" in trace]) == 1
        assert [handle.container_id for handle in node.hooks.pods] == ["c2"]

    async def test_a_note_spares_a_container_added_after_it(self, node: Node, netns: MakeNetns) -> None:
        """cnitool gives the same id to every container of one namespace."""
        await node.stop()
        await node.delete("c1")
        (note,) = node.installed.notes.iterdir()
        kept = note.read_bytes()
        await node.start()
        added = await node.add("c1", netns())
        await node.stop()
        note.write_bytes(kept)
        await node.start()
        assert pings(node.host, *added.addresses)
        assert list(node.installed.notes.iterdir()) == []

    async def test_notes_that_are_none(self, node: Node, caplog: pytest.LogCaptureFixture) -> None:
        await node.stop()
        notes = node.installed.notes
        (notes / "1-1.del").write_bytes(b"PRCN")
        (notes / "x-1.del").write_bytes(b"")
        (notes / f"{time.time_ns()}-2.del").write_bytes(plugin.request({b"CNI_COMMAND": b"ADD"}, b"{}", 0))
        (notes / ".5-999999999").write_bytes(b"half")
        await node.start()
        assert list(notes.iterdir()) == []
        assert [record.message for record in caplog.records].count("noted deletion not understood") == 3

    async def test_a_deletion_that_cannot_be_noted_fails(self, node: Node) -> None:
        await node.stop()
        node.installed.notes.rmdir()
        node.installed.notes.write_text("in the way")
        assert (await node.delete("c1")).json["code"] == 5

    async def test_a_deletion_without_container_is_not_noted(self, node: Node) -> None:
        await node.stop()
        assert (await node.call("DEL", "")).json["code"] == 4
        assert list(node.installed.notes.iterdir()) == []

    async def test_an_agent_that_dies_during_the_call(self, node: Node) -> None:
        """The second try finds it started again, and the note is taken back."""
        await node.stop()
        calls = 0

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                await reader.read(1)
                writer.write(HEADER.pack(b"PRCN", 1, 0, 0))
            writer.close()

        async with await asyncio.start_unix_server(answer, node.installed.socket):
            assert (await node.delete("c1")).status == 0
        assert calls == 2
        assert list(node.installed.notes.iterdir()) == []

    async def test_an_agent_that_hangs(self, node: Node, netns: MakeNetns) -> None:
        await node.stop()
        source = inspect.getsource(plugin).replace("PATIENCE = 60.0", "PATIENCE = 0.1")
        source = source.replace(plugin.SOCKET, str(node.installed.socket))
        source = source.replace(plugin.NOTES, str(node.installed.notes))
        node.installed.binary.write_text(f"#!{INTERPRETER} -IS\n{source}")
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(str(node.installed.socket))
            deaf.listen(8)
            assert (await node.add("c1", netns())).json["code"] == 11
            assert (await node.delete("c1")).status == 0
        assert len(list(node.installed.notes.iterdir())) == 1

    async def test_another_program_on_the_socket(self, node: Node) -> None:
        await node.stop()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail ready\r\n")
            writer.close()

        async with await asyncio.start_unix_server(answer, node.installed.socket):
            outcome = await node.call("ADD", "c1", "/proc/self/ns/net")
        assert outcome.json["code"] == 11
        assert "not podroute's agent" in outcome.json["details"]
