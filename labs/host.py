"""What this machine must have before anything of a lab is made, and commands that run on it."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from labs import images, kernel
from labs.cables import INTERFACES
from labs.errors import CommandError, LabError
from labs.node import search_path
from labs.rights import confined
from labs.topology import HOST, Link, Topology

PROGRAMS = {"ip": "iproute2", "mount": "mount", "setsid": "util-linux"}


def check_host(plan: Topology) -> None:
    """Refuse what this machine cannot run. Raises LabError with all that is missing."""
    faults = [
        f"this host has no `{program}`: install the package {package}"
        for program, package in PROGRAMS.items()
        if not shutil.which(program)
    ]
    faults += [fault for link in plan.links if (fault := _link_fault(link))]
    for node in plan.nodes.values():
        if node.network == HOST and confined():
            faults.append(f"{node.place}.network-mode: the host's network can be used by root only")
        if node.command:
            path = node.env.get("PATH", search_path())
            if "/" not in node.command[0] and not shutil.which(node.command[0], path=path):
                faults.append(f"{node.place}.cmd: no program `{node.command[0]}` in {path}")
        elif lacking := images.missing(node.image):
            faults.append(f"{node.place}.image: {lacking}")
    if faults:
        raise LabError("\n".join(dict.fromkeys(faults)))


async def run_on_host(argv: Sequence[str], *, timeout: float) -> str:  # noqa: ASYNC109
    """Run a command on this machine, without a shell, and return what it printed. Raises CommandError."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise CommandError(f"host: {argv[0]}: {error.strerror}", returncode=None, stdout="", stderr="") from None
    try:
        async with asyncio.timeout(timeout):
            said = (await process.communicate())[0].decode(errors="replace")
    except BaseException as error:
        process.kill()
        await process.wait()
        if not isinstance(error, TimeoutError):
            raise
        text = f"host: {shlex.join(argv)}: no end within {timeout:g} s"
        raise CommandError(text, returncode=None, stdout="", stderr="") from None
    if process.returncode:
        text = f"host: {shlex.join(argv)}: exit status {process.returncode}: {said.strip()}"
        raise CommandError(text, returncode=process.returncode, stdout=said, stderr="")
    return said


def _link_fault(link: Link) -> str | None:
    if link.z is None:
        return None if has_dummy() else f"{link.place}.type: this kernel has no `dummy` interfaces (CONFIG_DUMMY)"
    if link.z.node == HOST and confined():
        return f"{link.place}: links to the host can be made by root only"
    if link.z.node == HOST and (INTERFACES / link.z.interface).exists():
        return f"{link.place}: this host has an interface `{link.z.interface}` already, choose another name"
    return None


def has_dummy() -> bool:
    """Ask the kernel, in a network namespace that goes at once."""

    def body() -> bool:
        kernel.unshare(kernel.CLONE_NEWNET)
        made = subprocess.run(["ip", "link", "add", "name", "probe", "type", "dummy"], capture_output=True)
        return made.returncode == 0

    return kernel.in_thread(body)
