"""What cni/ needs of the rest of the agent, as shapes: it imports no other room, the agent hands these in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from config.prefix import Family


class Handle(NamedTuple):
    """Names one attachment of one container (CNI 1.1.0: unique per network, container and interface)."""

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.network}/{self.container_id}/{self.ifname}"


class Assignment(Protocol):
    """One address of an attachment."""

    @property
    def family(self) -> Family: ...

    @property
    def address(self) -> str: ...

    @property
    def prefix(self) -> bytes:
        """The host prefix, as wire bytes (``config.prefix``)."""

    @property
    def block(self) -> bytes:
        """The block of the node's that it lies in, wire bytes."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """What the ledger holds of a handle."""

    handle: Handle
    assignments: Sequence[Assignment]
    attributes: Mapping[str, Any]
    """As given to ``allocate``: ``netns``, ``hostInterface``, ``mac``, ``args``, ``createdAt`` (ISO 8601, UTC); for
    addresses that another plugin wired ``plugin`` in place of ``hostInterface`` and ``mac``; ``reserved`` for those
    that no pod may have."""


def host_ifname_of(attachment: Attachment) -> str:
    """Return the pod's host end; empty where podroute gave addresses only, and another plugin wired them."""
    return str(attachment.attributes.get("hostInterface", ""))


class AddressError(Exception):
    """The ledger cannot do what was asked: the text says why; ``retry`` tells whether a later attempt may succeed."""

    def __init__(self, text: str, *, retry: bool = True) -> None:
        super().__init__(text)
        self.retry = retry


class Addresses(Protocol):
    """The node's address ledger. What ``allocate`` and ``release`` did is durable when they return.

    All raise AddressError.
    """

    async def allocate(
        self,
        handle: Handle,
        *,
        addresses: Sequence[str],
        attributes: Mapping[str, Any],
        pools: Sequence[str] = (),
        families: Collection[Family] | None = None,
    ) -> Sequence[Assignment]:
        """Give a handle its addresses: ``addresses``, and one of each family that is not among them.

        ``pools``: names to choose from; without any, all that serve the node. ``families``: None stands for those that
        the pools have; with none at all there are just ``addresses``. For a handle that has addresses
        already: the same ones, with the new attributes.
        """

    async def release(self, handle: Handle) -> Sequence[Assignment]:
        """Free a handle's addresses and return them; none for an unknown handle."""

    async def lookup(self, handle: Handle) -> Attachment | None: ...

    async def attachments(self) -> Sequence[Attachment]:
        """Return all that the ledger holds."""


class Hooks(Protocol):
    """What the agent is told and asked."""

    async def pod_added(
        self, handle: Handle, assignments: Sequence[Assignment], host_ifname: str, *, restored: bool
    ) -> None:
        """The host routes of a pod's addresses point to ``host_ifname``. ``restored``: found at the agent's start."""

    async def pod_removed(self, handle: Handle, assignments: Sequence[Assignment], host_ifname: str) -> None:
        """The pod's host routes are about to go."""

    def bridged(self, assignments: Sequence[Assignment]) -> None:
        """Another plugin has put the blocks of these addresses on a subnet: the routes over them are its own."""

    async def advertised(self, assignments: Sequence[Assignment]) -> None:
        """Return once the blocks of a new pod's addresses are advertised, or have had their time."""

    def ready(self, pools: Sequence[str]) -> tuple[int, str] | None:
        """Return None where ADD would succeed, else what STATUS answers: 50 or 51, and why.

        ``pools``: those that the network names; none: all that serve the node.
        """

    def uplinks(self) -> Sequence[str]:
        """Return addresses whose way out bounds a pod's MTU, the BGP peers': ``"10.1.1.1"``, ``"fe80::1%eth0"``."""
