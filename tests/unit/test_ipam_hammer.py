"""Many nodes killed at random, a few seconds of it; `make hammer` takes a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.etcd import needs_etcd


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("etcd", marks=needs_etcd)])
def test_nodes_killed_at_random_leave_nothing_wrong(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ipam_hammer", kind, "3", "8"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
