"""What a process may do to namespaces: root may all, an ordinary user in a user namespace (user_namespaces(7)).

In such a namespace the user is root over networks and mounts made there, and has no other users: daemons stay root.
"""

from __future__ import annotations

import os
from pathlib import Path

from labs import kernel
from labs.errors import LabError

PROC = Path("/proc")
ALL = 2**32 - 1
"""Users in the map of a machine's first user namespace."""
SWITCHES = {
    "sys/user/max_user_namespaces": "0",
    "sys/kernel/unprivileged_userns_clone": "0",
    "sys/kernel/apparmor_restrict_unprivileged_userns": "1",
}
"""Settings that keep ordinary users from having namespaces, and the value with which they do."""


def privileged() -> bool:
    """Tell whether this process is root, of the machine or of a user namespace."""
    return os.geteuid() == 0


def user_map(proc: Path = PROC) -> list[tuple[int, int, int]]:
    """Return the users of this process's user namespace: first inside, first outside, how many."""
    lines = (proc / "self/uid_map").read_text().splitlines()
    return [(int(inside), int(outside), int(count)) for inside, outside, count in map(str.split, lines)]


def confined() -> bool:
    """Tell whether this process is in a user namespace of somebody's: the machine's network is out of reach."""
    return sum(count for _, _, count in user_map()) < ALL


def has_user(number: int) -> bool:
    """Tell whether a process here can become a user."""
    return any(inside <= number < inside + count for inside, _, count in user_map())


def may_set_groups() -> bool:
    """Tell whether a process here can take groups: in an ordinary user's namespace none can."""
    return (PROC / "self/setgroups").read_text().strip() == "allow"


def outer_user() -> int:
    """Return who this process is outside of its user namespace, that is, who started it."""
    own = os.geteuid()
    return next(outside + own - inside for inside, outside, count in user_map() if inside <= own < inside + count)


def become_root() -> None:
    """Make this process root of a user namespace of its own, unless it is root. It must have one thread only.

    Raises LabError that names what is missing.
    """
    if privileged():
        return
    user, group = os.geteuid(), os.getegid()
    try:
        kernel.unshare(kernel.CLONE_NEWUSER)
        # Without setgroups(2) an ordinary user may map its own group.
        (PROC / "self/setgroups").write_text("deny")
        (PROC / "self/uid_map").write_text(f"0 {user} 1")
        (PROC / "self/gid_map").write_text(f"0 {group} 1")
        kernel.in_thread(lambda: kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWNS))
    except OSError as error:
        raise LabError(f"labs need namespaces, and without root these: {missing(error)}; or run this as root") from None


def join(pid: int) -> None:
    """Enter the user namespace of a lab's process, where this one is not root. It must have one thread only.

    Raises LabError.
    """
    if privileged():
        return
    try:
        descriptor = os.pidfd_open(pid)
        try:
            kernel.setns(descriptor, kernel.CLONE_NEWUSER)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LabError(f"this lab is not yours to enter ({error.strerror}): run this as its owner") from None


def missing(error: OSError, proc: Path = PROC) -> str:
    """Say why an ordinary user has no namespaces here."""
    if not (proc / "self/ns/user").exists():
        return "user namespaces, which this kernel has not (CONFIG_USER_NS)"
    for switch, value in SWITCHES.items():
        file = proc / switch
        if file.exists() and file.read_text().strip() == value:
            name = switch.removeprefix("sys/").replace("/", ".")
            return f"a user namespace, which the setting {name} = {value} forbids"
    if len(list((proc / "self/task").iterdir())) > 1:
        return "a user namespace, which a process with several threads cannot have: start it under `unshare -Ur`"
    return f"a user namespace, which is refused: {error.strerror}"
