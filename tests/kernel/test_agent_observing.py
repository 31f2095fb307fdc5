"""What an agent serves over TCP: where, what, and what becomes of it when the configuration changes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

import pytest
import yaml

from agent.client import AgentRefusedError
from tests.agents import Agent, agents
from tests.kernel.test_agent_life import Pair
from tests.netns import Netns

pytestmark = pytest.mark.root

HERE = "127.0.0.1:9179"


class Answer(NamedTuple):
    status: int
    text: str
    headers: Mapping[str, str]


@pytest.fixture
async def pair(netns: Callable[[], Netns]) -> AsyncIterator[Pair]:
    async with agents() as (directory, running):
        made = Pair(directory, running, netns)
        made.a.config["metrics"] = {"listen": HERE}
        yield made


async def ask(agent: Agent, path: str, *, method: str = "GET", host: str = "127.0.0.1", port: int = 9179) -> Answer:
    """Ask over TCP, from inside the agent's namespace. Raises OSError."""

    def connected() -> Answer:
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=30)) as connection:
            connection.request(method, path)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode(), dict(answer.getheaders()))

    return await asyncio.to_thread(agent.ns.call, connected)


async def test_it_serves_what_changes_nothing_and_nothing_else(pair: Pair) -> None:
    await pair.start()
    assert "\npodroute_ready 1.0\n" in (await ask(pair.a, "/metrics")).text
    assert (await ask(pair.a, "/healthz"))[:2] == (await ask(pair.a, "/readyz"))[:2] == (200, "ok\n")
    assert (await ask(pair.a, "/healthz", method="HEAD")).status == 200
    for path in ("/v1/status", "/v1/peers", "/v1/routes", "/v1/ipam/show"):
        assert (await ask(pair.a, path)).status == 404
    for path in ("/v1/stop", "/v1/reload", "/v1/peers/v4/shutdown", "/v1/ipam/reclaim?node=b"):
        assert (await ask(pair.a, path, method="POST")).status == 404
    assert (await ask(pair.a, "/metrics", method="POST")).status == 405
    assert (await pair.a.get("/v1/status"))["state"] == "running"


async def test_without_a_line_in_the_file_nothing_listens(pair: Pair) -> None:
    del pair.a.config["metrics"]
    await pair.a.start()
    with pytest.raises(ConnectionRefusedError):
        await ask(pair.a, "/metrics")
    assert (await pair.a.read("/metrics"))[0] == 200
    assert (await pair.a.read("/healthz"))[::2] == (200, "ok\n")


async def test_not_ready_says_why(pair: Pair) -> None:
    await pair.a.start()  # b is not there to be told
    status, text, _ = await ask(pair.a, "/readyz")
    assert status == 503
    assert text.startswith("51: no peer has been told of 10.64.")
    assert (await pair.a.read("/readyz"))[::2] == (status, text)
    assert (await pair.a.metrics())("ready") == 0
    assert (await ask(pair.a, "/healthz")).status == 200


async def test_a_port_in_use_is_named_at_the_start(pair: Pair) -> None:
    await pair.a.start()
    second = Agent(pair.ns_a, pair.directory, "c", 4200000003, metrics={"listen": HERE}, bgp={"listen": []})
    assert await second.refused() == (
        f"podroute: metrics.listen: cannot listen on {HERE}: Address already in use; "
        "it must be a free port at an address of this node (`ss -ltnp` shows who listens)"
    )
    assert not second.socket.exists()


async def move(agent: Agent, listen: str | None, **query: str) -> None:
    """Have another address in the file, and the file reloaded. Raises AgentRefusedError."""
    agent.config["metrics"] = {} if listen is None else {"listen": listen}
    agent.file.write_text(yaml.safe_dump(agent.config, sort_keys=False))
    answer = await asyncio.to_thread(agent.client.post, "/v1/reload", **query)
    assert answer["metrics"] == [listen or "nowhere"]


