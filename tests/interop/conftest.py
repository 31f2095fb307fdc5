from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labs.leftovers import Host
from labs.teardown import take_down
from tests.guard import Guard
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


@pytest.fixture(scope="module")
def guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the lab ``NAME`` of the tests' module taken down also when the tests are killed."""
    guard = Guard(request.module.NAME)
    yield
    guard.close()


@pytest.fixture
def nothing_left(request: pytest.FixtureRequest, guard: None) -> Iterator[None]:
    """Remove the lab ``NAME`` of the test's module, and see that nothing of it is left on the host."""
    name = request.module.NAME
    before = Host.look(name)
    yield
    take_down(name)
    assert Host.look(name).beyond(before) == []


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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the matrix of a worker of pytest-xdist to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["interop"] = session.config.stash[_MATRIX].cells


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker has seen; one that was killed hands over nothing."""
    node.config.stash[_MATRIX].add(getattr(node, "workeroutput", {}).get("interop", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.setdefault(_MATRIX, Matrix()).lines()
    if lines:
        terminalreporter.section("interoperability")
        for line in lines:
            terminalreporter.write_line(line)
    if lines and "INTEROP_PAGE" in os.environ:
        Path(os.environ["INTEROP_PAGE"]).write_text(PAGE + "\n".join(lines) + "\n")
