"""What a crash may leave, sorted out at the agent's start: the ledger and the kernel's links are compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cni.hooks import Attachment, host_ifname_of
from cni.podnet import HostLink


class Recovery(NamedTuple):
    keep: list[Attachment]
    """Pods that run: ledger and link agree."""
    release: list[Attachment]
    """Their pods are gone, or were never finished: the addresses become free, after ``remove``."""
    remove: list[HostLink]
    """Unfinished, or unknown to the ledger."""


def reconcile(attachments: Iterable[Attachment], kernel: Iterable[HostLink]) -> Recovery:
    """Compare ledger and kernel.

    A host end exists as long as its pod's namespace. Without it the pod is gone (a reboot, a runtime that never called
    DEL) or cut off for good; of an unfinished one the runtime was told no success. Neither keeps its addresses.
    Attachments that got only addresses of podroute (no ``hostInterface``) are another plugin's to wire: left alone.
    """
    links = {link.name: link for link in kernel}
    recovery = Recovery([], [], [])
    for attachment in attachments:
        name = host_ifname_of(attachment)
        if not name:
            continue
        link = links.get(name)
        if link is not None and link.complete:
            recovery.keep.append(attachment)
            del links[name]
        else:
            recovery.release.append(attachment)
    recovery.remove.extend(links.values())
    return recovery
