"""The command line: `python -m tests.conformance.cni --plugin PATH --conf FILE`."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conformance.cni.bed import Subject
from tests.conformance.cni.model import ConformanceError, Finding
from tests.conformance.cni.suite import run

PATH = "/opt/cni/bin:/usr/lib/cni"


def read_config(file: Path, plugin: str) -> dict[str, Any]:
    """Return a plugin's object of a configuration file, or of a list, with the network's name. Raises ValueError."""
    found: dict[str, Any] = json.loads(file.read_text())
    if "plugins" in found:
        plugins = [entry for entry in found["plugins"] if entry.get("type") == plugin]
        if not plugins:
            raise ValueError(f"{file}: no plugin of type {plugin} in the list")
        found = {**plugins[0], "name": found["name"]}
    if not found.get("name") or not found.get("type"):
        raise ValueError(f"{file}: a network configuration needs `name` and `type`")
    return found


def read_known(file: Path) -> dict[str, str]:
    """Return checks that are expected to fail, with reasons: lines ``NAME: REASON``, ``#`` begins a comment line."""
    known = {}
    for line in file.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition(":")
            known[name.strip()] = reason.strip() or "known"
    return known


def table(findings: Sequence[Finding]) -> str:
    """Return the results as aligned text: one line per check, and under what failed or was skipped the reason."""
    width = max(len(finding.check.name) for finding in findings)
    lines = []
    for finding in findings:
        check = finding.check
        word = {"pass": "ok", "fail": "FAILED", "skip": "skipped"}[finding.verdict]
        if finding.known:
            word = "PASSES" if finding.verdict == "pass" else "known"
        lines.append(f"{check.name:<{width}}  {check.level:<6}  {check.section:<12}  {word:<7}  {check.promise}")
        if finding.known and finding.verdict == "pass":
            lines.append(f"{'':<{width}}  expected to fail: {finding.known}")
        elif finding.known:
            lines.append(f"{'':<{width}}  {finding.known}")
        elif finding.verdict == "fail":
            lines.append(f"{'':<{width}}  expected: {finding.expected}")
            lines.append(f"{'':<{width}}  seen:     {finding.seen}")
        elif finding.verdict == "skip":
            lines.append(f"{'':<{width}}  {finding.seen}")
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> dict[str, int]:
    known = [finding for finding in findings if finding.known]
    rest = [finding for finding in findings if not finding.known]
    return {
        "passed": sum(finding.verdict == "pass" for finding in rest),
        "failedMust": sum(finding.verdict == "fail" and finding.check.level == "must" for finding in rest),
        "failedShould": sum(finding.verdict == "fail" and finding.check.level == "should" for finding in rest),
        "knownGaps": sum(finding.verdict != "pass" for finding in known),
        "unexpectedPasses": sum(finding.verdict == "pass" for finding in known),
        "skipped": sum(finding.verdict == "skip" for finding in rest),
    }


def as_json(findings: Sequence[Finding]) -> Mapping[str, Any]:
    checks = [
        {
            "name": finding.check.name,
            "level": finding.check.level,
            "section": finding.check.section,
            "promise": finding.check.promise,
            "verdict": finding.verdict,
            "expected": finding.expected,
            "seen": finding.seen,
            "known": finding.known,
        }
        for finding in findings
    ]
    return {"summary": summary(findings), "checks": checks}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance.cni",
        description="Hold a CNI plugin that makes interfaces against the specification, from outside. Needs root.",
        epilog="Exit status: 0 all musts hold, 1 one does not (or a known gap has closed), 2 it could not be tested.",
    )
    parser.add_argument("--plugin", type=Path, required=True, help="the plugin's executable")
    parser.add_argument("--conf", type=Path, required=True, help="its network configuration, single or a list")
    parser.add_argument("--cni-path", default=PATH, metavar="DIRS", help="of other plugins (default: %(default)s)")
    parser.add_argument("--known", type=Path, metavar="FILE", help="checks expected to fail, `NAME: REASON` a line")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only checks whose name begins so")
    parser.add_argument("--pods", type=int, default=50, help="containers at once (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--here", action="store_true", help="use this network namespace as the host's")
    parser.add_argument("--stop-command", default="", metavar="CMD", help="takes the plugin's daemon away")
    parser.add_argument("--start-command", default="", metavar="CMD", help="brings it back, and waits until it serves")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    options = parse(arguments)
    try:
        subject = Subject(
            options.plugin.resolve(),
            read_config(options.conf, options.plugin.name),
            f"{options.plugin.resolve().parent}:{options.cni_path}",
            here=options.here,
            stop=shlex.split(options.stop_command),
            start=shlex.split(options.start_command),
            pods=options.pods,
        )
        known = read_known(options.known) if options.known else {}
        findings = asyncio.run(run(subject, only=options.only, known=known))
    except (OSError, ValueError, ConformanceError) as error:
        print(f"{options.plugin}: {error}", file=sys.stderr)
        return 2
    if not findings:
        print(f"no check's name begins with {options.only}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(as_json(findings), indent=2))
    else:
        print(table(findings))
        print(", ".join(f"{count} {_words(name)}" for name, count in summary(findings).items()))
    return int(any(finding.breaks for finding in findings))


def _words(name: str) -> str:
    return {
        "failedMust": "failed (must)",
        "failedShould": "failed (should)",
        "knownGaps": "known gaps",
        "unexpectedPasses": "unexpected passes",
    }.get(name, name)


if __name__ == "__main__":
    sys.exit(main())
