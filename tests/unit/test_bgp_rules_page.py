"""docs/bgp-rules.md names tests that exist, for every RFC of the speaker."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/bgp-rules.md"
RFCS = {
    *(1997, 2385, 2545, 2918, 4271, 4360, 4456, 4486, 4724, 4760, 5082, 5492, 6286, 6793, 7313, 7606, 7607, 7911),
    *(8092, 8212, 8326, 8538, 8654, 8950, 9003, 9072, 9687),
}


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@cache
def names_in(path: Path) -> set[str]:
    """Return the names of a file's tests, those of a class as Class.test."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return {name for name in found if name.rpartition(".")[2].startswith("test_")}


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"RFC {row[0]} section {row[1]}: {row[2]}"[:60])
def test_the_tests_of_a_rule_exist(row: list[str]) -> None:
    names = re.findall(r"`(\S+?\.py)::(\S+?)`", row[3])
    assert names
    for file, name in names:
        assert name in names_in(ROOT / "tests" / file), f"no test {name} in tests/{file}"


def test_every_rfc_of_the_speaker_has_a_row() -> None:
    assert {int(row[0]) for row in rows()} == RFCS
    listed = re.findall(r"^\| ([\d, .]+) \|", (ROOT / "docs/bgp.md").read_text(), re.MULTILINE)
    assert {int(number) for cell in listed for number in re.findall(r"\b\d{4}\b", cell)} <= RFCS
