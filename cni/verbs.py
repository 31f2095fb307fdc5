"""The verbs of CNI 1.1.0 (section 2), as the agent carries them out.

ADD goes ledger, link, answer; DEL goes link, ledger: an address is in the ledger as long as a link may carry it.
Calls for one handle follow each other; those for different handles run side by side.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cni import verify
from cni.errors import CniError, Code
from cni.hooks import AddressError, Addresses, Assignment, Attachment, Handle, Hooks
from cni.locks import KeyedLocks
from cni.namespaces import check_pod
from cni.netlink import AF, show
from cni.notes import read_notes
from cni.podnet import GATEWAYS, HOST_MAC, HostLink, Plan, PodLinks, host_ifname, pod_mac
from cni.recovery import reconcile
from cni.request import Request, parse, version_of
from cni.result import Interface, Ip, Result, Route, encode_error, encode_result, encode_versions
from cni.wire import Answer, Message
from config.prefix import BITS, Family

log = logging.getLogger("podroute.cni")
T = TypeVar("T")

ALLOCATION_LIMIT = 45.0
"""Seconds to wait for an address; below the plugin's own patience."""
_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


class Worker(Protocol):
    """Runs a blocking function in a thread."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]: ...


Deliver = Callable[[Answer], Awaitable[bool]]
"""Hands an answer to the plugin; returns whether the plugin was still there."""


class Verbs:
    def __init__(self, addresses: Addresses, hooks: Hooks, links: PodLinks, worker: Worker) -> None:
        self._addresses = addresses
        self._hooks = hooks
        self._links = links
        self._worker = worker
        self._locks: KeyedLocks[Handle] = KeyedLocks()

    async def call(self, message: Message, netns: int | None, deliver: Deliver) -> None:
        """Carry a call out and deliver its answer. ``netns``: descriptor of CNI_NETNS; the caller keeps and closes it.

        Raises nothing that the call causes: every failure is an answer.
        """
        try:
            request = parse(message)
        except CniError as error:
            log.warning("call refused", extra={"fields": {"code": error.code, "error": str(error)}})
            await deliver(Answer(1, encode_error(error, version_of(message.stdin))))
            return
        if not request.handle.container_id:
            await deliver(await self._answer(request, message, netns))
            return
        async with self._locks.hold(request.handle):
            answer = await self._answer(request, message, netns)
            if not await deliver(answer) and request.verb == "ADD" and not answer.status:
                # Killed while it waited: the runtime counts this as failed, and may never ask for the deletion.
                log.warning("plugin went away, pod undone", extra={"fields": {"pod": str(request.handle)}})
                await self._detach(request.handle)

    async def recover(self, notes: Path) -> None:
        """Put right what a crash left, work noted deletions off, and tell the agent of the pods that run."""
        links = await self._worker(self._links.list)
        recovery = reconcile(await self._addresses.attachments(), links)
        for link in recovery.remove:
            log.info("leftover interface removed", extra={"fields": {"interface": link.name}})
            await self._remove(link)
        for attachment in recovery.release:
            await self._addresses.release(attachment.handle)
            log.info("addresses of a vanished pod released", extra={"fields": _fields(attachment)})
        for attachment in recovery.keep:
            await self._hooks.pod_added(
                attachment.handle, attachment.assignments, attachment.attributes["hostInterface"], restored=True
            )
        for note in read_notes(notes):
            found = await self._addresses.lookup(note.request.handle)
            if found is None or _created(found) <= note.at:
                await self._detach(note.request.handle)
                log.info("noted deletion worked off", extra={"fields": {"pod": str(note.request.handle)}})
            note.done()

    async def links(self) -> list[HostLink]:
        """Return all host ends there are."""
        return await self._worker(self._links.list)

    async def remove_stray(self, link: HostLink) -> bool:
        """Remove a host end that no attachment knows; return whether it was one."""
        known = {attachment.attributes.get("hostInterface") for attachment in await self._addresses.attachments()}
        if link.name in known or link.name in {host_ifname(handle) for handle in self._locks.held()}:
            return False
        await self._remove(link)
        log.info("stray interface removed", extra={"fields": {"interface": link.name}})
        return True

    async def detach(self, handle: Handle) -> None:
        """Remove whatever there is of a handle, as DEL does."""
        async with self._locks.hold(handle):
            await self._detach(handle)

    async def remove_gone(self, handle: Handle) -> bool:
        """Release the addresses of an attachment whose host end is gone; return whether it was so."""
        async with self._locks.hold(handle):
            found = await self._addresses.lookup(handle)
            if found is None:
                return False
            name = found.attributes.get("hostInterface")
            if not name or name in {link.name for link in await self._worker(self._links.list)}:
                return False
            await self._hooks.pod_removed(handle, found.assignments, name)
            await self._addresses.release(handle)
            log.warning("addresses of a vanished pod released", extra={"fields": _fields(found)})
            return True

    async def _answer(self, request: Request, message: Message, netns: int | None) -> Answer:
        try:
            return Answer(0, await self._carry_out(request, message, netns))
        except (CniError, AddressError) as error:
            fault = error if isinstance(error, CniError) else _no_address(error)
            log.warning("%s failed", request.verb, extra={"fields": _failure(request, fault)})
        except Exception as error:
            fault = CniError(Code.INTERNAL, f"{type(error).__name__} in podroute's agent; its log has more", str(error))
            log.exception("%s failed", request.verb, extra={"fields": _failure(request, fault)})
        return Answer(1, encode_error(fault, request.version))

    async def _carry_out(self, request: Request, message: Message, netns: int | None) -> bytes:
        match request.verb:
            case "ADD":
                return await self._add(request, self._namespace(request, message, netns))
            case "CHECK":
                await self._check(request, self._namespace(request, message, netns))
            case "DEL":
                await self._detach(request.handle)
            case "GC":
                await self._collect(request)
            case "STATUS":
                if trouble := self._hooks.ready():
                    raise CniError(trouble[0], "podroute cannot add containers now", trouble[1])
            case _:
                return encode_versions()
        return b""

    def _namespace(self, request: Request, message: Message, netns: int | None) -> int:
        if netns is None:
            why = os.strerror(message.netns_errno) if message.netns_errno else "the plugin sent no descriptor"
            raise CniError(Code.INVALID_NETNS, f"CNI_NETNS {request.netns} cannot be opened", why)
        check_pod(netns, self._links.host, request.netns)
        return netns

    async def _add(self, request: Request, netns: int) -> bytes:
        handle = request.handle
        if request.previous is not None:
            raise CniError(
                Code.INVALID_CONFIGURATION,
                "podroute makes the container's interface and cannot follow another plugin",
                "put it first in `plugins`",
            )
        if await self._addresses.lookup(handle):
            link = await self._worker(lambda: self._links.find(handle))
            if link and link.complete:
                raise CniError(
                    Code.ALREADY_ADDED, f"{handle.container_id} has {handle.ifname} in {handle.network} already"
                )
            await self._detach(handle)  # an ADD that was cut short
        mac = request.mac or pod_mac(handle)
        try:
            assignments = await self._allocate(request, mac)
            mtu = await self._wire(request, netns, assignments, mac)
            await self._hooks.pod_added(handle, assignments, host_ifname(handle), restored=False)
        except Exception:
            await self._detach(handle)
            raise
        log.info("pod added", extra={"fields": _fields(Attachment(handle, assignments, {}))})
        return encode_result(_result(request, assignments, mac, mtu), request.version)

    async def _allocate(self, request: Request, mac: bytes) -> Sequence[Assignment]:
        attributes = {
            "netns": request.netns,
            "hostInterface": host_ifname(request.handle),
            "mac": mac.hex(":"),
            "args": dict(request.arguments),
            "createdAt": datetime.now(UTC).isoformat(),
        }
        try:
            async with asyncio.timeout(ALLOCATION_LIMIT):
                assignments = await self._addresses.allocate(
                    request.handle, addresses=request.addresses, pools=request.pools, attributes=attributes
                )
        except TimeoutError:
            raise AddressError(f"the ledger gave none within {ALLOCATION_LIMIT:.0f} seconds") from None
        if not assignments:
            raise AddressError("the node has no block of addresses", retry=False)
        return assignments

    async def _wire(self, request: Request, netns: int, assignments: Sequence[Assignment], mac: bytes) -> int:
        uplinks = self._hooks.uplinks()

        def wire() -> int:
            mtu = request.mtu or self._links.mtu(uplinks)
            self._links.wire(netns, Plan(request.handle, _packed(assignments), mac, mtu))
            return mtu

        return await self._worker(wire)

    async def _detach(self, handle: Handle) -> None:
        """Remove whatever there is of a handle; nothing is fine too."""
        attachment = await self._addresses.lookup(handle)
        if attachment:
            await self._hooks.pod_removed(handle, attachment.assignments, host_ifname(handle))
        removed = await self._worker(lambda: self._links.unwire(handle))
        if attachment:
            await self._addresses.release(handle)
        if attachment or removed:
            fields = _fields(attachment or Attachment(handle, (), {}))
            log.info("pod removed", extra={"fields": fields})

    async def _check(self, request: Request, netns: int) -> None:
        handle = request.handle
        if request.previous is None:
            raise CniError(Code.INVALID_CONFIGURATION, "CHECK needs `prevResult` in the configuration")
        attachment = await self._addresses.lookup(handle)
        if attachment is None:
            raise CniError(Code.CHECK_FAILED, f"podroute knows nothing of {handle}")
        addresses = _packed(attachment.assignments)
        found = _previous_faults(request.previous, attachment)
        found += await self._worker(lambda: verify.faults(self._links, netns, handle, addresses))
        if found:
            raise CniError(Code.CHECK_FAILED, f"{handle}: {found[0]}", "; ".join(found[1:]))

    async def _collect(self, request: Request) -> None:
        """GC: remove the network's attachments that are not listed, and links that no ledger knows of.

        The links are read first: whatever is among them was in the ledger before, so what the ledger does not know
        afterwards is nobody's.
        """
        links = await self._worker(self._links.list)
        attachments = await self._addresses.attachments()
        known = {host_ifname(attachment.handle) for attachment in attachments}
        failed: list[str] = []
        for attachment in attachments:
            handle = attachment.handle
            if handle.network != request.network or (handle.container_id, handle.ifname) in request.valid:
                continue
            try:
                async with self._locks.hold(handle):
                    await self._detach(handle)
            except Exception as error:
                log.exception("GC failed", extra={"fields": {"pod": str(handle)}})
                failed.append(f"{handle}: {error}")
        for link in links:
            if link.name not in known:
                log.info("leftover interface removed", extra={"fields": {"interface": link.name}})
                await self._remove(link)
        if failed:
            raise CniError(Code.IO_FAILURE, f"{len(failed)} attachments could not be removed", "; ".join(failed))

    async def _remove(self, link: HostLink) -> None:
        await self._worker(lambda: self._links.remove(link))


def _packed(assignments: Sequence[Assignment]) -> tuple[tuple[Family, bytes], ...]:
    return tuple((a.family, socket.inet_pton(AF[a.family], a.address)) for a in assignments)


def _result(request: Request, assignments: Sequence[Assignment], mac: bytes, mtu: int) -> Result:
    families: list[Family] = sorted({assignment.family for assignment in assignments})
    return Result(
        interfaces=(
            Interface(host_ifname(request.handle), HOST_MAC.hex(":"), mtu),
            Interface(request.handle.ifname, mac.hex(":"), mtu, request.netns),
        ),
        ips=[Ip(a.family, f"{a.address}/{BITS[a.family]}", show(GATEWAYS[a.family]), 1) for a in assignments],
        routes=[Route(_DEFAULT[family], show(GATEWAYS[family])) for family in families],
        dns=request.dns,
    )


def _previous_faults(previous: Mapping[str, Any], attachment: Attachment) -> list[str]:
    """Return which of the ledger's addresses the runtime does not know of."""
    ips = previous.get("ips")
    shown = {str(ip.get("address")) for ip in ips if isinstance(ip, dict)} if isinstance(ips, list) else set()
    return [
        f"prevResult lacks the address {assignment.address}"
        for assignment in attachment.assignments
        if f"{assignment.address}/{BITS[assignment.family]}" not in shown
    ]


def _created(attachment: Attachment) -> datetime:
    return datetime.fromisoformat(str(attachment.attributes["createdAt"]))


def _fields(attachment: Attachment) -> dict[str, str]:
    return {
        "pod": str(attachment.handle),
        "addresses": ",".join(assignment.address for assignment in attachment.assignments),
        "interface": host_ifname(attachment.handle),
    }


def _no_address(error: AddressError) -> CniError:
    if error.retry:
        return CniError(Code.TRY_AGAIN_LATER, "the node's addresses are not available now", str(error))
    return CniError(Code.NO_ADDRESS, "the node's addresses are not available", str(error))


def _failure(request: Request, error: CniError) -> dict[str, object]:
    pod = str(request.handle) if request.handle.container_id else request.network
    return {"pod": pod, "code": error.code, "error": str(error)}
