"""GC and STATUS of CNI 1.1.0, and a plugin whose other half is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.conformance.cni.bed import Bed, Pod
from tests.conformance.cni.model import MUST, SHOULD, Check, NotApplicableError, expect

VALID = "cni.dev/valid-attachments"
TRY_AGAIN, UNAVAILABLE = 11, (50, 51)


def _listed(*pods: Pod) -> dict[str, Any]:
    return {VALID: [{"containerID": pod.container, "ifname": "eth0"} for pod in pods]}


async def collects(bed: Bed) -> None:
    """What is collected cannot be seen from outside, but the same container can be added again."""
    bed.needs("1.1.0")
    stale, valid = bed.pod(), bed.pod()
    await bed.add(stale)
    kept = await bed.add(valid)
    stale.netns.run("ip", "link", "delete", "eth0")
    await bed.succeeds("GC", config=_listed(valid))
    await bed.succeeds("CHECK", valid, previous=kept)
    expect(valid.addresses() == {ip["address"] for ip in kept["ips"]}, "the valid one unharmed", valid.addresses())
    await bed.add(stale)


async def collects_again(bed: Bed) -> None:
    bed.needs("1.1.0")
    before = bed.traces()
    stale = bed.pod()
    await bed.add(stale)
    stale.netns.run("ip", "link", "delete", "eth0")
    for _ in range(2):
        await bed.succeeds("GC", config=_listed())
    await bed.same(before)


async def other_network(bed: Bed) -> None:
    bed.needs("1.1.0")
    pod = bed.pod()
    result = await bed.add(pod)
    await bed.succeeds("GC", config={"name": f"{bed.network}-other", **_listed()})
    await bed.succeeds("CHECK", pod, previous=result)


async def null_list(bed: Bed) -> None:
    """What a Go runtime makes of an empty list."""
    bed.needs("1.1.0")
    await bed.succeeds("GC", config={VALID: [], "cni.dev/attachments": []})
    config = {**bed.subject.config, "cniVersion": bed.version}
    text = str({**config, VALID: None}).replace("'", '"').replace("None", "null").replace("True", "true")
    await bed.succeeds("GC", stdin=text.replace("False", "false").encode())


async def ready(bed: Bed) -> None:
    bed.needs("1.1.0")
    await bed.succeeds("STATUS")


async def before_its_time(bed: Bed) -> None:
    bed.needs("1.1.0")
    await bed.fails("STATUS", version="1.0.0", codes=[1])
    await bed.fails("GC", version="1.0.0", codes=[1])


@asynccontextmanager
async def _away(bed: Bed) -> AsyncIterator[None]:
    """Take the plugin's other half away for a while."""
    if not (bed.subject.stop and bed.subject.start):
        raise NotApplicableError("no --stop-command and --start-command")
    await _run(bed.subject.stop)
    try:
        yield
    finally:
        await _run(bed.subject.start)


async def _run(command: Sequence[str]) -> None:
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0, f"{' '.join(command)} failed"


async def status_away(bed: Bed) -> None:
    bed.needs("1.1.0")
    async with _away(bed):
        await bed.fails("STATUS", codes=UNAVAILABLE)
    await bed.succeeds("STATUS")


async def add_away(bed: Bed) -> None:
    before = bed.traces()
    pod = bed.pod()
    async with _away(bed):
        await bed.fails("ADD", pod, codes=[TRY_AGAIN])
        await bed.unplugged(pod)
    await bed.add(pod)
    await bed.succeeds("DEL", pod)
    await bed.same(before)


async def del_away(bed: Bed) -> None:
    before = bed.traces()
    pod = bed.pod()
    result = await bed.add(pod)
    async with _away(bed):
        await bed.succeeds("DEL", pod, previous=result)
        pod.netns.run("ip", "link", "delete", "eth0", check=False)
    await bed.same(before)
    await bed.add(pod)


CHECKS = (
    Check("gc.collects", MUST, "2 GC", "GC forgets what is not listed, and keeps what is", collects),
    Check("gc.again", MUST, "2 GC", "GC of nothing succeeds, the host is as before", collects_again),
    Check("gc.other-network", MUST, "2 GC", "GC of another network touches nothing of this one", other_network),
    Check("gc.null", SHOULD, "2 GC", "a list that is null means an empty one", null_list),
    Check("status.ready", MUST, "2 STATUS", "STATUS succeeds while ADD would", ready),
    Check("version.verbs", SHOULD, "2 Operations", "STATUS and GC with cniVersion 1.0.0: code 1", before_its_time),
    Check("away.status", MUST, "2 STATUS", "STATUS fails with 50 or 51 when ADD cannot succeed", status_away),
    Check("away.add", SHOULD, "5 Error", "ADD fails with 11, nothing is left, later it succeeds", add_away),
    Check("away.del", SHOULD, "2 DEL", "DEL succeeds, and is carried out in the end", del_away),
)
