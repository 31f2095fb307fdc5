"""What the CNI side tells the node about pods, and asks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.advertising import Advertising
from cni.hooks import Assignment, Handle
from routes.fib import Fib


class PodHooks:
    """Implements ``cni.hooks.Hooks``: pods' host routes become part of what the Fib keeps true."""

    def __init__(
        self,
        fib: Fib,
        advertising: Advertising,
        *,
        uplinks: Callable[[], Sequence[str]],
        ready: Callable[[Sequence[str]], tuple[int, str] | None],
        owns: Callable[[Assignment], bool],
    ) -> None:
        """``uplinks``: addresses of the peers there are now. ``owns``: whether an address lies in a block that is this
        node's; others are cut off."""
        self._fib = fib
        self._advertising = advertising
        self._owns = owns
        self._uplinks = uplinks
        self._ready = ready

    async def pod_added(
        self, handle: Handle, assignments: Sequence[Assignment], host_ifname: str, *, restored: bool
    ) -> None:
        for assignment in filter(self._owns, assignments):
            self._fib.expect_pod(assignment.family, assignment.prefix, host_ifname)

    async def pod_removed(self, handle: Handle, assignments: Sequence[Assignment], host_ifname: str) -> None:
        for assignment in assignments:
            self._fib.forget_pod(assignment.family, assignment.prefix)

    def bridged(self, assignments: Sequence[Assignment]) -> None:
        """Take the cover off IPv6 blocks: the kernel gives the subnet's route metric 256, behind a cover's."""
        for assignment in assignments:
            if assignment.family == 6:
                self._fib.remove_cover(6, assignment.block)

    async def advertised(self, assignments: Sequence[Assignment]) -> None:
        await self._advertising.wait(assignments)

    def ready(self, pools: Sequence[str]) -> tuple[int, str] | None:
        return self._ready(pools)

    def uplinks(self) -> Sequence[str]:
        return self._uplinks()
