"""VERSION, and calls that a plugin must refuse with the specification's error codes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tests.conformance.cni.bed import Bed, answer, show
from tests.conformance.cni.model import MUST, SHOULD, Check, ConformanceError, expect

ENVIRONMENT, DECODING, VERSION, CONFIGURATION, NETNS = 4, 6, 1, 7, 8
BAD_CONTAINERS = ("a/b", ".hidden", "-dash", "a b", "ä")
BAD_IFNAMES = ("sixteen-letters-", ".", "..", "a/b", "a:b", "a b", "a\tb")
BAD_NAMES = ("a/b", ".hidden", "a b", "")


async def versions(bed: Bed) -> None:
    outcome = await bed.call("VERSION", env={"CNI_CONTAINERID": None, "CNI_NETNS": None, "CNI_IFNAME": None})
    expect(outcome.status == 0, "VERSION succeeds", show(outcome))
    said = answer(outcome)
    known = said.get("supportedVersions")
    expect(isinstance(said.get("cniVersion"), str), "a text `cniVersion`", said)
    expect(
        isinstance(known, list) and known and all(isinstance(v, str) for v in known),
        "a list of texts `supportedVersions`",
        said,
    )


async def error_object(bed: Bed) -> None:
    error = answer(await bed.call("FROB", bed.pod()))
    lacking = {"cniVersion", "code", "msg"} - error.keys()
    expect(not lacking, "the keys cniVersion, code and msg", error)


async def no_command(bed: Bed) -> None:
    outcome = await bed.call("", bed.pod(), env={"CNI_COMMAND": None})
    expect(outcome.status == 0 or answer(outcome).get("code") == ENVIRONMENT, "code 4, or a usage text", show(outcome))


def _refuses(verb: str, code: int, **call: Any) -> Callable[[Bed], Awaitable[None]]:
    async def run(bed: Bed) -> None:
        before = bed.traces()
        await bed.fails(verb, bed.pod(), codes=[code], **call)
        await bed.same(before)

    return run


def _refuses_each(variable: str, values: tuple[str, ...]) -> Callable[[Bed], Awaitable[None]]:
    async def run(bed: Bed) -> None:
        before = bed.traces()
        for value in values:
            env: Mapping[str, str] = {variable: value}
            await bed.fails("ADD", bed.pod(), codes=[ENVIRONMENT], env=env)
        await bed.same(before)

    return run


async def network_names(bed: Bed) -> None:
    for name in BAD_NAMES:
        await bed.fails("ADD", bed.pod(), codes=[CONFIGURATION], config={"name": name})


async def no_netns_file(bed: Bed) -> None:
    before = bed.traces()
    await bed.fails("ADD", bed.pod(), env={"CNI_NETNS": str(bed.directory / "nowhere")})
    await bed.same(before)


async def not_a_netns(bed: Bed) -> None:
    before = bed.traces()
    file = bed.directory / "file"
    file.touch()
    await bed.fails("ADD", bed.pod(), env={"CNI_NETNS": str(file)})
    await bed.same(before)


async def own_netns(bed: Bed) -> None:
    before = bed.traces()
    pod = bed.pod()
    env = {"CNI_NETNS": "/proc/self/ns/net"}
    try:
        await bed.fails("ADD", pod, codes=[NETNS], env=env)
    except ConformanceError:
        await bed.call("DEL", pod, env=env)
        raise
    await bed.same(before)


CHECKS = (
    Check("version.answer", MUST, "2 VERSION", "VERSION lists versions, and needs no container", versions),
    Check("refuse.error-object", MUST, "5 Error", "an error has cniVersion, code and msg", error_object),
    Check(
        "refuse.no-command",
        SHOULD,
        "2 Parameters",
        "without CNI_COMMAND: code 4, or a text",
        no_command,
    ),
    Check("refuse.verb", MUST, "2 Parameters", "an unknown CNI_COMMAND: code 4", _refuses("FROB", ENVIRONMENT)),
    Check(
        "refuse.no-container",
        MUST,
        "2 Parameters",
        "ADD without CNI_CONTAINERID: code 4",
        _refuses("ADD", ENVIRONMENT, env={"CNI_CONTAINERID": None}),
    ),
    Check(
        "refuse.no-netns",
        MUST,
        "2 Parameters",
        "ADD without CNI_NETNS: code 4",
        _refuses("ADD", ENVIRONMENT, env={"CNI_NETNS": None}),
    ),
    Check(
        "refuse.no-ifname",
        MUST,
        "2 Parameters",
        "ADD without CNI_IFNAME: code 4",
        _refuses("ADD", ENVIRONMENT, env={"CNI_IFNAME": None}),
    ),
    Check(
        "refuse.del-no-container",
        MUST,
        "2 Parameters",
        "DEL without CNI_CONTAINERID: code 4",
        _refuses("DEL", ENVIRONMENT, env={"CNI_CONTAINERID": None}),
    ),
    Check(
        "refuse.container",
        MUST,
        "2 Parameters",
        "a CNI_CONTAINERID with other characters: code 4",
        _refuses_each("CNI_CONTAINERID", BAD_CONTAINERS),
    ),
    Check(
        "refuse.ifname",
        MUST,
        "2 Parameters",
        "a CNI_IFNAME that Linux would not take: code 4",
        _refuses_each("CNI_IFNAME", BAD_IFNAMES),
    ),
    Check("refuse.netns-missing", MUST, "2 ADD", "CNI_NETNS that is not there: an error, nothing left", no_netns_file),
    Check("refuse.netns-file", MUST, "2 ADD", "CNI_NETNS that is a plain file: an error, nothing left", not_a_netns),
    Check("refuse.netns-own", SHOULD, "2 ADD", "CNI_NETNS that is the host's: code 8 (libcni's)", own_netns),
    Check("refuse.json", MUST, "5 Error", "no JSON on standard input: code 6", _refuses("ADD", DECODING, stdin=b"{")),
    Check("refuse.empty", MUST, "5 Error", "nothing on standard input: code 6", _refuses("ADD", DECODING, stdin=b"")),
    Check(
        "refuse.version",
        MUST,
        "5 Error",
        "a cniVersion that the plugin does not support: code 1",
        _refuses("ADD", VERSION, version="99.0.0"),
    ),
    Check(
        "refuse.no-name",
        MUST,
        "1 Format",
        "a configuration without a name: code 7",
        _refuses("ADD", CONFIGURATION, config={"name": None}),
    ),
    Check("refuse.name", MUST, "1 Format", "a network name with other characters: code 7", network_names),
)
