"""DEL in two steps: cut the pod off and answer, then delete, many at a time, and only then free the addresses.

The kernel takes 20 ms to delete a link, and little more to delete a hundred at once; to cut one off it takes a tenth
of a millisecond. What is cut off is queued by the mark that it carries in the kernel: no longer finished. That outlives
the agent, which removes unfinished links at its next start; where it does not outlive the node, neither does the link,
and the agent frees the addresses of a pod without one. So no address is free before its link is gone for good.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from cni.hooks import AddressError, Addresses, Attachment, Handle, Hooks, host_ifname_of
from cni.podnet import HostLink, PodLinks, host_ifname
from cni.workers import Worker

log = logging.getLogger("podroute.cni")

QUIET = 0.05
"""Seconds without another DEL after which the queue is worked off: while links are deleted, the kernel's other callers
wait, the next DEL among them."""
LONGEST = 1.0
"""Seconds that a deletion waits for company at most."""


class _Removal(NamedTuple):
    handle: Handle
    attachment: Attachment | None
    linked: bool
    done: asyncio.Future[None]


class Remover:
    """Removes pods. Calls for one handle must follow each other."""

    def __init__(
        self, addresses: Addresses, hooks: Hooks, links: PodLinks, worker: Worker, on_cut: Callable[[HostLink], None]
    ) -> None:
        self._addresses = addresses
        self._hooks = hooks
        self._links = links
        self._worker = worker
        self._on_cut = on_cut
        self._queue: list[_Removal] = []
        self._pending: dict[Handle, asyncio.Future[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        """Somebody waits for a deletion."""

    def __contains__(self, handle: Handle) -> bool:
        """Tell whether a pod is cut off and its deletion under way."""
        return handle in self._pending

    def __len__(self) -> int:
        return len(self._pending)

    async def cut(self, handle: Handle, pod: int | None = None) -> None:
        """Cut a pod off, whatever there is of it, and queue its deletion; nothing is fine too.

        ``pod`` is a descriptor of its namespace, checked, where that is still there. Addresses that another plugin
        wired are free when this returns. Raises AddressError and OSError.
        """
        if handle in self._pending:
            return
        attachment = await self._addresses.lookup(handle)
        if attachment and not host_ifname_of(attachment):
            await self._addresses.release(handle)
            _log(handle, attachment)
            return
        if attachment:
            await self._hooks.pod_removed(handle, attachment.assignments, host_ifname(handle))

        def cut() -> HostLink | None:
            link = self._links.cut(handle)
            if pod is not None:
                with suppress(OSError):  # a pod that is going: its rules go with it
                    self._links.forget(pod, link)
            return link

        link = await self._worker(cut)
        if link:
            self._on_cut(link)
        if attachment or link:
            done = asyncio.get_running_loop().create_future()
            self._pending[handle] = done
            self._queue.append(_Removal(handle, attachment, link is not None, done))
            if self._task is None:
                self._task = asyncio.create_task(self._run(), name="cni-removal")

    async def remove(self, handle: Handle, pod: int | None = None) -> None:
        """Remove a pod, as ``cut``; what could not be removed is still there and logged. Raises as ``cut``."""
        await self.cut(handle, pod)
        await self.finished(handle)

    async def finished(self, handle: Handle) -> None:
        """Return when no deletion of a pod is under way."""
        if handle in self._pending:
            self._hurry.set()
            await asyncio.wait([self._pending[handle]])

    async def drained(self) -> None:
        """Return when no deletion is under way."""
        while self._pending:
            self._hurry.set()
            await asyncio.wait(self._pending.values())

    async def _run(self) -> None:
        try:
            while self._queue:
                await self._gather()
                batch, self._queue = self._queue, []
                try:
                    await self._delete(batch)
                except Exception:
                    log.exception("deletion failed")
                for removal in batch:
                    del self._pending[removal.handle]
                    removal.done.set_result(None)
        finally:
            self._task = None

    async def _gather(self) -> None:
        """Let the queue grow as long as DELs keep coming and nobody waits for one of them."""
        loop = asyncio.get_running_loop()
        longest = loop.time() + LONGEST
        known = 0
        while known < len(self._queue) and loop.time() < longest:
            known = len(self._queue)
            with suppress(TimeoutError):
                async with asyncio.timeout(QUIET):
                    await self._hurry.wait()
                break
        self._hurry.clear()

    async def _delete(self, batch: list[_Removal]) -> None:
        """Delete links, then free addresses. What fails stays in the ledger: GC, DEL and the next start try again."""
        if any(removal.linked for removal in batch):
            try:
                await self._worker(self._links.delete_cut)
            except OSError as error:
                fields = {"pods": len(batch), "error": str(error)}
                log.error("pods are cut off and cannot be deleted", extra={"fields": fields})
                return
        await asyncio.gather(*(self._free(removal) for removal in batch))

    async def _free(self, removal: _Removal) -> None:
        try:
            if removal.attachment:
                await self._addresses.release(removal.handle)
        except AddressError as error:
            fields = {"pod": str(removal.handle), "error": str(error)}
            log.error("addresses of a deleted pod cannot be freed", extra={"fields": fields})
        else:
            _log(removal.handle, removal.attachment)


def _log(handle: Handle, attachment: Attachment | None) -> None:
    addresses = ",".join(assignment.address for assignment in attachment.assignments) if attachment else ""
    fields = {"pod": str(handle), "addresses": addresses, "interface": host_ifname(handle)}
    log.info("pod removed", extra={"fields": fields})
