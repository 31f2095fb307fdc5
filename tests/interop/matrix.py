"""Which feature was seen to work with which router: collected while tests run, printed and written at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Matrix:
    """``yes``, ``no`` or a reason by feature and router."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, str]] = {}
        """By feature, then by router."""

    @contextmanager
    def feature(self, router: str, name: str) -> Iterator[None]:
        """Record that a feature works unless the block fails."""
        row = self.cells.setdefault(name, {})
        row.setdefault(router, "no")
        yield
        row[router] = "yes"

    def lacks(self, router: str, name: str, why: str) -> None:
        """Record that a router does not have a feature."""
        self.cells.setdefault(name, {})[router] = why

    def add(self, cells: Mapping[str, Mapping[str, str]]) -> None:
        """Take over what another run has seen of other routers or features."""
        for feature, row in cells.items():
            self.cells.setdefault(feature, {}).update(row)

    def lines(self) -> list[str]:
        """Return a Markdown table."""
        routers = sorted({router for row in self.cells.values() for router in row})
        if not routers:
            return []
        lines = [f"| feature | {' | '.join(routers)} |", f"|---|{'---|' * len(routers)}"]
        for name, row in self.cells.items():
            lines.append(f"| {name} | {' | '.join(row.get(router, '') for router in routers)} |")
        return lines


PAGE = """\
# Interoperability

Written by `make interop`; not to be edited. Each `yes` was seen in `tests/interop/`: what podroute sends is read out of
the router's own JSON or CLI, what the router sends out of podroute's tables.

"""
