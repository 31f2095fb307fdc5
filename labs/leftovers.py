"""What a host holds that a lab could leave behind: taken before and after, the difference must be empty."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from labs.cables import alias
from labs.filesystem import OVERLAID, PRIVATE, RUN
from labs.processes import marked
from labs.state import ROOT

_DIRECTORIES = (Path("/run/podroute"), Path("/var/lib/podroute"), Path("/run/frr"))
_OWN = tuple(place for place in (*PRIVATE, *RUN) if place != "/run/netns")
"""Directories of a lab's nodes. Anybody's ip(8) makes and mounts /run/netns: it says nothing of a lab."""
_MOUNTED = frozenset((*(f"/{top}" for top in OVERLAID), *_OWN, "/run", "/sys"))
"""Where a lab mounts something in its nodes; what others mount elsewhere meanwhile is theirs."""


@dataclass(frozen=True, slots=True)
class Host:
    things: frozenset[str]
    """One text each: a link, a mount, a process of a lab, a directory, a file."""

    @classmethod
    def look(cls, lab: str) -> Host:
        # Other labs may come and go meanwhile.
        links = json.loads(_output("ip", "-j", "link"))
        things = {f"link {link['ifname']}" for link in links if link.get("ifalias", alias(lab)) == alias(lab)}
        with open("/proc/self/mountinfo") as mounts:
            for number, _, _, _, place, *_ in map(str.split, mounts):
                if place in _MOUNTED:
                    things.add(f"mount {place} ({number})")
        things |= {f"process {process.pid} of a lab" for process in marked(lab)}
        things |= {f"directory {place}" for place in _OWN if os.path.isdir(place)}
        for directory in (ROOT / lab, *_DIRECTORIES):
            for path, _, files in os.walk(directory):
                things |= {f"file {path}/{file}" for file in files}
        return cls(frozenset(things))

    def beyond(self, before: Host) -> list[str]:
        """Return what is here now and was not then."""
        return sorted(self.things - before.things)


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
