"""The agent's HTTP API on its Unix socket: what the command line, tests and other programs read.

``GET /metrics``, ``/healthz`` and ``/readyz`` are those of ``agent.observing``, which are served over TCP too where the
configuration says so, with the page and nothing else.

``GET /v1/status``, ``/v1/peers``, ``/v1/blocks`` and ``/v1/pods`` answer JSON; ``/v1/routes`` streams one JSON object a
line (NDJSON), in slices, so that a full table neither fills memory nor holds the event loop; ``/v1/converged`` answers
when the node has converged or ``timeout`` seconds are over; ``/v1/explain?prefix=`` tells all about one prefix.
``POST /v1/stop`` ends the agent in a ``mode``, ``POST /v1/reload`` has it read its file anew (``dryRun``: only say what
would change). Errors are ``{"error": text}`` with a 4xx or 5xx status.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast, get_args

from aiohttp import web

from agent import ipam_api, observing, views
from agent.errors import StartError
from agent.explain import explain
from agent.node import Node
from agent.reload import RestartNeededError
from agent.stopping import Mode
from agent.tcp_site import TcpSite
from bgp.status import SpeakerError
from config import prefix
from config.prefix import BY_NAME, FAMILIES, Family
from config.problems import ConfigError
from ipam.errors import IpamError

LONGEST_WAIT = 3600.0
"""Seconds that /v1/converged may be asked to wait."""

_NODE: web.AppKey[Node] = web.AppKey("node", Node)
_SITE: web.AppKey[TcpSite] = web.AppKey("site", TcpSite)


class ApiServer:
    """Serves a node's API on ``path``, mode 0600."""

    def __init__(self, node: Node, path: str) -> None:
        self._path = path
        app = web.Application(middlewares=[_errors_as_json])
        app[_NODE] = node
        self._address = node.config.metrics.address
        self._site = app[_SITE] = TcpSite(lambda: observing.application(node))
        app.add_routes(
            [
                web.get("/v1/status", _status),
                web.get("/v1/peers", _peers),
                web.get("/v1/routes", _routes),
                web.get("/v1/blocks", _blocks),
                web.get("/v1/pods", _pods),
                web.get("/v1/converged", _converged),
                web.post("/v1/stop", _stop),
                web.post("/v1/peers/{name}/{what:shutdown|start}", _peer),
                web.post("/v1/reload", _reload),
                *ipam_api.routes(node),
                web.get("/v1/explain", _explain),
                *observing.routes(node),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self) -> None:
        """Serve. Raises StartError where another agent answers on the socket, or one cannot be made."""
        await self._runner.setup()
        await web.SockSite(self._runner, listening_socket(self._path)).start()
        try:
            await self._site.serve(self._site.open(self._address))
        except StartError:
            await self.stop()
            raise

    async def stop(self) -> None:
        await self._site.close()
        await self._runner.cleanup()
        self._unlink()

    def _unlink(self) -> None:
        Path(self._path).unlink(missing_ok=True)


def listening_socket(path: str) -> socket.socket:
    """Return a listening Unix socket, mode 0600, in the place of one that a dead agent left. Raises StartError."""
    if _answers(path):
        raise StartError(f"another agent answers on {path}: stop it first, or give this one an api.socket of its own")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        if os.path.exists(path):
            os.unlink(path)
        old = os.umask(0o177)
        try:
            made.bind(path)
        finally:
            os.umask(old)
        made.listen()
    except OSError as error:
        made.close()
        raise StartError(f"cannot listen on {path}: {error.strerror}") from error
    return made


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        text = error.text or error.reason
        if error.status == 404 and text == "404: Not Found":
            text = f"no such path: {request.path}"
        return web.json_response({"error": text}, status=error.status)
    except IpamError as error:
        return web.json_response({"error": str(error), "code": error.code}, status=503 if error.retry else 409)


async def _status(request: web.Request) -> web.Response:
    return web.json_response(await views.status(request.app[_NODE]))


async def _peers(request: web.Request) -> web.Response:
    return web.json_response(views.peers(request.app[_NODE]))


async def _blocks(request: web.Request) -> web.Response:
    return web.json_response(await views.blocks(request.app[_NODE]))


async def _pods(request: web.Request) -> web.Response:
    return web.json_response(await views.pods(request.app[_NODE]))


async def _routes(request: web.Request) -> web.StreamResponse:
    families: tuple[Family, ...] = FAMILIES
    only: bytes | None = None
    if "family" in request.query:
        if request.query["family"] not in BY_NAME:
            raise web.HTTPBadRequest(text=f"family is {request.query['family']!r}, must be ipv4 or ipv6")
        families = (BY_NAME[request.query["family"]],)
    if "prefix" in request.query:
        try:
            family, only = prefix.parse(request.query["prefix"])
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"prefix: {error}; must be such as 10.64.0.0/26") from None
        families = (family,)
    limit = _number(request, "limit", math.inf, math.inf)
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    for family in families:
        async for batch in views.routes(request.app[_NODE], family, only):
            taken = batch[: int(min(limit, len(batch)))]
            limit -= len(taken)
            if taken:
                await response.write(b"".join(json.dumps(route).encode() + b"\n" for route in taken))
            await asyncio.sleep(0)
            if limit <= 0:
                return response
    return response


