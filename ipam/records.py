"""What the store holds: keys and the JSON behind them, each record with the version of its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, NamedTuple

from config import prefix
from config.model import BLOCK_SIZES
from config.prefix import BITS, Family
from ipam.errors import NewerStateError, StoreError
from ipam.pool import Pool, Span, Split, span
from ipam.store import Entry, Quiet, Range

ROOT = "/podroute/v1"
NODES = Range.below(f"{ROOT}/nodes/")
LIVE = Range.below(f"{ROOT}/live/")
USAGE = Range.below(f"{ROOT}/usage/")
POOLS = Range.below(f"{ROOT}/pools/")
BLOCKS = Range.below(f"{ROOT}/blocks/")
SUPERS = Range.below(f"{ROOT}/supers/")
OFFERS = Range.below(f"{ROOT}/offers/")
SCHEMA = 3
"""The newest schema of a record that we understand."""


class Loan(NamedTuple):
    """One address of a block that another node than its owner uses."""

    packed: bytes
    """4 or 16 octets."""
    node: str
    """Who uses it."""
    uuid: str


@dataclass(frozen=True, slots=True)
class Block:
    """A block and its owner: what the agent advertises."""

    family: Family
    prefix: bytes
    """Wire bytes (config.prefix)."""
    pool: str
    owner: str
    """Name of the node."""
    uuid: str
    """The owner's UUID: a name alone could be another machine's."""
    generation: int = 0
    """The store's revision that made the record: greater at every later claim of the same range."""
    claimed_at: str = ""
    """UTC, ISO 8601; for people."""
    loans: tuple[Loan, ...] = ()
    lender: str = ""
    """Of a single address that is on loan to us, a block of its own here: the name of the node that owns the block."""

    @property
    def cidr(self) -> str:
        return prefix.text(self.family, self.prefix)

    def on_loan(self, uuid: str) -> list[Block]:
        """Return the addresses that are on loan to a node, as its blocks."""
        return [
            Block(
                self.family,
                bytes((BITS[self.family],)) + loan.packed,
                self.pool,
                loan.node,
                loan.uuid,
                self.generation,
                self.claimed_at,
                lender=self.owner,
            )
            for loan in self.loans
            if loan.uuid == uuid
        ]


@dataclass(frozen=True, slots=True)
class Request:
    """What a borrower asks of a lender, and later the lender's answer in the same record."""

    borrower: str
    uuid: str
    lease: int
    """Of the borrower: the record goes with it."""
    family: Family
    pools: tuple[str, ...]
    """Names of the pools that would do; none: an address was returned, and nothing is asked for."""
    lent: str = ""
    """The address."""
    refused: str = ""
    """Why there is none."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    name: str
    uuid: str
    asn: int = 0
    router_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: Sequence[str] = ()
    """Where peers reach the node."""
    seen_at: str = ""
    """When the agent last started: UTC, ISO 8601; for people."""
    reclaim_after: int = 0
    """Seconds after the end of the node's lease from which on nobody can see its blocks any more, so that they may be
    given to others; 0: the node does not promise that."""
    cluster_id: str = ""
    """Of a route reflector (RFC 4456); empty: the node is none."""


@dataclass(frozen=True, slots=True)
class SuperBlock:
    """A part of a split pool, and the label's value whose nodes have their blocks in it."""

    family: Family
    prefix: bytes
    pool: str
    value: str

    @property
    def cidr(self) -> str:
        return prefix.text(self.family, self.prefix)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def node_key(name: str) -> str:
    return f"{ROOT}/nodes/{name}"


def live_key(name: str) -> str:
    """Return the key of a record that lives as long as the node does: it is bound to the node's lease."""
    return f"{ROOT}/live/{name}"


def usage_key(name: str) -> str:
    """Return the key of how many addresses a node uses."""
    return f"{ROOT}/usage/{name}"


def offer_key(name: str) -> str:
    """Return the key of how many addresses a node has to lend; it is bound to the node's lease."""
    return f"{ROOT}/offers/{name}"


