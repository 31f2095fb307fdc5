"""What can go wrong with addresses, each with a code that stays and a text that says what to do."""

from __future__ import annotations

from typing import ClassVar


class IpamError(Exception):
    """Base of all; ``code`` is stable, for programs and for the table of errors in the documentation."""

    code: ClassVar[str] = "ipam"
    retry: ClassVar[bool] = False
    """Whether the same request may succeed later without anybody changing anything by hand."""


class NotRunningError(IpamError):
    """The agent is starting or stopping."""

    code = "not-running"
    retry = True


class NoPoolError(IpamError):
    """No pool of the wanted family or name applies to this node."""

    code = "no-pool"


class NoLabelError(NoPoolError):
    """The pools are split by a node label that this node lacks."""

    code = "no-label"


class PoolExhaustedError(IpamError):
    """Every block is claimed, and every address of this node's own blocks is in use."""

    code = "pool-exhausted"
    retry = True


class AddressNotInPoolError(IpamError):
    code = "address-not-in-pool"


class AddressInUseError(IpamError):
    code = "address-in-use"


class PoolConflictError(IpamError):
    """A pool of the node's file contradicts one in the store."""

    code = "pool-conflict"


class PoolChangedError(PoolConflictError):
    """A pool is not any more what the agent took it for; it reads it anew."""

    code = "pool-changed"
    retry = True


class PoolInUseError(IpamError):
    """A pool cannot be changed while it has blocks."""

    code = "pool-in-use"


class NoSuchPoolError(IpamError):
    """The store has no pool of that name."""

    code = "no-such-pool"


class NoSuchNodeError(IpamError):
    """The store has no node of that name."""

    code = "no-such-node"


class NodeAliveError(IpamError):
    """A node whose blocks were to be taken away gave a sign of life."""

    code = "node-alive"


class AddressHeldError(IpamError):
    """An address that was to be released is in use."""

    code = "address-held"


class FencedError(IpamError):
    """The store has not been heard of for so long that this node's blocks may soon be another's."""

    code = "fenced"
    retry = True


class BlockLimitError(IpamError):
    """This node owns as many blocks as it may."""

    code = "block-limit"


class NameTakenError(IpamError):
    """Another node, with another UUID, has this node's name."""

    code = "name-taken"


class IdentityError(IpamError):
    """The state directory belongs to another node, or its identity cannot be read."""

    code = "identity"


class StateInUseError(IpamError):
    """Another agent runs on the state directory."""

    code = "state-in-use"


class DatabaseError(IpamError):
    """A SQLite file of ours cannot be used; the subclasses say which."""

    code = "database"


class StoreError(DatabaseError):
    """The shared store cannot be used until somebody mends it."""

    code = "store-failed"


class StoreUnavailableError(StoreError):
    """The shared store does not answer now."""

    code = "store-unavailable"
    retry = True


class StoreDeniedError(StoreError):
    """The shared store does not let us in."""

    code = "store-denied"


class LeaseExpiredError(StoreError):
    """A record was to be bound to a lease that has ended."""

    code = "lease-expired"
    retry = True


class LedgerError(DatabaseError):
    """The node's own ledger cannot be read or written."""

    code = "ledger-failed"


class LedgerCorruptError(LedgerError):
    code = "ledger-corrupt"


class StoreCorruptError(StoreError):
    code = "store-corrupt"


class NewerStateError(IpamError):
    """State was written by a newer podroute; this one must not touch it."""

    code = "newer-state"
