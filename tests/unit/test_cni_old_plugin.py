"""An older plugin works with a newer agent: requests of protocol version 1, byte for byte as they were then."""

from __future__ import annotations

from cni.request import parse
from cni.wire import Answer, decode, encode_answer

ADD = (
    b"PRCN\x00\x01\x00\x03\x00\x00\x00\xa8\x00\x00\x00aCNI_COMMAND=ADD\x00CNI_CONTAINERID=c1\x00CNI_IFNAME=eth0\x00"
    b"CNI_PATH=/opt/cni/bin\x00CNI_NETNS=/run/netns/old\x00\x00\x00:"
    b'{"cniVersion":"1.0.0","name":"podroute","type":"podroute"}\x00\x00\x00\x010'
)
DEL = (
    b"PRCN\x00\x01\x00\x03\x00\x00\x00\x8f\x00\x00\x00HCNI_COMMAND=DEL\x00CNI_CONTAINERID=c1\x00CNI_IFNAME=eth0\x00"
    b"CNI_PATH=/opt/cni/bin\x00\x00\x00:"
    b'{"cniVersion":"1.0.0","name":"podroute","type":"podroute"}\x00\x00\x00\x010'
)
ANSWER = b'PRCN\x00\x01\x00\x01\x00\x00\x00\x0c{"code": 11}'


def test_requests_are_understood() -> None:
    add, delete = parse(decode(ADD, limit=1 << 20)), parse(decode(DEL, limit=1 << 20))
    assert (add.verb, add.version, add.netns) == ("ADD", "1.0.0", "/run/netns/old")
    assert (delete.verb, delete.handle) == ("DEL", add.handle)
    assert str(add.handle) == "podroute/c1/eth0"


def test_answers_are_as_that_plugin_reads_them() -> None:
    assert encode_answer(Answer(1, b'{"code": 11}')) == ANSWER


def test_a_newer_plugin_may_send_more_fields() -> None:
    longer = bytearray(DEL + b"\x00\x00\x00\x02hi")
    longer[6:8] = (4).to_bytes(2, "big")
    longer[8:12] = (len(longer) - 12).to_bytes(4, "big")
    assert parse(decode(bytes(longer), limit=1 << 20)).verb == "DEL"
