"""The agent's page: it shows what strangers say, and does nothing else with it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from agent import observing
from agent.node import Node
from agent.page import HEADERS, explanation, page, present
from tests.unit.test_config_check import config

EVIL = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>&amp;"
POLICY = HEADERS["Content-Security-Policy"]

STATUS = {
    "node": {"name": EVIL, "as": 65001, "routerId": EVIL},
    "version": EVIL,
    "form": {"name": EVIL},
    "state": EVIL,
    "uptime": 75.0,
    "converged": False,
    "waitingFor": [EVIL],
    "peers": {"established": 1, "configured": 2},
    "store": {"url": EVIL, "problem": EVIL, "fenced": True, "lostBlocks": [EVIL]},
    "pods": 7,
    "fib": {"ipv4": {EVIL: 5}, "ipv6": {}},
    "silentGateways": [EVIL],
    "findings": [EVIL],
}
FAMILY = {"received": 5, "accepted": 4, "advertised": 3, "problem": None}
PEER = {"name": EVIL, "address": EVIL, "as": None, "state": EVIL, "for": 3.0, "problem": EVIL}
BLOCK = {"prefix": EVIL, "pool": EVIL, "used": 1, "reserved": 0, "free": 63, "advertisedTo": [EVIL]}
ROW = {"metric": 20, "owner": EVIL, "desired": [EVIL], "kernel": [EVIL], "state": EVIL, "why": EVIL}
PATH = dict.fromkeys(("peer", "owner", "nextHop", "reached", "asPath", "rule", "reason"), EVIL)
EXPLAINED = {
    "asked": EVIL,
    "prefix": "10.64.0.0/26",
    "summary": [EVIL],
    "paths": [{**PATH, "best": True, "used": True, "localPref": 100}],
    "fib": [ROW],
    "exports": [{"peer": EVIL, "advertised": True, "reason": EVIL}],
}


class Seen(HTMLParser):
    """What a browser makes of a text: elements, their attributes, and what is to be read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def changing(**more: Any) -> str:
    return present({**STATUS, **more}, [{**PEER, "families": {EVIL: FAMILY}}], [BLOCK])


def test_what_strangers_say_is_text() -> None:
    for text, all_of_them in ((changing(), 16), (explanation(EXPLAINED), 15)):
        seen = Seen(text)
        assert seen.tags <= {"table", "tr", "th", "td", "span", "br", "p", "h2"}
        assert seen.attributes == {"class"}
        assert sum(EVIL in one for one in seen.texts) == all_of_them


def test_the_whole_page_runs_its_own_script_and_no_other() -> None:
    text = page(EVIL, changing())
    seen = Seen(text)
    assert "img" not in seen.tags
    assert not [name for name in seen.attributes if name.startswith("on") or name in ("style", "src", "href")]
    assert "unsafe" not in POLICY
    assert POLICY.startswith("default-src 'none';")
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in POLICY
    assert "//" not in text.replace("<!DOCTYPE", "")  # nothing from elsewhere


def test_what_is_typed_is_outside_what_is_replaced() -> None:
    text = page("n1", "<p>NOW</p>")
    assert '<div id="now"><p>NOW</p></div>' in text
    assert text.index("</div>") < text.index("<form")


def test_it_says_what_the_commands_say() -> None:
    seen = Seen(changing()).texts
    for word in ("1 of 2 established", "up 1 min 15 s", "3 s", "?", "5", "63", "nobody"):
        assert any(word in text for text in seen) == (word != "nobody")
    assert "yes" in Seen(changing(converged=True)).texts
    assert "nobody" in Seen(present(STATUS, [], [{**BLOCK, "advertisedTo": []}])).texts
    assert Seen(present(STATUS, [], [])).texts.count("none") == 2


async def test_an_agent_that_is_not_running_says_so(tmp_path: Path) -> None:
    sockets = f"api: {{socket: {tmp_path}/api}}\ncni: {{socket: {tmp_path}/cni}}\n"
    node = Node(config(f"stateDir: {tmp_path}\nstore: sqlite://{tmp_path}/store.db\n{sockets}"))
    runner = web.AppRunner(observing.application(node))
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "page")).start()
    try:
        connector = aiohttp.UnixConnector(str(tmp_path / "page"))
        async with aiohttp.ClientSession("http://agent", connector=connector) as session:
            for path in ("/", "/now", "/explain?prefix=10.0.0.0/8"):
                async with session.get(path) as answer:
                    assert (answer.status, answer.headers["Content-Security-Policy"]) == (200, POLICY)
                    assert "<p>The agent is starting.</p>" in await answer.text()
            async with session.get("/readyz") as answer:
                assert (answer.status, await answer.text()) == (503, "50: the agent is starting\n")
    finally:
        await runner.cleanup()
        await node.cni.stop()
