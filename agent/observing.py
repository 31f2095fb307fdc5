"""What anybody may read of the agent: metrics, and whether it is alive and ready.

``GET /metrics`` is Prometheus' text format, or OpenMetrics where ``Accept`` asks for it. ``GET /healthz`` is 200 as
long as the agent answers at all; ``GET /readyz`` is 200 where containers can be added, else 503 with the code of CNI's
STATUS and why. Nothing here changes anything.
"""

from __future__ import annotations

from aiohttp import web

from agent import page
from agent.metrics.scrape import scrape
from agent.node import Node


def routes(node: Node) -> list[web.RouteDef]:
    async def metrics(request: web.Request) -> web.Response:
        text, content_type = await scrape(node, request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        trouble = node.ready(())
        if trouble is None:
            return web.Response(text="ok\n")
        code, why = trouble
        return web.Response(status=503, text=f"{int(code)}: {why}\n")

    return [web.get("/metrics", metrics), web.get("/healthz", alive), web.get("/readyz", ready)]


def application(node: Node) -> web.Application:
    """Return what is served over TCP: also the page, for people."""
    app = web.Application()
    app.add_routes([*routes(node), *page.routes(node)])
    return app
