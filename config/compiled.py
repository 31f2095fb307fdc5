"""Which form of the hot modules this process runs: compiled by mypyc, or plain Python.

``config.compiling`` compiles them from the very sources that else run as they are. A compiled form is a directory of
extension modules beside the rooms, ``.compiled/<digest>``, with a stamp that names what it was made from: every source
whose text decides what it does. It is used only where all of them still read the same, so that no edit of a source is
ever passed over; in doubt, podroute runs as plain Python, and does the same.

The packages ``bgp`` and ``routes`` ask here where to look for their modules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, source_hash, spec_from_file_location
from typing import Final, NamedTuple

MODULES: Final = (
    "bgp.adj_rib_in",
    "bgp.attribute_parser",
    "bgp.attributes",
    "bgp.decision",
    "bgp.first_paths",
    "bgp.framing",
    "bgp.interning",
    "bgp.loc_rib",
    "bgp.nlri",
    "bgp.paths",
    "bgp.table",
    "bgp.update",
    "bgp.usual_attributes",
    "bgp.walks",
    "routes.batch",
    "routes.encode",
    "routes.foreign",
    "routes.installer",
    "routes.messages",
    "routes.monitor",
    "routes.others",
    "routes.reconciler",
    "routes.shadows",
    "routes.shard",
    "routes.table",
    "routes.target",
)
"""The modules that are compiled: those through which every prefix goes."""

SWITCH: Final = "PODROUTE_PURE"
"""The environment variable that, set to anything but 0, has podroute run as plain Python."""
ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DIRECTORY: Final = ".compiled"
STAMP: Final = "stamp"
"""A form's file of lines ``key value``: ``compiler`` and ``suffix``, then paths below ROOT and their texts' digests."""
SUFFIX: Final = EXTENSION_SUFFIXES[0]
"""How extension modules of this Python are named: ``.cpython-311-x86_64-linux-gnu.so``."""


class Form(NamedTuple):
    """What a process runs."""

    directory: str | None
    """Where the compiled modules are; None: plain Python."""
    detail: str
    """What they were compiled by, or why they are not used."""

    @property
    def name(self) -> str:
        return "compiled" if self.directory else "plain Python"


def search_path(package: str, plain: Iterable[str]) -> list[str]:
    """Return where the modules of a package are looked for: where they are compiled, then ``plain``."""
    directory = form().directory
    return [os.path.join(directory, package), *plain] if directory else [*plain]


@cache
def form() -> Form:
    """Return what this process runs. It is found once: what was imported stays."""
    if os.environ.get(SWITCH, "0") not in ("", "0"):
        return Form(None, f"{SWITCH} is set")
    made = directories(ROOT)
    directory = fitting(ROOT, made)
    if directory is None:
        return Form(None, "the sources are others than those compiled" if made else "nothing was compiled")
    try:
        _load_library(directory)
    except ImportError as error:
        return Form(None, f"cannot be loaded: {error}")
    return Form(directory, _stamp(directory)["compiler"])


def directories(root: str) -> list[str]:
    """Return the compiled forms below ``root``, whether they fit or not."""
    place = os.path.join(root, DIRECTORY)
    try:
        names = sorted(os.listdir(place))
    except OSError:
        return []
    return [os.path.join(place, name) for name in names if os.path.exists(os.path.join(place, name, STAMP))]


def fitting(root: str, made: Iterable[str]) -> str | None:
    """Return which of these was compiled for this Python and from the sources as they are."""
    digests: dict[str, str] = {}
    for directory in made:
        stamp = _stamp(directory)
        if stamp.pop("suffix", None) != SUFFIX or not stamp.pop("compiler", None):
            continue
        for path, digest in stamp.items():
            if path not in digests:
                digests[path] = text_digest(os.path.join(root, path))
            if digests[path] != digest:
                break
        else:
            return directory
    return None


def text_digest(path: str) -> str:
    """Return the digest by which Python itself tells whether a source is the one compiled (PEP 552); empty: no file."""
    try:
        with open(path, "rb", buffering=0) as file:
            return source_hash(file.read()).hex()
    except OSError:
        return ""


def library(directory: str) -> str:
    """Return the name of a form's library, which holds all its modules; no other form's has it."""
    return f"podroute_{os.path.basename(directory)}__mypyc"


def _stamp(directory: str) -> dict[str, str]:
    try:
        with open(os.path.join(directory, STAMP), encoding="utf-8") as file:
            pairs = (line.rstrip("\n").partition(" ") for line in file)
            return {key: value for key, _, value in pairs}
    except OSError:
        return {}


def _load_library(directory: str) -> None:
    """Import what the modules of a form import by name, from nowhere but there. Raises ImportError."""
    name = library(directory)
    spec = spec_from_file_location(name, os.path.join(directory, name + SUFFIX))
    if spec is None or spec.loader is None:
        raise ImportError(f"{directory}: no library")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError:
        del sys.modules[name]
        raise
