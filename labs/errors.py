"""What goes wrong in a lab, told to the person who runs it."""

from __future__ import annotations

from collections.abc import Sequence


class LabError(Exception):
    """A lab cannot be built, found, used or removed; the text says why and what to do."""


class TopologyError(LabError):
    """A topology file is not usable.

    ``faults`` holds every fault as ``file:path.to.key: what is wrong, what would be right``.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class CommandError(LabError):
    """A command in a node failed. Carries what it printed."""

    def __init__(self, text: str, *, returncode: int | None, stdout: str, stderr: str) -> None:
        super().__init__(text)
        self.returncode = returncode
        """Exit status, negative signal number, or None where it was stopped after its time limit."""
        self.stdout = stdout
        self.stderr = stderr
