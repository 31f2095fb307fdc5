"""CHECK: it finds damage, and tolerates what later plugins of a chain do."""

from __future__ import annotations

from typing import Any

from tests.conformance.cni.bed import Bed, Pod
from tests.conformance.cni.model import MUST, SHOULD, Check, NotApplicableError


async def _added(bed: Bed) -> tuple[Pod, dict[str, Any]]:
    bed.needs("0.4.0")
    pod = bed.pod()
    return pod, await bed.add(pod)


async def fine(bed: Bed) -> None:
    pod, result = await _added(bed)
    await bed.succeeds("CHECK", pod, previous=result)
    await bed.succeeds("CHECK", pod, previous=result)


async def address_gone(bed: Bed) -> None:
    pod, result = await _added(bed)
    pod.netns.run("ip", "address", "delete", result["ips"][0]["address"], "dev", "eth0")
    await bed.fails("CHECK", pod, previous=result)


async def route_gone(bed: Bed) -> None:
    pod, result = await _added(bed)
    if not result.get("routes"):
        raise NotApplicableError("the result has no routes")
    route = result["routes"][0]["dst"]
    pod.netns.run("ip", "-6" if ":" in route else "-4", "route", "delete", route)
    await bed.fails("CHECK", pod, previous=result)


async def interface_gone(bed: Bed) -> None:
    pod, result = await _added(bed)
    pod.netns.run("ip", "link", "delete", "eth0")
    await bed.fails("CHECK", pod, previous=result)


async def interface_down(bed: Bed) -> None:
    pod, result = await _added(bed)
    pod.netns.run("ip", "link", "set", "eth0", "down")
    await bed.fails("CHECK", pod, previous=result)


async def host_end_gone(bed: Bed) -> None:
    """The host's end deleted and its name taken by an interface that leads nowhere."""
    before = bed.traces()
    pod, result = await _added(bed)
    named = [i["name"] for i in result["interfaces"] if not i.get("sandbox")]
    made = [name for name in named if f"link {name}" not in before]
    if not made:
        raise NotApplicableError("the result names no interface of the host that ADD made")
    bed.run("ip", "link", "delete", made[0])
    await bed.fails("CHECK", pod, previous=result)


async def no_result(bed: Bed) -> None:
    pod, _ = await _added(bed)
    await bed.fails("CHECK", pod)


async def deleted(bed: Bed) -> None:
    pod, result = await _added(bed)
    await bed.succeeds("DEL", pod, previous=result)
    await bed.fails("CHECK", pod, previous=result)


async def mtu_changed(bed: Bed) -> None:
    pod, result = await _added(bed)
    pod.netns.run("ip", "link", "set", "eth0", "mtu", "1300")
    await bed.succeeds("CHECK", pod, previous=result)


async def more_addresses(bed: Bed) -> None:
    pod, result = await _added(bed)
    pod.netns.run("ip", "address", "add", "192.0.2.77/32", "dev", "eth0")
    pod.netns.run("ip", "route", "add", "198.51.100.0/24", "dev", "eth0")
    await bed.succeeds("CHECK", pod, previous=result)


CHECKS = (
    Check("check.ok", MUST, "2 CHECK", "CHECK right after ADD succeeds, and again", fine),
    Check("check.address", SHOULD, "2 CHECK", "an address gone: an error", address_gone),
    Check("check.route", SHOULD, "2 CHECK", "a route gone: an error", route_gone),
    Check("check.interface", SHOULD, "2 CHECK", "the interface gone: an error", interface_gone),
    Check("check.down", SHOULD, "2 CHECK", "the interface down: an error", interface_down),
    Check("check.host-end", SHOULD, "2 CHECK", "the host's interface gone: an error", host_end_gone),
    Check("check.no-result", SHOULD, "2 CHECK", "without prevResult: an error", no_result),
    Check("check.deleted", SHOULD, "2 CHECK", "after DEL: an error", deleted),
    Check("check.mtu", MUST, "2 CHECK", "an MTU that a later plugin set is fine", mtu_changed),
    Check("check.more", MUST, "2 CHECK", "addresses and routes that a later plugin added are fine", more_addresses),
)