async def test_it_moves_and_ends(pair: Pair) -> None:
    await pair.a.start()
    for listen, open_at, closed in (
        ("0.0.0.0:9179", ("127.0.0.1", "10.0.0.1"), ("::1",)),
        ("10.0.0.1:9179", ("10.0.0.1",), ("127.0.0.1",)),
        ("[::]:9179", ("127.0.0.1", "10.0.0.1", "::1"), ()),
        ("[::1]:9179", ("::1",), ("127.0.0.1",)),
        ("127.0.0.1:9179", ("127.0.0.1",), ("::1", "10.0.0.1")),
        (None, (), ("127.0.0.1",)),
    ):
        await move(pair.a, listen)
        for host in open_at:
            assert (await ask(pair.a, "/healthz", host=host)).status == 200
        for host in closed:
            with pytest.raises(ConnectionRefusedError):
                await ask(pair.a, "/healthz", host=host)
    await move(pair.a, HERE, dryRun="1")
    with pytest.raises(ConnectionRefusedError):
        await ask(pair.a, "/healthz")


@pytest.mark.parametrize("listen", ["10.0.0.1:9180", "0.0.0.0:9179"])
async def test_a_port_in_use_refuses_the_reload_as_a_whole(pair: Pair, listen: str) -> None:
    await pair.a.start()
    loaded = (await pair.a.metrics())("config_last_reload_success_timestamp_seconds")
    with pair.ns_a.call(lambda: socket.create_server(("10.0.0.1", int(listen[-4:])))):
        pair.a.config["advertise"] = ["192.0.2.53/32"]
        with pytest.raises(AgentRefusedError) as refusal:
            await move(pair.a, listen)
        assert str(refusal.value) == (
            f"metrics.listen: cannot listen on {listen}: Address already in use; "
            "it must be a free port at an address of this node (`ss -ltnp` shows who listens)"
        )
    now = await pair.a.metrics()
    assert now("config_last_reload_successful") == 0
    assert now("config_last_reload_success_timestamp_seconds") == loaded
    assert now("bgp_originated_prefixes", family="ipv4") == 1
    assert (await ask(pair.a, "/healthz")).status == 200
    await move(pair.a, listen)
    now = await pair.a.metrics()
    assert now("config_last_reload_successful") == 1
    assert now("config_last_reload_success_timestamp_seconds") > loaded
    assert (await ask(pair.a, "/healthz", host="10.0.0.1", port=int(listen[-4:]))).status == 200


async def test_a_connection_that_is_kept_open_holds_up_neither_reload_nor_stop(pair: Pair) -> None:
    await pair.a.start()

    def kept() -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", 9179, timeout=30)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        return connection

    with contextlib.closing(await asyncio.to_thread(pair.ns_a.call, kept)):
        await move(pair.a, "127.0.0.1:9180")
        assert (await ask(pair.a, "/healthz", port=9180)).status == 200
        assert await pair.a.stop() == 0


async def test_the_page(pair: Pair) -> None:
    await pair.start()
    whole = await ask(pair.a, "/")
    assert (whole.status, whole.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert whole.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert "2 of 2 established" in whole.text
    (block,) = [block["prefix"] for block in await pair.b.get("/v1/blocks") if block["family"] == "ipv4"]
    explained = await ask(pair.a, f"/explain?prefix={block}")
    assert explained.headers["Content-Security-Policy"] == whole.headers["Content-Security-Policy"]
    assert f"<p>{block}</p>" in explained.text
    assert "installed" in explained.text
    nonsense = await ask(pair.a, "/explain?prefix=%3Cb%3Enonsense")
    assert nonsense.status == 200
    assert "<b>" not in nonsense.text
    assert "must be such as 10.64.0.0/26" in nonsense.text

    # What a peer's operator says is shown, and nothing else
    done = await asyncio.to_thread(pair.b.command, "peer", "v4", "shutdown", "--text", "<img src=x onerror=alert(1)>")
    assert done.returncode == 0
    await pair.a.until("onerror", "", "v4")
    now = (await ask(pair.a, "/now")).text
    assert "&lt;img src=x onerror=alert(1)&gt;" in now
    assert "<img" not in now
    assert (await pair.a.read("/now"))[0] == 404  # the page is for browsers, which do not come by the socket