async def _explain(request: web.Request) -> web.Response:
    node = request.app[_NODE]
    if not node.running:
        raise web.HTTPServiceUnavailable(text=f"the agent is {node.state}")
    if "prefix" not in request.query:
        raise web.HTTPBadRequest(text="prefix is missing: a prefix or an address")
    try:
        family, wanted = prefix.parse(request.query["prefix"])
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"prefix: {error}; must be such as 10.64.0.0/26") from None
    return web.json_response(await explain(node, family, wanted))


async def _converged(request: web.Request) -> web.Response:
    node = request.app[_NODE]
    loop = asyncio.get_running_loop()
    start = loop.time()
    waiting = await node.wait_converged(_number(request, "timeout", 0.0, LONGEST_WAIT))
    answer = {"converged": not waiting, "waitingFor": waiting, "waited": loop.time() - start}
    return web.json_response(answer)


async def _reload(request: web.Request) -> web.Response:
    node = request.app[_NODE]
    if node.state != "running":
        raise web.HTTPConflict(text=f"the agent is {node.state}")
    dry_run = "dryRun" in request.query
    try:
        plan = await node.reload(request.app[_SITE], dry_run=dry_run)
    except (ConfigError, RestartNeededError, SpeakerError, StartError) as error:
        raise web.HTTPBadRequest(text=str(error)) from None
    return web.json_response({"applied": not dry_run, **plan.as_json()})


async def _peer(request: web.Request) -> web.Response:
    speaker, name = request.app[_NODE].speaker, request.match_info["name"]
    try:
        if request.match_info["what"] == "shutdown":
            speaker.shut_down(name, request.query.get("text", ""))
        else:
            speaker.start_peer(name)
    except KeyError:
        raise web.HTTPNotFound(text=f"no peer is called {name}") from None
    there = next((peer for peer in speaker.peers() if peer.name == name), None)  # a dynamic one may have nothing left
    return web.json_response({"name": name, "problem": there.reason if there else "waiting for the peer to connect"})


async def _stop(request: web.Request) -> web.Response:
    mode = request.query.get("mode")
    if mode is not None and mode not in get_args(Mode):
        raise web.HTTPBadRequest(text=f"mode is {mode!r}, must be {', '.join(get_args(Mode))}")
    node = request.app[_NODE]
    node.stop(cast(Mode | None, mode))
    return web.json_response({"mode": node.stop_mode})


def _number(request: web.Request, name: str, default: float, largest: float) -> float:
    text = request.query.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= largest:
        raise web.HTTPBadRequest(text=f"{name} is {text!r}, must be a number from 0 to {largest:g}")
    return number