def requests_to(lender: str) -> Range:
    """Return the range of what is asked of a lender."""
    return Range.below(f"{ROOT}/requests/{lender}/")


def request_key(lender: str, borrower: str, number: int) -> str:
    return f"{ROOT}/requests/{lender}/{borrower}-{number}"


def pool_key(name: str) -> str:
    return f"{ROOT}/pools/{name}"


def address_key(family: Family, address: int) -> str:
    """Return the least key that a block which begins at ``address`` can have."""
    return f"{ROOT}/blocks/{family}/{address:0{BITS[family] // 4}x}"


def block_key(family: Family, wire: bytes) -> str:
    """Return a block's key: its first and last address in hexadecimal of fixed width.

    Keys sort by address, so blocks that begin within a range of addresses are a range of keys.
    """
    first, last = span(family, wire)
    return f"{address_key(family, first)}-{last:0{BITS[family] // 4}x}"


def super_key(family: Family, wire: bytes) -> str:
    """Return a super-block's key, which is as a block's."""
    return block_key(family, wire).replace(BLOCKS.start, SUPERS.start, 1)


def inside(family: Family, wire: bytes, limit: int = 0) -> Range:
    """Return the range of the records of blocks that begin inside a prefix."""
    first, last = span(family, wire)
    return Range(address_key(family, first), address_key(family, last) + ".", limit)


def supers_inside(family: Family, wire: bytes) -> Range:
    """Return the range of the records of super-blocks that begin inside a prefix."""
    blocks = inside(family, wire)
    start, end = (key.replace(BLOCKS.start, SUPERS.start, 1) for key in (blocks.start, blocks.end))
    return Range(start, end)


def block_span(key: str) -> Span:
    """Return the first and last address of a block's key."""
    first, last = key.rpartition("/")[2].split("-")
    return int(first, 16), int(last, 16)


def blocks_from(pool: Pool, index: int, high: int, limit: int) -> Range:
    """Return the range of the records whose blocks begin in blocks [index, high) of a pool."""
    first = span(pool.family, pool.block(index))[0]
    last = span(pool.family, pool.block(high - 1))[1]
    # "." follows "-" in byte order
    return Range(address_key(pool.family, first), address_key(pool.family, last) + ".", limit)


def nothing_overlaps(family: Family, wire: bytes) -> list[Quiet]:
    """Return the conditions under which no record overlaps a block.

    One range holds every record that begins inside. Of blocks that begin before and reach over it only twelve are
    possible, as blocks are aligned and their sizes limited: each is asked for by its key.
    """
    first, last = span(family, wire)
    conditions = [Quiet(address_key(family, first), address_key(family, last) + ".")]
    for length in range(BLOCK_SIZES[family].start, wire[0]):
        around = Range.key(block_key(family, prefix.make(family, first, length)))
        conditions.append(Quiet(around.start, around.end))
    return conditions


def encode_node(node: NodeRecord) -> bytes:
    data: dict[str, Any] = {
        "name": node.name,
        "uuid": node.uuid,
        "as": node.asn,
        "routerId": node.router_id,
        "labels": dict(node.labels),
        "addresses": list(node.addresses),
        "seenAt": node.seen_at,
    }
    if node.cluster_id:
        data["clusterId"] = node.cluster_id
    if node.reclaim_after:
        data["reclaimAfter"] = node.reclaim_after
    return _encode(data)


