"""What a node's image stands for on this host: images are not pulled, their names tell which programs to run."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch

from labs import frr

FRR = "*frr*"
_COMMANDS = {
    "*bird*": ("bird", "-f", "-c", "/etc/bird/bird.conf"),
    "*gobgp*": ("gobgpd", "-f", "/etc/gobgp/gobgpd.toml"),
}
"""In the foreground, with their ordinary configuration and socket."""
_PACKAGES = {"bird": "bird2", "gobgpd": "gobgpd"}


def is_frr(image: str) -> bool:
    return fnmatch(image, FRR)


def command(image: str) -> tuple[str, ...]:
    """Return what an image runs where its node has no cmd; empty for FRR, whose daemons are several, and others."""
    if is_frr(image):
        return ()
    return next((argv for pattern, argv in _COMMANDS.items() if fnmatch(image, pattern)), ())


def missing(image: str) -> str | None:
    """Say what this host lacks to run an image, None where it has everything."""
    if is_frr(image):
        return frr.missing()
    argv = command(image)
    if argv and not shutil.which(argv[0]):
        return f"this host has no `{argv[0]}`: install the package `{_PACKAGES[argv[0]]}`"
    return None
