"""A second process that takes a lab down when the first one ends, by whatever means.

    python -m tests.guard LAB

It waits for the end of its standard input, whose other end only the tests hold: closed at their end, and by the kernel
where they are killed. What it removes includes the control groups of the lab's containers, which outlive processes and
namespaces.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from labs import kernel
from labs.teardown import take_down

CGROUPS = "/sys/fs/cgroup"


class Guard:
    """Guards a lab from before it is built."""

    def __init__(self, lab: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.guard", lab], stdin=subprocess.PIPE, start_new_session=True
        )

    def close(self) -> None:
        """Have the lab taken down, and wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0


def cgroup_name(lab: str, node: str) -> str:
    """Return the name of a node's control group, directly under the host's root group."""
    return f"podroute-lab-{lab}-{node}"


def remove_cgroups(lab: str) -> None:
    """Remove the control groups of a lab's nodes; what ran in them has been killed."""

    def remove() -> None:
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("cgroup2", CGROUPS, "cgroup2")
        deadline = time.monotonic() + 60
        for top in Path(CGROUPS).glob(cgroup_name(lab, "*")):
            for directory, _, _ in os.walk(top, topdown=False):
                while True:
                    try:
                        os.rmdir(directory)
                        break
                    except OSError:  # busy until its last process has gone for good
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(0.01)

    kernel.in_thread(remove)


def main(lab: str) -> None:
    sys.stdin.buffer.read()
    take_down(lab)
    remove_cgroups(lab)


if __name__ == "__main__":
    main(sys.argv[1])
