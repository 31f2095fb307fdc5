"""The directories are import packages as they stand: nothing that is installed beside them may bear their names."""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions

ROOMS = ("agent", "benchmarks", "bgp", "cni", "config", "ipam", "labs", "routes", "tests")


def test_no_dependency_brings_a_module_of_our_names() -> None:
    distributions = packages_distributions()
    assert {room: distributions[room] for room in ROOMS if set(distributions.get(room, [])) - {"podroute"}} == {}


def test_the_standard_library_has_none_of_our_names() -> None:
    assert not set(ROOMS) & sys.stdlib_module_names
