from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.interop.matrix import PAGE, Matrix

_MATRIX = pytest.StashKey[Matrix]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MATRIX] = Matrix()


@pytest.fixture
def matrix(pytestconfig: pytest.Config) -> Matrix:
    return pytestconfig.stash.setdefault(_MATRIX, Matrix())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.setdefault(_MATRIX, Matrix()).lines()
    if lines:
        terminalreporter.section("interoperability")
        for line in lines:
            terminalreporter.write_line(line)
    if lines and "INTEROP_PAGE" in os.environ:
        Path(os.environ["INTEROP_PAGE"]).write_text(PAGE + "\n".join(lines) + "\n")
