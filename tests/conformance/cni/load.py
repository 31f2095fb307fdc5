"""Many at once, and plugins that are killed in the middle."""

from __future__ import annotations

import asyncio
import json
import time

from labs.libcni import environment
from tests.conformance.cni.bed import Bed, Pod, answer, show
from tests.conformance.cni.model import MUST, SHOULD, Check, expect

KILLS = 12


async def parallel(bed: Bed) -> None:
    before = bed.traces()
    pods = [bed.pod() for _ in range(bed.subject.pods)]
    outcomes = await asyncio.gather(*(bed.call("ADD", pod) for pod in pods))
    for outcome in outcomes:
        expect(outcome.status == 0, f"{len(pods)} ADDs at once succeed", show(outcome))
    given = [ip["address"] for outcome in outcomes for ip in answer(outcome)["ips"]]
    twice = sorted({address for address in given if given.count(address) > 1})
    expect(not twice, "no address given twice", twice)
    await asyncio.gather(*(bed.succeeds("DEL", pod) for pod in pods))
    await bed.same(before)


async def _kill_in_the_middle(bed: Bed) -> list[Pod]:
    """Kill ADDs at moments spread over the time that one takes."""
    pod = bed.pod()
    start = time.monotonic()
    await bed.add(pod)
    lasts = time.monotonic() - start
    await bed.succeeds("DEL", pod)
    killed = []
    for number in range(KILLS):
        pod = bed.pod()
        stdin = json.dumps({**bed.subject.config, "cniVersion": bed.version}).encode()
        variables = environment("ADD", pod.attachment, bed.subject.path)
        async with bed.running(variables, stdin) as process:
            assert process.stdin
            process.stdin.write(stdin)
            process.stdin.close()
            await asyncio.sleep(lasts * number / KILLS)
        killed.append(pod)
    return killed


async def killed(bed: Bed) -> None:
    before = bed.traces()
    pods = await _kill_in_the_middle(bed)
    for pod in pods:
        await bed.succeeds("DEL", pod)
        await bed.unplugged(pod)
    await bed.same(before)
    for pod in pods:
        await bed.add(pod)
        await bed.succeeds("DEL", pod)
    await bed.same(before)


async def killed_and_collected(bed: Bed) -> None:
    bed.needs("1.1.0")
    before = bed.traces()
    pods = await _kill_in_the_middle(bed)
    for pod in pods:
        pod.netns.run("ip", "link", "delete", "eth0", check=False)
    await bed.succeeds("GC", config={"cni.dev/valid-attachments": []})
    await bed.same(before)
    for pod in pods:
        await bed.add(pod)


CHECKS = (
    Check(
        "load.parallel",
        MUST,
        "3 Lifecycle",
        "many ADDs at once succeed, no address twice",
        parallel,
    ),
    Check("load.killed", SHOULD, "2 DEL", "an ADD killed anywhere: DEL leaves nothing, ADD works", killed),
    Check("load.killed-gc", SHOULD, "2 GC", "an ADD killed anywhere: GC leaves nothing", killed_and_collected),
)
