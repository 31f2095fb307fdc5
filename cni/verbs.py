"""The verbs of CNI 1.1.0 (section 2), as the agent carries them out.

ADD makes link and ledger entry side by side, then gives the one the addresses of the other; DEL goes link, ledger
(``cni/removal.py``): an address is in the ledger as long as a link may carry it. Calls for one handle follow each
other; those for different handles run side by side.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cni import verify
from cni.calls import UNREADABLE, Calls
from cni.delegate import Delegate, missing_addresses
from cni.errors import CniError, Code
from cni.follower import Follower, open_events
from cni.hooks import AddressError, Addresses, Assignment, Attachment, Handle, Hooks
from cni.inside import GATEWAYS, HOST_MAC
from cni.locks import KeyedLocks
from cni.namespaces import check_pod
from cni.netlink import show
from cni.notes import read_notes
from cni.podnet import HostLink, Pair, Plan, PodLinks, host_ifname, packed, pod_mac
from cni.recovery import reconcile
from cni.removal import Remover
from cni.request import Request, parse, version_of
from cni.result import Interface, Ip, Result, Route, encode_error, encode_result, encode_versions
from cni.wire import Answer, Message
from cni.workers import Worker
from config.prefix import BITS, Family

log = logging.getLogger("podroute.cni")
T = TypeVar("T")

ALLOCATION_LIMIT = 45.0
"""Seconds to wait for an address; below the plugin's own patience."""
_ROUTED = "ptp"
"""The one main plugin that wires its containers as podroute does, without a subnet."""
_LEAST_IPV6_MTU = 1280
_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


Deliver = Callable[[Answer], Awaitable[bool]]
"""Hands an answer to the plugin; returns whether the plugin was still there."""


