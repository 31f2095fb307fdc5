"""The plugin in a list with others, and with an IPAM plugin of its configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from labs.libcni import PluginError
from tests.conformance.cni.bed import Bed, answer
from tests.conformance.cni.model import MUST, SHOULD, Check, ConformanceError, NotApplicableError, expect

# Stands in for the IPAM plugin of the configuration: notes each verb, and fails those that it is told to.
_IPAM = """#!/usr/bin/python3 -IS
import json, os, sys
config = json.load(sys.stdin)
verb = os.environ["CNI_COMMAND"]
with open({log!r}, "a") as log:
    log.write(verb + "\\n")
if verb == "VERSION":
    print(json.dumps({{"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}}))
elif verb in {failing!r}:
    print(json.dumps({{"cniVersion": config["cniVersion"], "code": 111, "msg": "no address left"}}))
    sys.exit(1)
elif verb == "ADD":
    print(json.dumps({{"cniVersion": config["cniVersion"], "ips": {ips!r}, "dns": {{}}}}))
"""


def in_front_of(plugin: Mapping[str, Any]) -> Callable[[Bed], Awaitable[None]]:
    async def run(bed: Bed) -> None:
        pod = bed.pod()
        before = bed.traces()
        network = bed.chain(plugin)
        try:
            result = await network.add(pod.attachment)
            expect("eth0" in str(result["interfaces"]), "the container's interface in the list's result", result)
            expect(pod.addresses() == {ip["address"] for ip in result["ips"]}, "its addresses", sorted(pod.addresses()))
            await network.check(pod.attachment)
            await network.delete(pod.attachment)
        except PluginError as error:
            raise ConformanceError("ADD, CHECK and DEL of the list succeed", str(error)) from None
        await bed.unplugged(pod)
        await bed.same(before)

    return run


async def behind(bed: Bed) -> None:
    bed.needs("0.4.0")
    pod = bed.pod()
    pod.make_link("first")
    previous = {
        "cniVersion": bed.version,
        "interfaces": [{"name": "first", "mac": pod.links()["first"]["address"], "sandbox": pod.path}],
        "ips": [],
        "routes": [],
        "dns": {},
    }
    outcome = await bed.call("ADD", pod, previous=previous)
    said = answer(outcome)
    if outcome.status:
        expect(isinstance(said.get("code"), int), "an error object", said)
    else:
        names = [interface["name"] for interface in said.get("interfaces", [])]
        expect("first" in names, "the earlier plugin's interface in the result, or a refusal", said)


async def _stand_in(bed: Bed, *failing: str) -> tuple[Path, dict[str, Any], str]:
    """Return the stand-in's log, configuration changes that name it, and CNI_PATH that leads to it.

    It gives addresses that the real one gave, which suit what the plugin has made of the host.
    """
    if not bed.subject.config.get("ipam"):
        raise NotApplicableError("the configuration has no ipam")
    pod = bed.pod()
    result = await bed.add(pod)
    await bed.succeeds("DEL", pod, previous=result)
    ips = [{key: value for key, value in ip.items() if key != "interface"} for ip in result["ips"]]
    directory = bed.directory / "ipam"
    directory.mkdir(exist_ok=True)
    log = bed.directory / "ipam.log"
    log.write_text("")
    file = directory / "stand-in"
    file.write_text(_IPAM.format(log=str(log), failing=failing, ips=ips))
    file.chmod(0o755)
    return log, {"ipam": {"type": "stand-in"}}, f"{directory}:{bed.subject.path}"


async def ipam_fails(bed: Bed) -> None:
    _, config, path = await _stand_in(bed, "ADD")
    pod = bed.pod()
    before = bed.traces()
    await bed.fails("ADD", pod, config=config, path=path)
    await bed.unplugged(pod)
    await bed.same(before)


async def ipam_undone(bed: Bed) -> None:
    log, config, path = await _stand_in(bed)
    pod = bed.pod()
    pod.make_link("eth0")
    await bed.fails("ADD", pod, config=config, path=path)
    verbs = log.read_text().split()
    expect("ADD" not in verbs or "DEL" in verbs, "IPAM DEL after IPAM ADD", verbs)


async def ipam_verbs(bed: Bed) -> None:
    log, config, path = await _stand_in(bed)
    pod = bed.pod()
    verbs = ["ADD", "CHECK", "DEL"]
    result = await bed.add(pod, config=config, path=path)
    await bed.succeeds("CHECK", pod, previous=result, config=config, path=path)
    await bed.succeeds("DEL", pod, previous=result, config=config, path=path)
    if bed.version >= "1.1.0":
        verbs += ["STATUS", "GC"]
        await bed.succeeds("STATUS", config=config, path=path)
        await bed.succeeds("GC", config={**config, "cni.dev/valid-attachments": []}, path=path)
    said = [verb for verb in log.read_text().split() if verb != "VERSION"]
    expect(said == verbs, f"each verb forwarded to IPAM: {verbs}", said)


async def ipam_check_fails(bed: Bed) -> None:
    _, config, path = await _stand_in(bed, "CHECK")
    pod = bed.pod()
    result = await bed.add(pod, config=config, path=path)
    await bed.fails("CHECK", pod, previous=result, config=config, path=path)


_TUNING = {"type": "tuning", "mtu": 1300, "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}}
_BANDWIDTH = {
    "type": "bandwidth",
    "ingressRate": 10**9,
    "ingressBurst": 10**6,
    "egressRate": 10**9,
    "egressBurst": 10**6,
}

CHECKS = (
    Check(
        "chain.portmap",
        MUST,
        "3 Lists",
        "in front of portmap: ADD, CHECK, DEL",
        in_front_of({"type": "portmap", "capabilities": {"portMappings": True}}),
    ),
    Check(
        "chain.bandwidth",
        MUST,
        "3 Lists",
        "in front of bandwidth: ADD, CHECK, DEL",
        in_front_of(_BANDWIDTH),
    ),
    Check("chain.tuning", MUST, "3 Lists", "in front of tuning, which sets MTU and a sysctl", in_front_of(_TUNING)),
    Check(
        "chain.tuning-mac",
        MUST,
        "3 Lists",
        "in front of tuning, which sets the MAC",
        in_front_of({"type": "tuning", "mac": "02:00:5e:aa:bb:cc"}),
    ),
    Check("chain.behind", SHOULD, "2 ADD", "behind another plugin: its result is passed on, or refused", behind),
    Check("ipam.fails", MUST, "4 Delegation", "IPAM fails: ADD fails, nothing is left", ipam_fails),
    Check("ipam.undone", MUST, "4 Delegation", "ADD fails after IPAM ADD: IPAM DEL is called", ipam_undone),
    Check("ipam.verbs", MUST, "4 Delegation", "every verb is forwarded to IPAM", ipam_verbs),
    Check("ipam.check-fails", SHOULD, "4 Delegation", "IPAM CHECK fails: CHECK fails", ipam_check_fails),
)
