"""Topology files for tests: written into a directory, read, and their faults without the file's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from labs.errors import TopologyError
from labs.reading import load
from labs.topology import Topology


class Reader:
    """Reads topologies from text."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "x.clab.yml"

    def read(self, text: str, **environ: str) -> Topology:
        self.path.write_text(text)
        return load(self.path, directories=self.directory / "labs", environ=environ)

    def faults(self, text: str) -> list[str]:
        with pytest.raises(TopologyError) as caught:
            self.read(text)
        return [fault.removeprefix(f"{self.path}:") for fault in caught.value.faults]
