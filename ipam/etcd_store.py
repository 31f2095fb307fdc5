"""The store as an etcd v3 cluster."""

from __future__ import annotations

import asyncio
import logging
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Self

from config.password import read_password
from config.store import Store as Settings
from ipam.errors import LeaseExpiredError, StoreError, StoreUnavailableError
from ipam.etcd_gateway import Gateway, Json, NotFoundError
from ipam.store import (
    Change,
    Changes,
    Choice,
    Chosen,
    Condition,
    Differs,
    Entry,
    Holds,
    Listing,
    Outcome,
    Put,
    Range,
    Unchanged,
    Write,
)

log = logging.getLogger("podroute.ipam")

_RETRY = 0.2
_LONGEST_RETRY = 5.0
"""Seconds between attempts to watch again."""


class EtcdStore:
    """Implements ipam.store.Store. Opening it asks nothing of the cluster, so it may be away then."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the store of a configuration. Raises StoreError where a file of it cannot be used."""
        tls = None
        if settings.secured:
            try:
                tls = ssl.create_default_context(cafile=settings.ca)
                if settings.certificate is not None:
                    tls.load_cert_chain(settings.certificate, settings.key)
            except OSError as error:  # ssl.SSLError is one
                files = ", ".join(path for path in (settings.ca, settings.certificate, settings.key) if path)
                raise StoreError(
                    f"store {settings.url}: {files} cannot be used for TLS ({error.strerror or error}): must be PEM "
                    "files that the agent may read, the key that of the certificate"
                ) from error
        password = ""
        if settings.password_file is not None:
            try:
                password = read_password(settings.password_file).decode()
            except ValueError as error:
                raise StoreError(f"store {settings.url}: passwordFile {error}") from error
        return cls(Gateway(settings.url, settings.place.endpoints, tls=tls, user=settings.user, password=password))

    @property
    def url(self) -> str:
        return self._gateway.url

    @property
    def calls(self) -> int:
        """Round trips so far."""
        return self._gateway.calls

    async def open(self) -> None:
        self._gateway.open()

    async def close(self) -> None:
        await self._gateway.close()

    async def get(self, key: str) -> Entry | None:
        return next(iter((await self.list(Range.key(key))).entries), None)

    async def list(self, wanted: Range) -> Listing:
        answer = await self._gateway.call("/kv/range", _range(wanted), repeatable=True)
        return Listing(_entries(answer), _revision(answer))

    async def transact(
        self,
        conditions: Sequence[Condition],
        writes: Sequence[Write],
        otherwise: Sequence[Range] = (),
        choices: Sequence[Choice] = (),
    ) -> Outcome:
        body = {
            "compare": [_compare(condition) for condition in conditions],
            "success": [*map(_operation, writes), *map(_alternatives, choices)],
            "failure": [*map(_reading, otherwise)],
        }
        try:
            answer = await self._gateway.call("/kv/txn", body, repeatable=False)
        except NotFoundError as error:
            raise LeaseExpiredError("the lease of a record has expired: it must be granted anew") from error
        responses = answer.get("responses", [])
        if not answer.get("succeeded"):
            return Outcome(False, _revision(answer), _ranges_read(responses))
        chosen = tuple(_chosen(response["response_txn"]) for response in responses[len(writes) :])
        return Outcome(True, _revision(answer), chosen=chosen)

    async def watch(self, wanted: Range, since: int) -> AsyncGenerator[Changes, None]:
        pause = _RETRY
        while True:
            try:
                async with aclosing(self._changes(wanted, since)) as changes:
                    async for change in changes:
                        pause, since = _RETRY, change.revision
                        yield change
            except StoreUnavailableError as error:
                log.debug("watch interrupted", extra={"fields": {"why": str(error)}})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_RETRY)

    async def _changes(self, wanted: Range, since: int) -> AsyncGenerator[Changes, None]:
        """Yield changes as long as one member tells them."""
        request = {"key": _b64(wanted.start), "range_end": _b64(wanted.end), "start_revision": str(since + 1)}
        async with aclosing(self._gateway.stream("/watch", {"create_request": request})) as messages:
            async for message in messages:
                if message.get("created") and _revision(message) < since:
                    yield await self._all(wanted)  # the cluster has been set up anew
                    return
                if message.get("canceled"):
                    if not int(message.get("compact_revision", 0)):
                        raise StoreError(f"store {self.url} ends a watch: {message.get('cancel_reason', 'no reason')}")
                    yield await self._all(wanted)
                    return
                if events := message.get("events"):
                    found = tuple(_change(event) for event in events)
                    yield Changes(found, max(int(event["kv"]["mod_revision"]) for event in events), False)

    async def _all(self, wanted: Range) -> Changes:
        listing = await self.list(wanted)
        return Changes(tuple(Change(entry.key, entry) for entry in listing.entries), listing.revision, True)

    async def grant(self, seconds: int) -> int:
        return int((await self._gateway.call("/lease/grant", {"TTL": str(seconds)}, repeatable=True))["ID"])

    async def keep_alive(self, lease: int) -> bool:
        answer = await self._gateway.call("/lease/keepalive", {"ID": str(lease)}, repeatable=True)
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    async def revoke(self, lease: int) -> None:
        try:
            await self._gateway.call("/lease/revoke", {"ID": str(lease)}, repeatable=True)
        except NotFoundError:
            return


