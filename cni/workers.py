"""Threads for what blocks: entering namespaces, asking the kernel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Worker(Protocol):
    """Runs a blocking function in a thread."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]: ...
