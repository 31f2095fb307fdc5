"""The calls of the Container Runtime Interface v1 that a kubelet makes for a pod's network, over gRPC.

Messages are encoded by hand: fields in and out by their numbers, as `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`
numbers them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

Value = str | int | Mapping[int, "Value"]
Fields = dict[int, list[bytes | int]]
_SERVICE = "/runtime.v1.RuntimeService/"
_VARINT, _BYTES = 0, 2


class CriError(Exception):
    """The runtime refused; the text is its own."""


@dataclass(frozen=True)
class Sandbox:
    """What a kubelet tells of a pod."""

    name: str
    namespace: str = "default"
    uid: str = ""
    log_directory: str = "/run/pod-logs"

    def config(self) -> dict[int, Value]:
        """PodSandboxConfig: metadata (name, uid, namespace, attempt), hostname, log_directory, linux."""
        metadata: dict[int, Value] = {1: self.name, 2: self.uid or f"uid-{self.name}", 3: self.namespace, 4: 0}
        return {1: metadata, 2: self.name, 3: f"{self.log_directory}/{self.name}", 8: {}}


@dataclass(frozen=True)
class Status:
    """PodSandboxStatus with the part of ``info`` that tells of process and namespaces."""

    addresses: list[str]
    ready: bool
    info: str


class Cri:
    """A client of one runtime: ``async with Cri(socket) as cri``."""

    def __init__(self, socket: Path) -> None:
        self._target = f"unix:{socket}"

    async def __aenter__(self) -> Cri:
        self._channel = grpc.aio.insecure_channel(self._target, options=[("grpc.default_authority", "localhost")])
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._channel.close()

    async def run_pod_sandbox(self, sandbox: Sandbox) -> str:
        answer = await self._call("RunPodSandbox", {1: sandbox.config()})
        return text(answer, 1)

    async def stop_pod_sandbox(self, sandbox: str) -> None:
        await self._call("StopPodSandbox", {1: sandbox})

    async def remove_pod_sandbox(self, sandbox: str) -> None:
        await self._call("RemovePodSandbox", {1: sandbox})

    async def pod_sandbox_status(self, sandbox: str) -> Status:
        answer = await self._call("PodSandboxStatus", {1: sandbox, 2: 1})
        status = message(answer, 1)
        network = message(status, 5)
        more = [text(decode(entry), 1) for entry in network.get(2, []) if isinstance(entry, bytes)]
        entries = [decode(entry) for entry in answer.get(2, []) if isinstance(entry, bytes)]
        info = {text(entry, 1): text(entry, 2) for entry in entries}
        return Status([text(network, 1), *more], not status.get(3), info["info"])

    async def list_pod_sandboxes(self) -> list[str]:
        answer = await self._call("ListPodSandbox", {})
        return [text(decode(item), 1) for item in answer.get(1, []) if isinstance(item, bytes)]

    async def conditions(self) -> dict[str, bool]:
        """Return the runtime's conditions: ``{"RuntimeReady": True, "NetworkReady": True}``."""
        status = message(await self._call("Status", {}), 1)
        found = [decode(item) for item in status.get(1, []) if isinstance(item, bytes)]
        return {text(condition, 1): bool(condition.get(2)) for condition in found}

    async def _call(self, method: str, request: Mapping[int, Value]) -> Fields:
        call = self._channel.unary_unary(_SERVICE + method, request_serializer=encode, response_deserializer=decode)
        try:
            answer: Fields = await call(request, timeout=60, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise CriError(f"{method}: {error.details()}") from None
        return answer


def encode(fields: Mapping[int, Value]) -> bytes:
    """Return a protobuf message: texts and messages as length and octets, numbers as varints."""
    out = bytearray()
    for number, value in fields.items():
        if isinstance(value, int):
            out += _varint(number << 3 | _VARINT) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else encode(value)
            out += _varint(number << 3 | _BYTES) + _varint(len(data)) + data
    return bytes(out)


def decode(data: bytes) -> Fields:
    """Return the fields of a protobuf message by their numbers, texts and messages as bytes."""
    fields: Fields = {}
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, at = _read_varint(data, at)
        value: bytes | int = number
        if key & 7 == _BYTES:
            value, at = data[at : at + number], at + number
        elif key & 7 != _VARINT:
            raise ValueError(f"field {key >> 3} has wire type {key & 7}")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def text(fields: Fields, number: int) -> str:
    (value,) = fields.get(number, [b""])
    assert isinstance(value, bytes)
    return value.decode()


def message(fields: Fields, number: int) -> Fields:
    (value,) = fields.get(number, [b""])
    assert isinstance(value, bytes)
    return decode(value)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        octet = data[at]
        number |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not octet & 0x80:
            return number, at