class Verbs:
    def __init__(self, addresses: Addresses, hooks: Hooks, links: PodLinks, worker: Worker) -> None:
        self._addresses = addresses
        self._hooks = hooks
        self._links = links
        self._worker = worker
        self._locks: KeyedLocks[Handle] = KeyedLocks()
        self._follower = Follower(addresses, links, worker)
        self._remover = Remover(addresses, hooks, links, worker, lambda link: self._follower.forget(link.index))
        self._delegate = Delegate(addresses)
        self.calls = Calls()
        self._adding: set[str] = set()
        """Host ends that may be there before the ledger knows of them."""

    async def call(self, message: Message, netns: int | None, deliver: Deliver) -> None:
        """Carry a call out and deliver its answer. ``netns``: descriptor of CNI_NETNS; the caller keeps and closes it.

        Raises nothing that the call causes: every failure is an answer.
        """
        start = time.perf_counter()
        try:
            request = parse(message)
        except CniError as error:
            log.warning("call refused", extra={"fields": {"code": error.code, "error": str(error)}})
            self.calls.ended(UNREADABLE, error.code, time.perf_counter() - start)
            await deliver(Answer(1, encode_error(error, version_of(message.stdin))))
            return
        if not request.handle.container_id:
            await deliver(await self._answer(request, message, netns, start))
            return
        async with self._locks.hold(request.handle):
            answer = await self._answer(request, message, netns, start)
            if not await deliver(answer) and request.verb == "ADD" and not answer.status:
                # Killed while it waited: the runtime counts this as failed, and may never ask for the deletion.
                log.warning("plugin went away, pod undone", extra={"fields": {"pod": str(request.handle)}})
                await self._remover.remove(request.handle, self._living(netns))

    def deletes(self, handle: Handle) -> bool:
        """Tell whether a pod's deletion was answered for and is still under way."""
        return handle in self._remover

    async def settled(self) -> None:
        """Return when no deletion that was answered for is still under way."""
        await self._remover.drained()

    async def stop(self) -> None:
        """Finish the deletions that are under way; no call may be."""
        await self.settled()
        await self._follower.stop()
        self._links.close()

    async def recover(self, notes: Path) -> None:
        """Put right what a crash left, work noted deletions off, and tell the agent of the pods that run."""
        await self._worker(self._links.open)
        self._follower.start(await self._worker(lambda: open_events(self._links.host)))
        links = await self._worker(self._links.list)
        recovery = reconcile(await self._addresses.attachments(), links)
        for link in recovery.remove:
            log.info("leftover interface removed", extra={"fields": {"interface": link.name}})
            await self._remove(link)
        for attachment in recovery.release:
            await self._addresses.release(attachment.handle)
            log.info("addresses of a vanished pod released", extra={"fields": _fields(attachment)})
        indexes = {link.name: link.index for link in links}
        wired = [a for a in recovery.keep if a.attributes["hostInterface"] == host_ifname(a.handle)]
        ends = [(indexes[host_ifname(a.handle)], packed(a.assignments)) for a in wired]
        await self._worker(lambda: self._links.mend(ends))
        await self._follower.restore([(indexes[host_ifname(a.handle)], _mac(a)) for a in wired])
        for attachment in recovery.keep:
            await self._hooks.pod_added(
                attachment.handle, attachment.assignments, attachment.attributes["hostInterface"], restored=True
            )
        for attachment in await self._addresses.attachments():
            if attachment.attributes.get("plugin", _ROUTED) != _ROUTED:
                self._hooks.bridged(attachment.assignments)
        for note in read_notes(notes):
            found = await self._addresses.lookup(note.request.handle)
            if found is None or _created(found) <= note.at:
                await self._remover.remove(note.request.handle)
                log.info("noted deletion worked off", extra={"fields": {"pod": str(note.request.handle)}})
            note.done()

    async def links(self) -> list[HostLink]:
        """Return all host ends there are."""
        return await self._worker(self._links.list)

    async def remove_stray(self, link: HostLink) -> bool:
        """Remove a host end that no attachment knows; return whether it was one."""
        known = await self._known()
        if link.name in known:
            return False
        await self._remove(link)
        log.info("stray interface removed", extra={"fields": {"interface": link.name}})
        return True

    async def detach(self, handle: Handle) -> None:
        """Remove whatever there is of a handle, as DEL does."""
        async with self._locks.hold(handle):
            await self._remover.remove(handle)

    async def remove_gone(self, handle: Handle) -> bool:
        """Release the addresses of an attachment whose host end is gone; return whether it was so."""
        async with self._locks.hold(handle):
            found = await self._addresses.lookup(handle)
            if found is None:
                return False
            name = found.attributes.get("hostInterface")
            if not name or name in {link.name for link in await self._worker(self._links.list)}:
                return False
            await self._remover.remove(handle)
            log.warning("addresses of a vanished pod released", extra={"fields": _fields(found)})
            return True

    async def _answer(self, request: Request, message: Message, netns: int | None, start: float) -> Answer:
        try:
            answer = Answer(0, await self._carry_out(request, message, netns))
            self.calls.ended(request.verb, 0, time.perf_counter() - start)
            return answer
        except (CniError, AddressError) as error:
            fault = error if isinstance(error, CniError) else _no_address(error)
            log.warning("%s failed", request.verb, extra={"fields": _failure(request, fault)})
        except Exception as error:
            fault = CniError(Code.INTERNAL, f"{type(error).__name__} in podroute's agent; its log has more", str(error))
            log.exception("%s failed", request.verb, extra={"fields": _failure(request, fault)})
        self.calls.ended(request.verb, fault.code, time.perf_counter() - start)
        return Answer(1, encode_error(fault, request.version))

    async def _carry_out(self, request: Request, message: Message, netns: int | None) -> bytes:
        match request.verb:
            case "ADD" if request.delegated:
                return await self._add_delegated(request)
            case "ADD":
                return await self._add(request, self._namespace(request, message, netns))
            case "CHECK" if request.delegated:
                await self._delegate.check(request)
            case "CHECK":
                await self._check(request, self._namespace(request, message, netns))
            case "DEL":
                await self._remover.cut(request.handle, self._living(netns))
            case "GC":
                await self._collect(request)
            case "STATUS":
                if trouble := self._hooks.ready(request.pools):
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

    async def _add_delegated(self, request: Request) -> bytes:
        result, assignments = await self._delegate.add(request)
        if request.plugin != _ROUTED:
            self._hooks.bridged(assignments)
        await self._hooks.advertised(assignments)
        return encode_result(result, request.version)

    def _living(self, netns: int | None) -> int | None:
        """Return the descriptor of a pod's namespace where it is one."""
        if netns is not None:
            with suppress(CniError):
                check_pod(netns, self._links.host, "")
                return netns
        return None

    async def _add(self, request: Request, netns: int) -> bytes:
        handle = request.handle
        if request.previous is not None:
            raise CniError(
                Code.INVALID_CONFIGURATION,
                "podroute makes the container's interface and cannot follow another plugin",
                "put it first in `plugins`",
            )
        await self._remover.finished(handle)
        if await self._addresses.lookup(handle):
            link = await self._worker(lambda: self._links.find(handle))
            if link and link.complete:
                raise CniError(
                    Code.ALREADY_ADDED, f"{handle.container_id} has {handle.ifname} in {handle.network} already"
                )
            await self._remover.remove(handle)  # an ADD that was cut short
        name = host_ifname(handle)
        self._adding.add(name)
        try:
            result = await self._wire(request, netns)
        except Exception:
            await self._remover.remove(handle, netns)
            raise
        finally:
            self._adding.discard(name)
        return encode_result(result, request.version)

    async def _wire(self, request: Request, netns: int) -> Result:
        """Make link and addresses side by side, then put them together. On failure something of them may be left."""
        handle, mac = request.handle, request.mac or pod_mac(request.handle)
        uplinks = self._hooks.uplinks()
        steps = Steps()

        def make() -> tuple[Plan, Pair]:
            plan = Plan(handle, mac, request.mtu or self._links.mtu(uplinks))
            return plan, self._links.make(netns, plan)

        linked, allocated = await asyncio.gather(
            steps.timed("link", self._worker(make)),
            steps.timed("ledger", self._allocate(request, mac)),
            return_exceptions=True,
        )
        for outcome in (linked, allocated):
            if isinstance(outcome, BaseException):
                raise outcome
        assert not isinstance(linked, BaseException)
        assert not isinstance(allocated, BaseException)
        (plan, pair), assignments = linked, allocated
        plan = replace(plan, addresses=packed(assignments))
        if 6 in plan.families and plan.mtu < _LEAST_IPV6_MTU:
            text = f"mtu {plan.mtu} is too small for IPv6, which the pools give an address of"
            raise CniError(Code.INVALID_CONFIGURATION, text, f"{_LEAST_IPV6_MTU} at least (RFC 8200 section 5)")
        default = await steps.timed("addresses and routes", self._worker(lambda: self._configure(netns, plan, pair)))
        self._follower.know(pair.outer, mac)
        await steps.timed("agent", self._hooks.pod_added(handle, assignments, plan.host_ifname, restored=False))
        await steps.timed("advertised", self._hooks.advertised(assignments))
        log.info("pod added", extra={"fields": _fields(Attachment(handle, assignments, {}))})
        log.debug("ADD took", extra={"fields": steps.fields})
        return _result(request, plan, assignments, default)

    def _configure(self, netns: int, plan: Plan, pair: Pair) -> frozenset[Family]:
        try:
            return self._links.configure(netns, plan, pair)
        except OSError as error:
            raise CniError(Code.IO_FAILURE, "the pod's network cannot be set up", str(error)) from error

    async def _allocate(self, request: Request, mac: bytes) -> Sequence[Assignment]:
        attributes = {
            "netns": request.netns,
            "hostInterface": host_ifname(request.handle),
            "mac": mac.hex(":"),
            "args": dict(request.arguments),
            "createdAt": datetime.now(UTC).isoformat(),
        }

        async def allocate() -> Sequence[Assignment]:
            return await self._addresses.allocate(
                request.handle, addresses=request.addresses, attributes=attributes, pools=request.pools
            )

        try:
            async with asyncio.timeout(ALLOCATION_LIMIT):
                try:
                    assignments = await allocate()
                except AddressError:
                    if not len(self._remover):
                        raise
                    # What was deleted just now has been answered for, and its addresses come free in a moment.
                    await self._remover.drained()
                    assignments = await allocate()
        except TimeoutError:
            raise AddressError(f"the ledger gave none within {ALLOCATION_LIMIT:.0f} seconds") from None
        if not assignments:
            raise AddressError("the node has no block of addresses", retry=False)
        return assignments

    async def _check(self, request: Request, netns: int) -> None:
        handle = request.handle
        if request.previous is None:
            raise CniError(Code.INVALID_CONFIGURATION, "CHECK needs `prevResult` in the configuration")
        attachment = None if handle in self._remover else await self._addresses.lookup(handle)
        if attachment is None:
            raise CniError(Code.CHECK_FAILED, f"podroute knows nothing of {handle}")
        addresses = packed(attachment.assignments)

        if link := await self._worker(lambda: self._links.find(handle)):
            await self._follower.check(link.index, attachment, netns)
        found = missing_addresses(request.previous, attachment.assignments)
        found += await self._worker(lambda: verify.faults(self._links, netns, handle, addresses))
        if found:
            raise CniError(Code.CHECK_FAILED, f"{handle}: {found[0]}", "; ".join(found[1:]))

    async def _collect(self, request: Request) -> None:
        """GC: remove the network's attachments that are not listed, and links that no ledger knows of."""
        links = await self._worker(self._links.list)
        known = await self._known()
        failed: list[str] = []
        going: list[Handle] = []
        for attachment in await self._addresses.attachments():
            handle = attachment.handle
            if handle.network != request.network or (handle.container_id, handle.ifname) in request.valid:
                continue
            try:
                async with self._locks.hold(handle):
                    await self._remover.cut(handle)
                going.append(handle)
            except Exception as error:
                log.exception("GC failed", extra={"fields": {"pod": str(handle)}})
                failed.append(f"{handle}: {error}")
        for handle in going:
            await self._remover.finished(handle)
        for link in links:
            if link.name not in known:
                log.info("leftover interface removed", extra={"fields": {"interface": link.name}})
                await self._remove(link)
        if failed:
            raise CniError(Code.IO_FAILURE, f"{len(failed)} attachments could not be removed", "; ".join(failed))

    async def _known(self) -> set[str]:
        """Return the names of host ends that are somebody's. Whatever was seen before and is not among them is not.

        An ADD makes its link beside its ledger entry: those at work are asked for first, so that one that ends
        meanwhile is in the ledger.
        """
        adding = set(self._adding)
        return adding | {host_ifname(attachment.handle) for attachment in await self._addresses.attachments()}

    async def _remove(self, link: HostLink) -> None:
        await self._worker(lambda: self._links.remove(link))


