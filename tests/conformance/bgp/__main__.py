"""``python -m tests.conformance.bgp``: run the suite at a speaker and print what it does not meet.

The speaker must have these peers: each of ``--sources``, in AS ``--local-as`` (``--ibgp``: in the speaker's own),
which it does not connect to by itself; ``--observer`` in the other one of the two ASes; ``--active``, like the sources,
but the speaker connects to it. All must pass learned routes on and accept IPv4 and IPv6 unicast.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from ipaddress import ip_address
from pathlib import Path

from tests.conformance.bgp import table
from tests.conformance.bgp.cases import Result
from tests.conformance.bgp.session import NotRunError, Target
from tests.conformance.bgp.suite import Suite

TURN = "waiting for its turn"


def main() -> int:
    options = _parser().parse_args()
    target = Target(
        address=options.target,
        asn=options.asn,
        outside_as=options.local_as,
        internal=options.ibgp,
        sources=tuple(_addresses(options.sources)),
        observer=options.observer,
        active=options.active,
        port=options.port,
        next_hop6=options.next_hop6,
    )
    results: list[Result] = []
    try:
        asyncio.run(_run(target, options.only, results, turns=options.turns))
    except NotRunError as error:
        print(f"the observer could not be set up: {error}", file=sys.stderr)
        return 2
    if options.json:
        Path(options.json).write_text(json.dumps([r.as_dict() for r in results], indent=1) + "\n")
    missed = [r for r in results if not r.met]
    for result in missed:
        expected = " or ".join(sorted(result.case.expected(internal=target.internal) or ()))
        print(f"{result.case.rfc}: {result.case.title}: {result.outcome}, expected {expected}")
    print(f"{len(results) - len(missed)} of {len(results)} rows met")
    return bool(missed)


async def _run(target: Target, only: str, results: list[Result], *, turns: bool) -> None:
    suite = Suite(target)
    await suite.start()
    try:
        await suite.run(table.cases(only), results.append, _turn if turns else _at_once)
    finally:
        await suite.stop()


async def _at_once() -> None: ...


async def _turn() -> None:
    """Say that it is another suite's turn, and wait for our own. Sessions are kept alive meanwhile."""
    print(TURN, flush=True)
    await asyncio.to_thread(sys.stdin.readline)


def _addresses(text: str) -> list[str]:
    """Return the addresses of ``A`` or ``FIRST-LAST``, separated by commas."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = ip_address(first), ip_address(last or first)
        found += [str(ip_address(number)) for number in range(int(low), int(high) + 1)]
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.bgp", description=__doc__)
    parser.add_argument("--target", required=True, help="address of the speaker")
    parser.add_argument("--asn", type=int, required=True, help="AS of the speaker")
    parser.add_argument("--local-as", type=int, required=True, help="AS of the suite outside the speaker's")
    parser.add_argument("--ibgp", action="store_true", help="send on internal sessions, watch on an external one")
    parser.add_argument("--sources", required=True, help="addresses to send from: A,B-C")
    parser.add_argument("--observer", help="address to watch from; without it only the fate of sessions is judged")
    parser.add_argument("--active", help="address to which the speaker connects; without it no collisions")
    parser.add_argument("--next-hop6", default="2001:db8:ffff::9", help="a global IPv6 address on the link")
    parser.add_argument("--port", type=int, default=179)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="only cases whose name or RFC matches")
    parser.add_argument(
        "--turns",
        action="store_true",
        help=f"print `{TURN}` and wait for a line on standard input before rows are run once more, alone",
    )
    parser.add_argument("--json", metavar="FILE", help="write all results there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
