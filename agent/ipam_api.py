"""The API below ``/v1/ipam``: what `podroute ipam` asks.

``GET show``, ``blocks``, ``pools``, ``check``; ``POST check`` (repairs), ``release``, ``reclaim``, ``pools/NAME``.
What ipam/ refuses is a 409 or, where trying again may help, a 503, with the error's stable ``code``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from agent import ipam_views
from agent.node import Node
from ipam.cluster import QUARANTINE

_LONGEST_QUARANTINE = 86400
_SWITCHES = {"disabled": "disabled", "manual": "manual", "notAdvertised": "not_advertised"}


def routes(node: Node) -> list[web.RouteDef]:
    def answering(work: Callable[[web.Request], Awaitable[Any]]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            return web.json_response(await work(request))

        return handler

    async def show(request: web.Request) -> Any:
        if "block" not in request.query:
            return await ipam_views.show(node)
        try:
            return ipam_views.picture(node, request.query["block"])
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"block: {error}; must be such as 10.64.0.0/26") from None

    async def blocks(request: web.Request) -> Any:
        return await ipam_views.blocks(node, request.query.get("pool"), request.query.get("node"))

    async def pools(_: web.Request) -> Any:
        return await ipam_views.pools(node)

    async def set_pool(request: web.Request) -> Any:
        return await ipam_views.set_pool(node, request.match_info["name"], _changes(request.query))

    async def check(request: web.Request) -> Any:
        return await ipam_views.checked(node, fix=request.method == "POST")

    async def release(request: web.Request) -> Any:
        return await ipam_views.release(node, _needed(request, "address"), force=request.query.get("force") == "true")

    async def reclaim(request: web.Request) -> Any:
        text = request.query.get("quarantine", str(QUARANTINE))
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _LONGEST_QUARANTINE:
            raise web.HTTPBadRequest(text=f"quarantine is {text!r}, must be 1 to {_LONGEST_QUARANTINE} seconds")
        return await ipam_views.reclaim(node, _needed(request, "node"), int(text))

    return [
        web.get("/v1/ipam/show", answering(show)),
        web.get("/v1/ipam/blocks", answering(blocks)),
        web.get("/v1/ipam/pools", answering(pools)),
        web.post("/v1/ipam/pools/{name}", answering(set_pool)),
        web.get("/v1/ipam/check", answering(check)),
        web.post("/v1/ipam/check", answering(check)),
        web.post("/v1/ipam/release", answering(release)),
        web.post("/v1/ipam/reclaim", answering(reclaim)),
    ]


def _needed(request: web.Request, name: str) -> str:
    if not request.query.get(name):
        raise web.HTTPBadRequest(text=f"{name} is missing")
    return request.query[name]


def _changes(query: Mapping[str, str]) -> dict[str, object]:
    changes: dict[str, object] = {}
    for key, text in query.items():
        if key == "blockSize" and text.isascii() and text.isdigit():
            changes["block_size"] = int(text)
        elif key in _SWITCHES and text in ("true", "false"):
            changes[_SWITCHES[key]] = text == "true"
        elif key == "aggregate" and text in ("none", "beside", "only"):
            changes["aggregate"] = text
        else:
            known = f"{', '.join(_SWITCHES)} (true, false), blockSize (a number), aggregate (none, beside, only)"
            raise web.HTTPBadRequest(text=f"{key}={text} cannot be set; there are {known}")
    return changes