class Steps:
    """How long the steps of a call took."""

    def __init__(self) -> None:
        self.fields: dict[str, float] = {}
        """Milliseconds, as the log shows them."""

    async def timed(self, name: str, work: Awaitable[T]) -> T:
        start = time.perf_counter()
        try:
            return await work
        finally:
            self.fields[f"{name}_ms"] = round((time.perf_counter() - start) * 1e3, 3)


def _result(request: Request, plan: Plan, assignments: Sequence[Assignment], default: Collection[Family]) -> Result:
    return Result(
        interfaces=(
            Interface(plan.host_ifname, HOST_MAC.hex(":"), plan.mtu),
            Interface(plan.handle.ifname, plan.mac.hex(":"), plan.mtu, request.netns),
        ),
        ips=[Ip(a.family, f"{a.address}/{BITS[a.family]}", show(GATEWAYS[a.family]), 1) for a in assignments],
        routes=[Route(_DEFAULT[family], show(GATEWAYS[family])) for family in sorted(default)],
        dns=request.dns,
    )


def _created(attachment: Attachment) -> datetime:
    return datetime.fromisoformat(str(attachment.attributes["createdAt"]))


def _mac(attachment: Attachment) -> bytes:
    return bytes.fromhex(str(attachment.attributes.get("mac", "")).replace(":", ""))


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
