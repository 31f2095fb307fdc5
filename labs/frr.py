"""FRR in a node: the host's daemons, started as the node's /etc/frr/daemons says, with their ordinary paths.

This is what the public FRR image does at its start, without watchfrr: a daemon that a test kills stays dead until it is
started again.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from labs.errors import CommandError, LabError
from labs.node import Node
from labs.rights import has_user
from labs.waiting import together

DIRECTORY = Path("/usr/lib/frr")
DAEMONS = (
    "zebra",
    "staticd",
    "bgpd",
    "bfdd",
    "ospfd",
    "ospf6d",
    "isisd",
    "ripd",
    "ripngd",
    "pimd",
    "pim6d",
    "ldpd",
    "nhrpd",
    "eigrpd",
    "babeld",
    "pbrd",
    "fabricd",
    "vrrpd",
    "pathd",
)
"""In the order of their start."""
ALWAYS = frozenset({"zebra", "staticd"})
OWNED = ("/etc/frr", "/run/frr", "/var/log/frr")
"""Directories that the daemons write to as the user frr."""


def missing() -> str | None:
    """Say what this host lacks to run FRR, None where it has everything."""
    if not (DIRECTORY / "zebra").exists() or not shutil.which("vtysh"):
        return f"this host has no FRR in {DIRECTORY}: install the package `frr`"
    return None


def parse(text: str) -> dict[str, str]:
    """Return the variables of an /etc/frr/daemons file: lines of ``name=value`` in shell quoting, and comments.

    Raises ValueError with the line's number.
    """
    variables = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ValueError(f"line {number}: {str(error).lower()}") from None
        for word in words:
            name, separator, value = word.partition("=")
            if not separator or not name.isidentifier():
                raise ValueError(f"line {number}: `{word}` is not `name=value`")
            variables[name] = value
    return variables


def commands(variables: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the command line of each daemon that is on, in the order of their start."""
    found = {}
    for daemon in DAEMONS:
        if daemon not in ALWAYS and variables.get(daemon, "no") in ("no", "0", ""):
            continue
        argv = [str(DIRECTORY / daemon), "-d", "--log", f"file:/var/log/frr/{daemon}.log"]
        if profile := variables.get("frr_profile"):
            argv += ["-F", profile]
        found[daemon] = argv + shlex.split(variables.get(f"{daemon}_options", ""))
    return found


async def start(node: Node) -> list[str]:
    """Start a node's daemons and load its configuration; return the names of the daemons. Raises LabError."""
    path = node.root / "etc/frr/daemons"
    try:
        variables = parse(path.read_text() if path.exists() else "")
    except ValueError as error:
        raise LabError(f"node {node.name}: /etc/frr/daemons: {error}, write lines like `bgpd=yes`") from None
    daemons = commands(variables)
    user = pwd.getpwnam("frr")
    # Where there is no such user its name stands for root in the node, whose these are.
    if has_user(user.pw_uid):
        for directory in OWNED:
            os.chown(node.root / directory[1:], user.pw_uid, user.pw_gid)
    first, *others = daemons
    await _start(node, first, daemons[first])
    await together(_start(node, daemon, daemons[daemon]) for daemon in others)
    if (node.root / "etc/frr/frr.conf").exists():
        await load(node)
    return list(daemons)


async def load(node: Node) -> None:
    """Hand /etc/frr/frr.conf to the daemons. Raises LabError with what they did not like."""
    try:
        await node.run("vtysh", "-b")
    except CommandError as error:
        raise LabError(f"node {node.name}: /etc/frr/frr.conf: {(error.stderr or error.stdout).strip()}") from None


async def _start(node: Node, daemon: str, argv: list[str]) -> None:
    """Start one daemon; it returns to its caller when its vty socket listens."""
    try:
        await node.run(*argv)
    except CommandError as error:
        log = node.root / "var/log/frr" / f"{daemon}.log"
        said = error.stderr.strip() or (log.read_text(errors="replace") if log.exists() else "")
        raise LabError(f"node {node.name}: {daemon} did not start: {said.strip() or error}") from None
    if not (node.root / "run/frr" / f"{daemon}.vty").exists():
        raise LabError(f"node {node.name}: {daemon} started without its socket /run/frr/{daemon}.vty")