def _b64(text: str | bytes) -> str:
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def _range(wanted: Range) -> Json:
    return {"key": _b64(wanted.start), "range_end": _b64(wanted.end), "limit": str(wanted.limit)}


def _compare(condition: Condition) -> Json:
    """Return an etcd compare; one over a range holds for every key in it, and for "none" where it is empty."""
    if isinstance(condition, Holds | Differs):  # neither holds where there is no record
        result = "EQUAL" if isinstance(condition, Holds) else "NOT_EQUAL"
        return {"target": "VALUE", "key": _b64(condition.key), "result": result, "value": _b64(condition.value)}
    compared: dict[str, Any] = {"target": "MOD"}
    if isinstance(condition, Unchanged):
        return compared | {
            "key": _b64(condition.key),
            "result": "EQUAL",
            "mod_revision": str(condition.modified),
        }
    return compared | {
        "key": _b64(condition.start),
        "range_end": _b64(condition.end),
        "result": "LESS",
        "mod_revision": str(condition.since + 1),
    }


def _operation(write: Write) -> Json:
    if isinstance(write, Put):
        return {"request_put": {"key": _b64(write.key), "value": _b64(write.value), "lease": str(write.lease)}}
    return {"request_delete_range": {"key": _b64(write.key)}}


def _reading(wanted: Range) -> Json:
    return {"request_range": _range(wanted)}


def _alternatives(choice: Choice) -> Json:
    """Return a transaction whose failure is the next attempt's, and so on: etcd knows transactions inside of others."""
    rest = [*map(_reading, choice.otherwise)]
    for attempt in reversed(choice.attempts):
        compare = [_compare(condition) for condition in attempt.conditions]
        rest = [{"request_txn": {"compare": compare, "success": [*map(_operation, attempt.writes)], "failure": rest}}]
    return rest[0]


def _chosen(answer: Json) -> Chosen:
    """Return what became of a choice, from the answer to its first attempt."""
    number = 0
    while not answer.get("succeeded"):
        responses = answer.get("responses", [])
        if not responses or "response_txn" not in responses[0]:
            return Chosen(None, _ranges_read(responses))
        answer, number = responses[0]["response_txn"], number + 1
    return Chosen(number)


def _ranges_read(responses: Sequence[Json]) -> tuple[tuple[Entry, ...], ...]:
    return tuple(_entries(response["response_range"]) for response in responses)


def _entries(answer: Json) -> tuple[Entry, ...]:
    return tuple(_entry(kv) for kv in answer.get("kvs", ()))


def _entry(kv: Json) -> Entry:
    return Entry(
        b64decode(kv["key"]).decode(),
        b64decode(kv.get("value", "")),
        int(kv["create_revision"]),
        int(kv["mod_revision"]),
    )


def _change(event: Json) -> Change:
    key = b64decode(event["kv"]["key"]).decode()
    return Change(key, None if event.get("type") == "DELETE" else _entry(event["kv"]))


def _revision(answer: Json) -> int:
    return int(answer.get("header", {}).get("revision", 0))
