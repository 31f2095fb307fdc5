from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.netns import Netns


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: run `sudo make test`")
    for item in items:
        if "root" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def netns() -> Iterator[Callable[[], Netns]]:
    """Return a maker of network namespaces; they go when the test ends."""
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    yield make
    for ns in made:
        ns.close()
