"""Every error has a code of its own, and the documentation says what to do about it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ipam import errors

_ABSTRACT = {"ipam", "database"}
_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "ipam.md"


def every() -> list[type[errors.IpamError]]:
    found = [getattr(errors, name) for name in dir(errors)]
    return [one for one in found if isinstance(one, type) and issubclass(one, errors.IpamError)]


def test_codes_are_unique() -> None:
    codes = [one.code for one in every()]
    assert len(set(codes)) == len(codes)


def test_the_documentation_names_each_error_and_whether_to_retry() -> None:
    page = _PAGE.read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    told = {code: cells[-1].strip() == "yes" for cells in rows for code in re.findall(r"`([a-z-]+)`", cells[0])}
    for one in every():
        if one.code not in _ABSTRACT:
            assert told.get(one.code) is one.retry, one.code


def texts() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every error that the room can raise; what is only known then is …."""
    names = {one.__name__ for one in every()}
    for file in (*sorted((_ROOT / "ipam").glob("*.py")), _ROOT / "agent" / "ipam_views.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            text: ast.expr | None = None
            if isinstance(node, ast.Call) and node.args:
                called = ast.unparse(node.func)
                if called.rpartition(".")[2] in names or called.startswith(("kind.", "self._kind.")):
                    text = node.args[0]
            elif isinstance(node, ast.FunctionDef) and node.name == "_unavailable":
                text = next(one.value for one in node.body if isinstance(one, ast.Return))
            if text is not None:
                yield f"{file.name}:{text.lineno}", text_of(text)


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return "…"


def test_the_documentation_has_every_text_with_its_cause_and_what_to_do() -> None:
    section = _PAGE.read_text().partition("### Every text")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    assert all(cell.strip() for cells in rows for cell in cells)
    # The noun of a file ("ledger", "store") is one of its placeholders
    beginnings = [cells[0].strip().strip("`") for cells in rows]
    used: set[str] = set()
    for place, text in texts():
        if not text.strip("… "):
            continue  # another error's text, passed on
        found = [beginning for beginning in beginnings if text.startswith(beginning)]
        assert found, f"{place}: {text}"
        used |= set(found)
    assert set(beginnings) - used == set()
