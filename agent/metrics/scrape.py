"""One scrape: look at the rooms on the loop, in slices; make text of it in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from agent.metrics import bgp, cni, fib, ipam, process
from agent.metrics.catalogue import Reading
from agent.node import Node

METRICS = (*process.METRICS, *bgp.METRICS, *fib.METRICS, *ipam.METRICS, *cni.METRICS)


async def scrape(node: Node, accept: str) -> tuple[bytes, str]:
    """Return all metrics and their content type; ``accept``: the header of HTTP."""
    agent, peers, kernel = await process.look(node), await bgp.look(node), await fib.look(node)
    addresses, containers = await ipam.look(node), await cni.look(node)

    def readings() -> Iterator[Reading]:
        yield from process.read(agent)
        yield from bgp.read(peers)
        yield from fib.read(kernel)
        yield from ipam.read(addresses)
        yield from cni.read(containers)

    def text() -> tuple[bytes, str]:
        # Imported here, in a thread: an agent that nobody scrapes does without
        from agent.metrics.exposition import expose

        return expose(METRICS, readings(), accept)

    return await asyncio.to_thread(text)
