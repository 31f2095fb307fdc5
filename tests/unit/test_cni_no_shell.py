"""No shell anywhere: nothing that a runtime or a pod names is ever parsed as a command."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("agent", "bgp", "cni", "config", "ipam", "routes")
SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell"}


def _shells(tree: ast.AST) -> list[int]:
    """Return the lines where a shell would run."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in SHELLS:
                found.append(node.lineno)
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            found.append(node.value.lineno)
        elif isinstance(node, ast.Constant) and node.value in ("sh", "bash", "/bin/sh", "/bin/bash"):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_the_agent_runs_no_shell(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): lines for file in files if (lines := _shells(ast.parse(file.read_text())))}
    assert found == {}


def test_the_compiled_plugin_runs_no_shell() -> None:
    text = (ROOT / "cni" / "plugin.c").read_text()
    assert not any(name in text for name in ("system(", "popen(", "/bin/sh", "execlp", "execvp"))


def test_this_test_would_see_one() -> None:
    assert _shells(ast.parse("import os, subprocess\nos.system('x')\nsubprocess.run('x', shell=True)")) == [2, 3]
