from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.bench import Bench
from tests.interop.matrix import PAGE, Matrix
from tests.interop.routers import NODE4, NODE6, ROUTER4, ROUTER6, ROUTERS
from tests.netns import Netns, link

_MATRIX = pytest.StashKey[Matrix]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MATRIX] = Matrix()


@pytest.fixture
def matrix(pytestconfig: pytest.Config) -> Matrix:
    return pytestconfig.stash.setdefault(_MATRIX, Matrix())


@pytest.fixture(params=sorted(ROUTERS))
def bench(request: pytest.FixtureRequest, netns: Callable[[], Netns], matrix: Matrix) -> Iterator[Bench]:
    node, tor = netns(), netns()
    link(node, "eth0", tor, "eth1")
    for last in (21, 22):  # of other speakers beside us
        node.run("ip", "addr", "add", f"10.1.1.{last}/24", "dev", "eth0")
        node.run("ip", "addr", "add", f"fd00:1::{last}/64", "dev", "eth0", "nodad")
    for ns, device, addresses in ((node, "eth0", (NODE4, NODE6)), (tor, "eth1", (ROUTER4, ROUTER6))):
        ns.run("ip", "addr", "add", f"{addresses[0]}/24", "dev", device)
        ns.run("ip", "addr", "add", f"{addresses[1]}/64", "dev", device, "nodad")
    bench = Bench(node, tor, request.param, matrix)
    yield bench
    bench.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.setdefault(_MATRIX, Matrix()).lines()
    if lines:
        terminalreporter.section("interoperability")
        for line in lines:
            terminalreporter.write_line(line)
    if lines and "INTEROP_PAGE" in os.environ:
        Path(os.environ["INTEROP_PAGE"]).write_text(PAGE + "\n".join(lines) + "\n")
