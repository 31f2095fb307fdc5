"""The page that the agent serves over TCP: what `podroute status`, `peers`, `blocks` and `explain` say.

``GET /`` is the page, ``GET /now`` the part of it that it asks for anew every few seconds, ``GET /explain?prefix=`` the
answer to its form. Strangers wrote some of what is shown (why a peer shut its session down, say), so every text is
escaped, and the browser is told to run nothing but the page's own script and to load nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from aiohttp import web

from agent import views
from agent.durations import duration
from agent.explain import explain
from agent.node import Node
from config import prefix

Answer = Mapping[str, Any]

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; color: #222 }
h1 { font-size: 1.3em } h2 { font-size: 1.05em; margin: 1.6em 0 .3em }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .2em .8em .2em 0; border-bottom: 1px solid #ddd }
th { color: #666; font-weight: normal } td { overflow-wrap: anywhere }
.good { color: #176b2c } .bad { color: #b00020 }
"""
_SCRIPT = """
const part = name => document.getElementById(name);
async function fill(place, path) {
    const answer = await fetch(path, {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.statusText);
    place.innerHTML = await answer.text();
}
async function refresh() {
    part("silent").hidden = await fill(part("now"), "now").then(() => true, () => false);
    setTimeout(refresh, 3000);
}
part("form").addEventListener("submit", event => {
    event.preventDefault();
    const path = "explain?" + new URLSearchParams(new FormData(part("form")));
    fill(part("answer"), path).catch(() => part("answer").textContent = "The agent does not answer.");
});
setTimeout(refresh, 3000);
"""
"""Replaces only ``now`` and ``answer``, so that what is being typed stays."""


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_digest(_STYLE)}; script-src {_digest(_SCRIPT)}; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def routes(node: Node) -> list[web.RouteDef]:
    async def whole(_: web.Request) -> web.Response:
        return _html(page(node.config.node.name, await _now(node)))

    async def now(_: web.Request) -> web.Response:
        return _html(await _now(node))

    async def explained(request: web.Request) -> web.Response:
        asked = request.query.get("prefix", "").strip()
        if not node.running:
            return _html(_not_running(node))
        try:
            family, wire = prefix.parse(asked)
        except ValueError as error:
            return _html(f"<p>{escape(str(error))}; must be such as 10.64.0.0/26, or an address</p>")
        return _html(explanation(await explain(node, family, wire)))

    return [web.get("/", whole), web.get("/now", now), web.get("/explain", explained)]


async def _now(node: Node) -> str:
    if not node.running:
        return _not_running(node)
    return present(await views.status(node), views.peers(node), await views.blocks(node))


def _not_running(node: Node) -> str:
    return f"<p>The agent is {escape(node.state)}.</p>"


