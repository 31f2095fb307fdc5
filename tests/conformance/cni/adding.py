"""ADD: results in every version, and whether they are true."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_interface, ip_network
from typing import Any

from labs.libcni import VERSIONS
from tests.conformance.cni.bed import Bed, Pod, answer, show
from tests.conformance.cni.model import MUST, SHOULD, Check, ConformanceError, NotApplicableError, expect

_NEW_IN_INTERFACES = {"mtu", "socketPath", "pciID"}
_NEW_IN_ROUTES = {"mtu", "advmss", "priority", "table", "scope"}
_NOISE = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web", "CNI_LOG_LEVEL": "debug"}


def result_in(version: str) -> Callable[[Bed], Awaitable[None]]:
    async def run(bed: Bed) -> None:
        if version not in bed.supported:
            raise NotApplicableError(f"the plugin does not support {version}")
        pod = bed.pod()
        check_result(await bed.add(pod, version=version), version, pod)
        await bed.succeeds("DEL", pod, version=version)

    return run


def check_result(result: Mapping[str, Any], version: str, pod: Pod) -> None:
    """Hold a result against section 5 of the specification. Raises ConformanceError."""
    expect(result.get("cniVersion") == version, f"cniVersion {version}", result.get("cniVersion"))
    interfaces = result.get("interfaces")
    ips = result.get("ips", [])
    routes = result.get("routes", [])
    expect(isinstance(interfaces, list) and interfaces, "a list `interfaces`", result)
    assert isinstance(interfaces, list)
    inside = [index for index, interface in enumerate(interfaces) if interface.get("sandbox") == pod.path]
    expect(inside, "an interface whose sandbox is CNI_NETNS", interfaces)
    expect(any(interfaces[i]["name"] == "eth0" for i in inside), "the interface CNI_IFNAME among them", interfaces)
    for ip in ips:
        try:
            family = ip_interface(ip["address"]).version
        except (KeyError, ValueError):
            raise ConformanceError("addresses with prefix length", str(ip)) from None
        expect(ip.get("interface") in inside, "each address on an interface of the container, by index", ip)
        if version < "1.0.0":
            expect(ip.get("version") == str(family), "`version` of an address, before 1.0.0", ip)
        else:
            expect("version" not in ip, "no `version` of an address since 1.0.0", ip)
    for route in routes:
        try:
            ip_network(route["dst"])
        except (KeyError, ValueError):
            raise ConformanceError("routes with a prefix `dst`", str(route)) from None
    if version < "1.1.0":
        early = set().union(*(set(i) & _NEW_IN_INTERFACES for i in interfaces))
        early |= set().union(*(set(r) & _NEW_IN_ROUTES for r in routes))
        expect(not early, "no keys that came with 1.1.0", sorted(early))
    expect(isinstance(result.get("dns", {}), dict), "`dns` an object", result)


async def true(bed: Bed) -> None:
    pod = bed.pod()
    result = await bed.add(pod)
    links = pod.links()
    expect("eth0" in links, "the interface in the container", sorted(links))
    expect("UP" in links["eth0"]["flags"], "it is up", links["eth0"]["flags"])
    named = next(i for i in result["interfaces"] if i["name"] == "eth0" and i.get("sandbox"))
    mac = links["eth0"]["address"]
    expect(named.get("mac", "").lower() == mac, "its MAC as in the result", mac)
    if "mtu" in named:
        expect(named["mtu"] == links["eth0"]["mtu"], "its MTU as in the result", links["eth0"]["mtu"])
    wanted = {ip["address"] for ip in result["ips"]}
    expect(pod.addresses() == wanted, f"the addresses {sorted(wanted)}", sorted(pod.addresses()))


async def routes_true(bed: Bed) -> None:
    pod = bed.pod()
    routes = (await bed.add(pod)).get("routes", [])
    if not routes:
        raise NotApplicableError("the result has no routes")
    have = pod.netns.run("ip", "-4", "route") + pod.netns.run("ip", "-6", "route")
    for route in routes:
        destination = {"0.0.0.0/0": "default", "::/0": "default"}.get(route["dst"], route["dst"])
        way = f"{destination} via {route['gw']}" if route.get("gw") else destination
        expect(way in have, f"the route {way} in the container", have)


async def again(bed: Bed) -> None:
    pod = bed.pod()
    await bed.add(pod)
    held = pod.addresses()
    before = bed.traces()
    await bed.fails("ADD", pod)
    expect(pod.addresses() == held, f"the first ADD's addresses {sorted(held)} unharmed", sorted(pod.addresses()))
    await bed.same(before)


async def name_taken(bed: Bed) -> None:
    pod = bed.pod()
    before = bed.traces()
    pod.make_link("eth0")
    await bed.fails("ADD", pod)
    expect("eth0" in pod.links(), "the interface that was there before", sorted(pod.links()))
    await bed.same(before)


async def second_interface(bed: Bed) -> None:
    pod = bed.pod()
    await bed.add(pod)
    await bed.add(pod, ifname="net1")
    expect(pod.addresses("net1"), "addresses on the second interface", pod.addresses("net1"))
    await bed.succeeds("DEL", pod, ifname="net1")
    expect(pod.addresses(), "the first interface unharmed", sorted(pod.links()))


async def noise(bed: Bed) -> None:
    pod = bed.pod()
    outcome = await bed.call("ADD", pod, env=_NOISE, config={"args": {"cni": {"labels": []}}, "x-example": {"a": 1}})
    expect(outcome.status == 0, "ADD with arguments and keys of others succeeds", show(outcome))
    check_result(answer(outcome), bed.version, pod)


def _declared(bed: Bed, capability: str) -> None:
    if not bed.subject.config.get("capabilities", {}).get(capability):
        raise NotApplicableError(f"the configuration does not declare the capability {capability}")


async def capability_mac(bed: Bed) -> None:
    _declared(bed, "mac")
    pod = bed.pod()
    mac = "02:00:5e:10:20:30"
    result = await bed.add(pod, config={"runtimeConfig": {"mac": mac}})
    expect(pod.links()["eth0"]["address"] == mac, f"MAC {mac}", pod.links()["eth0"]["address"])
    expect(mac in str(result["interfaces"]), f"MAC {mac} in the result", result["interfaces"])


async def capability_ips(bed: Bed) -> None:
    _declared(bed, "ips")
    given = ip_interface((await bed.add(bed.pod()))["ips"][0]["address"])
    wanted = f"{given.ip + 3}/{given.network.prefixlen}"
    pod, other = bed.pod(), bed.pod()
    await bed.add(pod, config={"runtimeConfig": {"ips": [wanted]}})
    expect(wanted in pod.addresses(), f"the address {wanted}", sorted(pod.addresses()))
    await bed.fails("ADD", other, config={"runtimeConfig": {"ips": [wanted]}})


async def capability_dns(bed: Bed) -> None:
    _declared(bed, "dns")
    result = await bed.add(
        bed.pod(), config={"runtimeConfig": {"dns": {"servers": ["192.0.2.53"], "searches": ["a.b"]}}}
    )
    dns = result.get("dns", {})
    expect(dns.get("nameservers") == ["192.0.2.53"] and dns.get("search") == ["a.b"], "the DNS settings asked for", dns)


CHECKS = (
    *(
        Check(f"add.result-{version}", MUST, "5 Success", f"ADD's result is one of {version}", result_in(version))
        for version in VERSIONS
    ),
    Check("add.true", MUST, "2 ADD", "interface, MAC, MTU and addresses are as the result says", true),
    Check("add.routes", MUST, "2 ADD", "the container has the routes of the result", routes_true),
    Check("add.again", MUST, "2 ADD", "ADD for an interface that is there: an error, the first unharmed", again),
    Check("add.name-taken", MUST, "2 ADD", "a foreign interface of that name: an error, nothing left", name_taken),
    Check("add.second", SHOULD, "2 ADD", "one container may be in a network twice", second_interface),
    Check("add.noise", MUST, "2 Execution", "arguments and keys of others change nothing, stdout is JSON", noise),
    Check("capability.mac", MUST, "conventions", "a declared capability `mac` is honoured", capability_mac),
    Check("capability.ips", MUST, "conventions", "a declared capability `ips` is honoured, once", capability_ips),
    Check("capability.dns", MUST, "conventions", "a declared capability `dns` is honoured", capability_dns),
)