def decode_node(entry: Entry) -> NodeRecord:
    data = _decode(entry)
    try:
        for address in data["addresses"]:
            ip_address(address)
        return NodeRecord(
            data["name"],
            data["uuid"],
            data["as"],
            data["routerId"],
            data["labels"],
            tuple(data["addresses"]),
            data["seenAt"],
            data.get("reclaimAfter", 0),
            data.get("clusterId", ""),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(entry) from error


def encode_pool(pool: Pool, seeded_by: str) -> bytes:
    data = {"cidr": pool.cidr, "blockSize": pool.block_size, "nodes": pool.nodes, "seededBy": seeded_by}
    extras = {
        "disabled": pool.disabled,
        "manual": pool.manual,
        "notAdvertised": pool.not_advertised,
        "reservations": [prefix.text(pool.family, one) for one in pool.reservations],
    }
    # An agent that does not know these must not use the pool
    used: dict[str, Any] = {key: value for key, value in extras.items() if value}
    if pool.split is not None:
        split = {"label": pool.split.label, "size": pool.split.size, "aggregate": pool.split.aggregate}
        return _encode(data | used | {"splitBy": split}, schema=3)
    return _encode(data | used, schema=2 if used else 1)


def decode_pool(entry: Entry) -> tuple[Pool, str]:
    """Return a pool and the name of the node that seeded it."""
    data = _decode(entry)
    try:
        name = entry.key.rpartition("/")[2]
        pool = Pool.parse(
            name,
            data["cidr"],
            data["blockSize"],
            data["nodes"],
            disabled=data.get("disabled", False),
            manual=data.get("manual", False),
            not_advertised=data.get("notAdvertised", False),
            reservations=data.get("reservations", ()),
            split=Split(**data["splitBy"]) if "splitBy" in data else None,
        )
        return pool, data["seededBy"]
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(entry) from error


def encode_request(request: Request) -> bytes:
    return _encode(asdict(request), schema=3)


def decode_request(entry: Entry) -> Request:
    data = _decode(entry)
    del data["schema"]
    try:
        return Request(**{**data, "pools": tuple(data["pools"])})
    except (KeyError, TypeError) as error:
        raise _foreign(entry) from error


def encode_block(block: Block) -> bytes:
    data: dict[str, Any] = {
        "pool": block.pool,
        "owner": block.owner,
        "uuid": block.uuid,
        "claimedAt": block.claimed_at,
    }
    if not block.loans:
        return _encode(data)
    data["loans"] = {prefix.address_text(loan.packed): {"node": loan.node, "uuid": loan.uuid} for loan in block.loans}
    # An agent that does not know of loans must not own the block: it would hand the addresses out
    return _encode(data, schema=3)


def decode_block(entry: Entry) -> Block:
    data = _decode(entry)
    try:
        family: Family = 4 if entry.key.startswith(f"{ROOT}/blocks/4/") else 6
        first, last = block_span(entry.key)
        wire = prefix.make(family, first, BITS[family] - (last - first).bit_length())
        loans = tuple(
            Loan(prefix.of_address(address)[1][1:], loan["node"], loan["uuid"])
            for address, loan in data.get("loans", {}).items()
        )
        return Block(family, wire, data["pool"], data["owner"], data["uuid"], entry.created, data["claimedAt"], loans)
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(entry) from error


def encode_super(one: SuperBlock) -> bytes:
    return _encode({"pool": one.pool, "value": one.value}, schema=3)


def decode_super(entry: Entry) -> SuperBlock:
    data = _decode(entry)
    try:
        family: Family = 4 if entry.key.startswith(f"{ROOT}/supers/4/") else 6
        first, last = block_span(entry.key)
        wire = prefix.make(family, first, BITS[family] - (last - first).bit_length())
        return SuperBlock(family, wire, data["pool"], data["value"])
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(entry) from error


def _encode(data: dict[str, Any], *, schema: int = 1) -> bytes:
    return json.dumps({"schema": schema, **data}, separators=(",", ":")).encode()


def _decode(entry: Entry) -> dict[str, Any]:
    try:
        data = json.loads(entry.value)
        schema = data["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise _foreign(entry) from error
    if not isinstance(schema, int) or schema > SCHEMA:
        raise NewerStateError(
            f"record {entry.key} was written by a newer podroute (schema {schema}, this one knows {SCHEMA}): "
            "install that version or a newer one on this node"
        )
    return dict(data)


def _foreign(entry: Entry) -> StoreError:
    return StoreError(f"record {entry.key} is none that podroute wrote: {entry.value[:80]!r}; remove it from the store")