def _html(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/html", charset="utf-8", headers=HEADERS)


def page(name: str, now: str) -> str:
    """Return the whole page of a node; ``now`` is what ``present`` made."""
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>podroute on {escape(name)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>podroute on {escape(name)}</h1>"
        '<p id="silent" class="bad" hidden>The agent does not answer: what follows is old.</p>'
        f'<div id="now">{now}</div><h2>Explain</h2>'
        '<form id="form" action="explain"><input name="prefix" placeholder="10.64.0.0/26" aria-label="prefix"> '
        f'<button>explain</button></form><div id="answer"></div><script>{_SCRIPT}</script></body></html>'
    )


def present(status: Answer, peers: Iterable[Answer], blocks: Iterable[Answer]) -> str:
    """Return what changes of the page; the arguments are what the API answers."""
    return "".join(
        (
            _table((), _status(status)),
            "<h2>Peers</h2>",
            _table(
                ("peer", "address", "AS", "state", "for", "family", "received", "accepted", "advertised", "why"),
                (row for peer in peers for row in _peer(peer)),
            ),
            "<h2>Blocks</h2>",
            _table(
                ("block", "pool", "used", "reserved", "free", "advertised to"),
                (
                    [
                        *(_text(block[key]) for key in ("prefix", "pool", "used", "reserved", "free")),
                        _text(", ".join(block["advertisedTo"])) or _text("nobody", "bad"),
                    ]
                    for block in blocks
                ),
            ),
        )
    )


def explanation(answer: Answer) -> str:
    """Return what is known about a prefix; ``answer`` is the API's."""
    about = "" if answer["asked"] == answer["prefix"] else f", which answers for {answer['asked']}"
    paths = (
        [
            _text("best" if path["best"] else "used" if path["used"] else "", "good"),
            _text(path["peer"] or path["owner"]),
            *(_text(path[key]) for key in ("nextHop", "reached", "localPref", "asPath", "rule", "reason")),
        ]
        for path in answer["paths"]
    )
    kernel = (
        [
            *(_text(row[key]) for key in ("metric", "owner")),
            *(_text(", ".join(row[key])) for key in ("desired", "kernel")),
            _text(row["state"], "good" if row["state"] == "installed" else "bad"),
            _text(row["why"]),
        ]
        for row in answer["fib"]
    )
    exports = (
        [_text(export["peer"]), _text("yes" if export["advertised"] else "no"), _text(export["reason"])]
        for export in answer["exports"]
    )
    return "".join(
        (
            f"<p>{_text(answer['prefix'] + about)}</p>",
            *(f"<p>{_text(line)}</p>" for line in answer["summary"]),
            _table(("", "from", "next hop", "reached", "pref", "AS path", "rule", "why not"), paths),
            _table(("metric", "whose", "desired", "in the kernel", "state", "why"), kernel),
            _table(("told to", "", "by"), exports),
        )
    )


def _status(status: Answer) -> Iterator[list[str]]:
    node, store, peers = status["node"], status["store"], status["peers"]
    agent = (
        f"podroute {status['version']} ({status['form']['name']}), {status['state']}, up {duration(status['uptime'])}"
    )
    yield [_text("agent"), _text(agent)]
    yield [_text("node"), _text(f"AS {node['as']}, {node['routerId']}")]
    if status["converged"]:
        yield [_text("converged"), _text("yes", "good")]
    else:
        yield [_text("waiting for"), _lines(status["waitingFor"] or ["starting"], "bad")]
    yield [_text("sessions"), _text(f"{peers['established']} of {peers['configured']} established")]
    yield [_text("store"), _text(f"away: {store['problem']}", "bad") if store["problem"] else _text(store["url"])]
    if store["fenced"]:
        yield [_text("fenced"), _text("blocks withdrawn and containers refused until the store is back", "bad")]
    if store["lostBlocks"]:
        yield [_text("lost blocks"), _lines(store["lostBlocks"], "bad")]
    yield [_text("pods"), _text(status["pods"])]
    for family, counts in status["fib"].items():
        routes = ", ".join(f"{count} {state}" for state, count in counts.items())
        yield [_text(f"FIB {family}"), _text(routes or "empty")]
    for what, lines in (("do not answer", status["silentGateways"]), ("findings", status["findings"])):
        if lines:
            yield [_text(what), _lines(lines, "bad")]


def _peer(peer: Answer) -> Iterator[list[str]]:
    """Yield a row for each family of a peer."""
    state = _text(peer["state"], "good" if peer["state"] == "Established" else "bad")
    first = [
        _text(peer["name"]),
        _text(peer["address"]),
        _text("?" if peer["as"] is None else peer["as"]),
        state,
        _text(duration(peer["for"])),
    ]
    for family, counts in peer["families"].items():
        numbers = [_text(counts[key]) for key in ("received", "accepted", "advertised")]
        yield [*first, _text(family), *numbers, _text(counts["problem"] or peer["problem"] or "")]
        first = [""] * len(first)


def _text(value: object, kind: str = "") -> str:
    """Return a text as HTML that shows it, and does nothing else; empty for an empty one."""
    shown = escape(str(value))
    return f'<span class="{kind}">{shown}</span>' if kind and shown else shown


def _lines(texts: Iterable[object], kind: str) -> str:
    return "<br>".join(_text(text, kind) for text in texts)


def _table(heads: Iterable[str], rows: Iterable[list[str]]) -> str:
    """Return a table; ``rows`` are HTML, of ``_text`` and ``_lines``."""
    head = "".join(f"<th>{_text(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>" if body else "<p>none</p>"
