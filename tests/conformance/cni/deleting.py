"""DEL: it removes, again and again, whatever is missing."""

from __future__ import annotations

from tests.conformance.cni.bed import Bed
from tests.conformance.cni.model import MUST, SHOULD, Check, expect


async def removes(bed: Bed) -> None:
    pod = bed.pod()
    before = bed.traces()
    result = await bed.add(pod)
    await bed.succeeds("DEL", pod, previous=result)
    await bed.unplugged(pod)
    await bed.same(before)


async def without_result(bed: Bed) -> None:
    pod = bed.pod()
    before = bed.traces()
    await bed.add(pod)
    await bed.succeeds("DEL", pod)
    await bed.unplugged(pod)
    await bed.same(before)


async def twice(bed: Bed) -> None:
    pod = bed.pod()
    result = await bed.add(pod)
    for _ in range(3):
        await bed.succeeds("DEL", pod, previous=result)


async def without_netns(bed: Bed) -> None:
    pod = bed.pod()
    result = await bed.add(pod)
    await bed.succeeds("DEL", pod, previous=result, env={"CNI_NETNS": ""})
    await bed.succeeds("DEL", pod, previous=result, env={"CNI_NETNS": None})


async def netns_gone(bed: Bed) -> None:
    pod = bed.pod()
    before = bed.traces()
    result = await bed.add(pod)
    await bed.succeeds("DEL", pod, previous=result, env={"CNI_NETNS": str(bed.directory / "vanished")})
    # What was in the namespace goes with it.
    pod.netns.run("ip", "link", "delete", "eth0", check=False)
    await bed.same(before)


async def interface_gone(bed: Bed) -> None:
    pod = bed.pod()
    result = await bed.add(pod)
    pod.netns.run("ip", "link", "delete", "eth0")
    await bed.succeeds("DEL", pod, previous=result)


async def unknown(bed: Bed) -> None:
    await bed.succeeds("DEL", bed.pod())


async def late(bed: Bed) -> None:
    """The old container's DEL comes after the new one's ADD, without a namespace."""
    old, new = bed.pod(), bed.pod()
    await bed.add(old)
    held = (await bed.add(new))["ips"]
    await bed.succeeds("DEL", old, env={"CNI_NETNS": ""})
    expect(new.addresses() == {ip["address"] for ip in held}, "the new container unharmed", sorted(new.addresses()))


async def after_failure(bed: Bed) -> None:
    """A runtime deletes what it could not add."""
    pod = bed.pod()
    pod.make_link("eth0")
    await bed.fails("ADD", pod)
    pod.netns.run("ip", "link", "delete", "eth0")
    await bed.succeeds("DEL", pod)
    await bed.add(pod)


async def then_add(bed: Bed) -> None:
    pod = bed.pod()
    await bed.add(pod)
    await bed.succeeds("DEL", pod)
    await bed.add(pod)


CHECKS = (
    Check("del.removes", MUST, "2 DEL", "interface and host are as before ADD, stdout is empty", removes),
    Check("del.without-result", MUST, "2 DEL", "the same without prevResult", without_result),
    Check("del.twice", MUST, "2 DEL", "DEL again succeeds", twice),
    Check("del.no-netns", MUST, "2 DEL", "DEL succeeds with CNI_NETNS empty or absent", without_netns),
    Check("del.netns-gone", MUST, "2 DEL", "DEL succeeds with CNI_NETNS that has gone", netns_gone),
    Check("del.interface-gone", MUST, "2 DEL", "DEL succeeds with the interface gone", interface_gone),
    Check("del.unknown", MUST, "2 DEL", "DEL of an unknown container succeeds", unknown),
    Check("del.late", SHOULD, "2 DEL", "a late DEL harms no newer container", late),
    Check("del.after-failure", MUST, "2 ADD", "after a failed ADD: DEL succeeds, and ADD works", after_failure),
    Check("del.then-add", MUST, "2 DEL", "the same container can be added again", then_add),
)
