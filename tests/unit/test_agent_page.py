"""The agent's page: it shows what strangers say, and does nothing else with it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

from agent.page import HEADERS, explanation, page, present

EVIL = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>&amp;"

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
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none';")
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
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
