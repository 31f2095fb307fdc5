"""Overlays over directories of the host, in a node's mount namespace: what is written stays in the node."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from labs import kernel

_LAYERS = "/run/.podroute-lab/layers"


def overlay(directory: str, mounted: Iterable[str]) -> None:
    """Put an overlay over a directory; ``mounted``, file systems below it, stay visible, as they are on the host.

    Save those that are unmounted meanwhile, and those that an ordinary user cannot see on the host either.
    """
    below = [point for point in mounted if point.startswith(f"{directory}/")]
    try:
        _whole(directory, below)
    except OSError as error:
        if error.errno != errno.EINVAL or not below:
            raise
        _parts(directory, below)


def _whole(directory: str, below: Iterable[str]) -> None:
    layers = f"{_LAYERS}/{directory.strip('/').replace('/', '-')}"
    for part in ("upper", "work"):
        os.makedirs(f"{layers}/{part}", exist_ok=True)
    os.chmod(f"{layers}/upper", os.stat(directory).st_mode & 0o7777)
    options = f"lowerdir={directory},upperdir={layers}/upper,workdir={layers}/work"
    with ExitStack() as stack:
        covered = []
        for point in below:
            with suppress(FileNotFoundError, PermissionError):
                covered.append((point, os.open(point, os.O_PATH | os.O_CLOEXEC)))
                stack.callback(os.close, covered[-1][1])
        kernel.mount("overlay", directory, "overlay", data=options)
        for point, descriptor in covered:
            kernel.mount(f"/proc/self/fd/{descriptor}", point, flags=kernel.MS_BIND | kernel.MS_REC)


def _parts(directory: str, below: Iterable[str]) -> None:
    """Put an overlay over each part of a directory that has no other file system below it.

    In a user namespace the kernel lets nothing show what lies under a mount of the host, so it takes no directory with
    such a mount below it for an overlay.
    """
    entries: list[str] = []
    with suppress(PermissionError):
        entries = sorted(os.listdir(directory))
    here = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = f"mode={os.stat(directory).st_mode & 0o7777:o}"
        kernel.mount("tmpfs", directory, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, mode)
        for name in entries:
            with suppress(FileNotFoundError, PermissionError):
                _part(f"/proc/self/fd/{here}/{name}", f"{directory}/{name}", below)
    finally:
        os.close(here)


def _part(source: str, path: str, below: Iterable[str]) -> None:
    kind = os.lstat(source).st_mode
    if stat.S_ISLNK(kind):
        os.symlink(os.readlink(source), path)
    elif stat.S_ISDIR(kind):
        os.mkdir(path)
        kernel.mount(source, path, flags=kernel.MS_BIND | kernel.MS_REC)
        if path not in below:
            overlay(path, below)
    elif stat.S_ISREG(kind):
        shutil.copy(source, path)
