"""What a host holds that a lab could leave behind: taken before and after, the difference must be empty."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from labs.processes import marked
from labs.state import ROOT

_DIRECTORIES = (Path("/run/netns"), Path("/run/podroute"), Path("/var/lib/podroute"), Path("/run/frr"))


@dataclass(frozen=True, slots=True)
class Host:
    things: frozenset[str]
    """One text each: a link, a mount, a network namespace, a process of a lab, a file."""

    @classmethod
    def look(cls, lab: str) -> Host:
        things = {f"link {link['ifname']}" for link in json.loads(_output("ip", "-j", "link"))}
        with open("/proc/self/mountinfo") as mounts:
            things |= {f"mount {line.split()[4]}" for line in mounts}
        things |= {f"process {process.pid} of a lab" for process in marked(lab)}
        # Other labs may come and go meanwhile.
        for directory in (ROOT / lab, *_DIRECTORIES):
            for path, _, files in os.walk(directory):
                things |= {f"file {path}/{file}" for file in files}
        return cls(frozenset(things))

    def beyond(self, before: Host) -> list[str]:
        """Return what is here now and was not then."""
        return sorted(self.things - before.things)


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
