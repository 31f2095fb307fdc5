from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs.lab import Lab
from tests.guard import Guard
from tests.runtime import containerd, podman
from tests.runtime.hosts import prepare
from tests.runtime.images import write_image


@pytest.fixture(scope="session")
def net() -> Iterator[Lab]:
    """Return a lab of two nodes under one ToR that has converged; containers can run on the nodes."""
    name = f"runtime-{os.getpid()}"
    guard = Guard(name)
    try:
        built = asyncio.run(Lab.up("one-tor", name=name))
        assert not built.problems
        asyncio.run(prepare(built))
        yield built
        asyncio.run(built.down())
    finally:
        guard.close()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("image") / "busybox.tar"
    write_image(file, (containerd.PAUSE, containerd.IMAGE, podman.IMAGE))
    return file


@pytest.fixture(scope="session")
def containerds(net: Lab, image: Path) -> list[containerd.Containerd]:
    """Return a containerd on each node."""

    async def start() -> list[containerd.Containerd]:
        return list(await asyncio.gather(*(containerd.start(net, net.node(name), image) for name in ("n1", "n2"))))

    return asyncio.run(start())


@pytest.fixture(scope="session")
def podmans(net: Lab, image: Path) -> list[podman.Podman]:
    """Return a podman on each node."""

    async def prepare_all() -> list[podman.Podman]:
        return list(await asyncio.gather(*(podman.prepare(net.node(name), image) for name in ("n1", "n2"))))

    return asyncio.run(prepare_all())
