"""What a node sees of the host's files: the same programs, and private places where daemons keep their state.

A node's mount namespace shows the host's root file system. On top of it come a fresh /run; overlays over /etc, /var and
/opt, so that nothing written there reaches the host; an empty file system over each directory of FRR, podroute and
CNI; and the binds of the topology file. All of it goes with the last process of the node.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from labs import kernel
from labs.errors import LabError
from labs.overlays import overlay
from labs.rights import has_user

PRIVATE = (
    "/etc/bird",
    "/etc/frr",
    "/etc/gobgp",
    "/etc/podroute",
    "/etc/cni/net.d",
    "/opt/cni/bin",
    "/var/lib/cni",
    "/var/lib/podroute",
    "/var/log/frr",
)
"""Directories that are empty in every new node, whatever the host has there."""
RUN = ("/run/bird", "/run/frr", "/run/lock", "/run/netns", "/run/podroute")
"""Directories that every node has in its own /run."""
OVERLAID = frozenset({"etc", "opt", "var"})


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of the host to be seen in the node."""

    source: Path
    target: str
    read_only: bool = False
    place: str = ""
    """Where an operator asked for it, for errors."""


def build(mounts: Iterable[Mount], *, sysfs: bool = True) -> None:
    """Build a node's file system in the calling thread, which must own its mount namespace by itself.

    ``sysfs`` is false for the host's network, whose /sys is there already. The process file system is left to the first
    process of the node's pid namespace. Raises LabError.
    """
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    with ExitStack() as stack:
        # Opened first: the private directories may hide them.
        sources = []
        for mount in mounts:
            try:
                descriptor = os.open(mount.source, os.O_PATH | os.O_CLOEXEC)
            except OSError as error:
                raise LabError(f"{mount.place}: {mount.source}: {error.strerror}") from None
            stack.callback(os.close, descriptor)
            sources.append((mount, descriptor))
        if sysfs:
            kernel.mount("sysfs", "/sys", "sysfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        kernel.mount("tmpfs", "/run", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
        for path in RUN:
            os.makedirs(path, exist_ok=True)
        overlaid = set(OVERLAID)
        mounted = _mount_points()
        for top in OVERLAID:
            overlay(f"/{top}", mounted)
        if not has_user(_user("frr")):
            _rename_root()
        for path in PRIVATE:
            _make_directories(path)
            kernel.mount("tmpfs", path, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
        for mount, descriptor in sources:
            target = os.path.realpath(mount.target)
            top = target.split("/")[1]
            if not os.path.exists(target) and top not in overlaid | {"run"}:
                if not os.path.isdir(f"/{top}"):
                    raise LabError(
                        f"{mount.place}: this host has no directory /{top} to show {mount.target} in, "
                        "bind to a path below one that exists"
                    )
                overlay(f"/{top}", _mount_points())
                overlaid.add(top)
            _bind(descriptor, target, mount.read_only)


def _user(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return 0


def _rename_root() -> None:
    """Let FRR's user and groups be root's: in a user namespace without others nobody can become them."""
    for file, fields in (("passwd", (2, 3)), ("group", (2,))):
        lines = []
        for line in Path(f"/etc/{file}").read_text().splitlines():
            words = line.split(":")
            if words[0] in ("frr", "frrvty"):
                for field in fields:
                    words[field] = "0"
            lines.append(":".join(words))
        own = Path(f"/run/.podroute-lab/{file}")
        own.write_text("\n".join(lines) + "\n")
        kernel.mount(str(own), f"/etc/{file}", flags=kernel.MS_BIND)


def _make_directories(path: str) -> None:
    """Make a directory and those above it; where root may not write in one of them, an overlay is put over it.

    That is so in a user namespace, for directories of users that it does not have.
    """
    parts = path.strip("/").split("/")
    for number in range(1, len(parts) + 1):
        directory = "/" + "/".join(parts[:number])
        if not os.path.isdir(directory):
            above = os.path.dirname(directory)
            if not os.access(above, os.W_OK):
                overlay(above, _mount_points())  # with what has been mounted here since
            os.mkdir(directory, 0o755)


def _mount_points() -> list[str]:
    """Return the mount points of the calling thread, outer ones before those below them."""
    lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    # Spaces and the like are written as octal numbers, proc(5).
    points = (re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4]) for line in lines)
    return sorted({point for point in points if not point.startswith("/run/")})


def _bind(descriptor: int, target: str, read_only: bool) -> None:
    source = f"/proc/self/fd/{descriptor}"
    if os.path.isdir(source):
        _make_directories(target)
    else:
        _make_directories(os.path.dirname(target))
        if not os.path.exists(target):
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    kernel.mount(source, target, flags=kernel.MS_BIND | kernel.MS_REC)
    if read_only:
        # In a user namespace a mount keeps the restrictions that it has outside.
        kept = os.statvfs(target).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME)
        kernel.mount(source, target, flags=kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_RDONLY | kept)
