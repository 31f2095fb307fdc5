"""Runs the checks, one after the other, each on a host that is as the last one found it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from labs.libcni import VERSIONS
from tests.conformance.cni import adding, chains, checking, deleting, load, refusals, upkeep
from tests.conformance.cni.bed import Bed, Subject, answer, new_netns
from tests.conformance.cni.model import Check, ConformanceError, Finding, NotApplicableError, expect

CHECKS: Sequence[Check] = (
    *refusals.CHECKS,
    *adding.CHECKS,
    *deleting.CHECKS,
    *checking.CHECKS,
    *chains.CHECKS,
    *load.CHECKS,
    *upkeep.CHECKS,
)


async def run(
    subject: Subject,
    *,
    only: str = "",
    known: Mapping[str, str] | None = None,
    progress: Callable[[Finding], None] = lambda _: None,
) -> list[Finding]:
    """Run the checks whose name begins with ``only``; ``known``: why those of these names fail.

    Raises ConformanceError where the plugin cannot even do what every check builds on: VERSION, one ADD and DEL.
    """
    host = None if subject.here else new_netns()
    findings = []
    try:
        if host:
            for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                host.run("sh", "-c", f"echo 1 >/proc/sys/net/{switch}")
        with TemporaryDirectory(prefix="cni-conformance-") as directory:
            bed = Bed(subject, Path(directory), host)
            await _warm_up(bed)
            for check in CHECKS:
                if check.name.startswith(only):
                    findings.append(await _judge(bed, check, (known or {}).get(check.name, "")))
                    progress(findings[-1])
    finally:
        if host:
            host.close()
    return findings


async def _warm_up(bed: Bed) -> None:
    """Learn the plugin's versions, and let it make what it makes once: a bridge, tables of a firewall."""
    supported = answer(await bed.call("VERSION")).get("supportedVersions", [])
    bed.supported = [version for version in VERSIONS if version in supported]
    expect(bed.supported, f"support for one of {', '.join(VERSIONS)}", supported)
    pod = bed.pod()
    await bed.add(pod)
    await bed.succeeds("DEL", pod)
    await bed.clear()


async def _judge(bed: Bed, check: Check, known: str) -> Finding:
    try:
        await check.run(bed)
    except ConformanceError as failure:
        finding = Finding(check, "fail", failure.expected, failure.seen, known)
    except AssertionError as failure:  # a command of the check's own
        finding = Finding(check, "fail", "a state in which the check can be carried out", str(failure), known)
    except NotApplicableError as reason:
        finding = Finding(check, "skip", seen=str(reason))
    else:
        finding = Finding(check, "pass", known=known)
    await bed.clear()
    return finding
