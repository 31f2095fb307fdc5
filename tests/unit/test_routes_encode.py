"""What goes to the kernel and comes from it, octet by octet."""

from __future__ import annotations

import errno
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.prefix import BITS, Family, make, parse
from routes.batch import Batch, Part
from routes.encode import (
    ADD,
    MOST,
    REPLACE,
    Placement,
    delete_nexthop,
    delete_shape,
    new_group,
    new_nexthop,
    numbered,
    route_batch,
    via_device,
    via_nexthop,
    via_paths,
    write_shape,
)
from routes.messages import (
    AF,
    RTA_DST,
    RTA_PRIORITY,
    RTA_TABLE,
    RTMSG,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    LinkEvent,
    NexthopEvent,
    Path,
    Resilience,
    Route,
    RouteEvent,
    decode,
    decode_nexthop,
    decode_route,
)
from routes.netlink import NLMSG_ERROR, RTM_NEWROUTE, attribute, message, messages, refusal
from routes.shard import Flight
from routes.table import Table

PLACE = Placement(4, 254, 20, 201)
GATEWAY4, GATEWAY6 = bytes([10, 0, 0, 2]), bytes([0xFE, 0x80, *[0] * 13, 1])


def only(data: bytes | bytearray) -> Route:
    data = bytes(data)
    (msg,) = messages(data)
    route = decode_route(data, msg)
    assert route is not None
    return route


def test_a_route_octet_by_octet() -> None:
    shape = write_shape(PLACE, ADD, RTN_UNICAST, 0, via_nexthop(0x01020304))
    assert route_batch(shape, [bytes.fromhex("18c00002")]).hex(" ", 4) == (
        "34000000 18000106 00000000 00000000 "  # 52 octets, RTM_NEWROUTE, REQUEST|CREATE|EXCL, sequence, port
        "02180000 fec90001 00000000 "  # AF_INET, /24; table 254, protocol 201, scope, unicast; flags
        "08001e00 04030201 "  # RTA_NH_ID
        "08000600 14000000 "  # RTA_PRIORITY 20
        "08000100 c0000200"  # RTA_DST
    )


@pytest.mark.parametrize("family", [4, 6])
@given(number=st.integers(0, 2**128 - 1), data=st.data())
def test_any_prefix_comes_back(family: Family, number: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, BITS[family]))
    prefix = make(family, number >> (128 - BITS[family]), length)
    place = Placement(family, data.draw(st.sampled_from([254, 1000])), data.draw(st.sampled_from([0, 20])), 201)
    shape = write_shape(place, REPLACE, RTN_UNICAST, 0, via_nexthop(7))
    assert only(route_batch(shape, [prefix])) == Route(
        family, place.table, 201, RTN_UNICAST, prefix, place.metric, 7, ()
    )
    deletion = only(route_batch(delete_shape(place), [prefix]))
    assert (deletion.prefix, deletion.metric, deletion.protocol) == (prefix, place.metric, 201)


@pytest.mark.parametrize("family", [4, 6])
@given(data=st.data())
def test_prefixes_of_any_lengths_go_together(family: Family, data: st.DataObject) -> None:
    lengths = data.draw(st.sampled_from([st.just(24), st.integers(17, 24), st.integers(0, BITS[family])]))
    drawn = data.draw(st.lists(st.tuples(st.integers(0, 2**32 - 1), lengths), min_size=1, max_size=20))
    prefixes = [make(family, number << BITS[family] - 32, length) for number, length in drawn]
    first = data.draw(st.sampled_from([0, 1, 255, 256, MOST - len(prefixes)]))
    shape = write_shape(Placement(family, 254, 20, 201), ADD, RTN_UNICAST, 0, via_device(3))
    buffer = bytes(route_batch(shape, prefixes, first))
    assert len(buffer) == len(prefixes) * len(shape)
    found = list(messages(buffer))
    assert [msg.sequence for msg in found] == list(range(first, first + len(prefixes)))
    assert [decode_route(buffer, msg).prefix for msg in found] == prefixes  # type: ignore[union-attr]


def test_requests_are_numbered_by_place() -> None:
    requests = numbered([delete_nexthop(9), delete_nexthop(10)])
    assert [(msg.sequence, decode_nexthop(requests, msg).id) for msg in messages(requests)] == [(0, 9), (1, 10)]


def test_a_batch_is_cut_into_sends() -> None:
    shard = Table(PLACE, shards=1, on_result=print, on_released=print).shards[0]
    flight = Flight(shard, {})
    prefixes = [make(4, number << 12, 20 + number % 2) for number in range(2 * MOST + 10)]
    cuts = [0, 1, 500, 500, MOST, MOST + 7, 2 * MOST + 9, len(prefixes)]
    batch = Batch()
    for number, (start, stop) in enumerate(pairwise(cuts)):
        shape = write_shape(PLACE, ADD, RTN_UNICAST, 0, via_nexthop(number)) if number % 3 else delete_shape(PLACE)
        batch.add(Part(flight, None, shape, prefixes[start:stop]))
    assert batch.size == len(prefixes)
    seen: list[bytes] = []
    for start, buffers in batch.sends():
        assert all(len({msg.end - msg.start for msg in messages(bytes(each))}) == 1 for each in buffers)
        buffer = b"".join(buffers)
        assert start == len(seen)
        found = list(messages(buffer))
        assert [msg.sequence for msg in found] == list(range(min(MOST, batch.size - start)))
        seen += [decode_route(buffer, msg).prefix for msg in found]  # type: ignore[union-attr]
    assert seen == prefixes
    assert [batch.at(place)[1] for place in range(batch.size)] == prefixes
    assert all(batch.at(place)[0].prefixes for place in (0, 1, 499, 500, MOST, len(prefixes) - 1))


@pytest.mark.parametrize(
    ("family", "paths"),
    [
        (4, (Path(GATEWAY4, 3),)),
        (4, (Path(GATEWAY6, 3),)),
        (6, (Path(GATEWAY6, 3),)),
        (4, (Path(GATEWAY4, 3, 1), Path(GATEWAY4, 4, 255))),
        (4, (Path(GATEWAY4, 3), Path(GATEWAY6, 4))),
        (6, tuple(Path(GATEWAY6, n) for n in range(1, 65))),
        (4, (Path(GATEWAY4, 3, onlink=True),)),
        (6, (Path(GATEWAY6, 3, onlink=True),)),
        (4, (Path(GATEWAY4, 3, onlink=True), Path(GATEWAY6, 4, 7))),
    ],
)
def test_gateways_without_objects(family: Family, paths: tuple[Path, ...]) -> None:
    place = Placement(family, 254, 20, 201)
    shape = write_shape(place, ADD, RTN_UNICAST, 0, via_paths(family, paths))
    assert only(route_batch(shape, [b"\0"])).paths == paths


def test_unreachable() -> None:
    route = only(route_batch(write_shape(PLACE, ADD, RTN_UNREACHABLE, 0, b""), [parse("10.64.0.0/26")[1]]))
    assert (route.kind, route.paths, route.nexthop) == (RTN_UNREACHABLE, (), 0)


def test_nexthop_objects() -> None:
    data = new_nexthop(5, 201, GATEWAY6, 3) + new_group(6, 201, [(5, 1), (7, 256)], replace=True) + delete_nexthop(5)
    one, group, gone = (decode(data, msg) for msg in messages(data))
    assert isinstance(one, NexthopEvent)
    assert (one.nexthop.id, one.nexthop.gateway, one.nexthop.ifindex, one.gone) == (5, GATEWAY6, 3, False)
    assert isinstance(group, NexthopEvent)
    assert (group.nexthop.members, group.nexthop.protocol) == (((5, 1), (7, 256)), 201)
    assert isinstance(gone, NexthopEvent)
    assert (gone.nexthop.id, gone.gone) == (5, True)


def test_an_on_link_next_hop_octet_by_octet() -> None:
    request = new_nexthop(5, 201, GATEWAY4, 3, onlink=True)
    assert request.hex(" ", 4) == (
        "30000000 68000106 00000000 00000000 "  # 48 octets, RTM_NEWNEXTHOP, REQUEST|CREATE|EXCL, sequence, port
        "0200c900 04000000 "  # AF_INET, scope, protocol 201; nhm_flags: RTNH_F_ONLINK
        "08000100 05000000 08000500 03000000 08000600 0a000002"  # NHA_ID, NHA_OIF, NHA_GATEWAY
    )
    assert [decode_nexthop(request, msg).onlink for msg in messages(request)] == [True]
    assert via_paths(4, [Path(GATEWAY4, 3, onlink=True)]).hex(" ", 4) == (
        "14000900 10000400 03000000 "  # RTA_MULTIPATH; rtnh_len 16, rtnh_flags RTNH_F_ONLINK, rtnh_hops 0; interface 3
        "08000500 0a000002"  # RTA_GATEWAY
    )


def test_a_resilient_group_octet_by_octet() -> None:
    request = new_group(6, 201, [(5, 1), (7, 3)], resilience=Resilience(128, 12000, 500))
    assert request.hex(" ", 4) == (
        "58000000 68000106 00000000 00000000 "  # 88 octets, RTM_NEWNEXTHOP, REQUEST|CREATE|EXCL, sequence, port
        "0000c900 00000000 08000100 06000000 "  # AF_UNSPEC, protocol 201; NHA_ID
        "14000200 05000000 00000000 07000000 02000000 "  # NHA_GROUP: id, weight - 1
        "06000300 01000000 "  # NHA_GROUP_TYPE: NEXTHOP_GRP_TYPE_RES
        "1c000c80 06000100 80000000 08000200 e02e0000 08000300 f4010000"  # NHA_RES_GROUP: buckets, idle, unbalanced
    )
    (msg,) = messages(request)
    found = decode_nexthop(request, msg)
    assert (found.members, found.resilience) == (((5, 1), (7, 3)), Resilience(128, 12000, 500))
    plain = new_group(6, 201, [(5, 1)])
    assert [decode_nexthop(plain, msg).resilience for msg in messages(plain)] == [None]


def test_the_flag_of_a_single_path_is_that_of_its_route() -> None:
    way = attribute(5, GATEWAY4) + attribute(4, struct.pack("=I", 3))
    for flags, onlink in ((0, False), (0x4, True), (0x10, False), (0x14, True)):  # 0x10: RTNH_F_LINKDOWN
        data = message(24, 0, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 201, 0, 1, flags) + way)
        assert only(data).paths == (Path(GATEWAY4, 3, onlink=onlink),)


def test_refusals() -> None:
    request = message(24, 0, bytes(12), sequence=77)
    words = attribute(1, b"Nexthop has invalid gateway\0")
    body = struct.pack("=i", -errno.ENETUNREACH) + request[:16] + words
    data = struct.pack("=IHHII", 16 + len(body), NLMSG_ERROR, 0x300, 77, 1) + body
    (msg,) = messages(data)
    assert refusal(data, msg) == (77, errno.ENETUNREACH, "Nexthop has invalid gateway")


def test_what_is_of_no_interest() -> None:
    for kind, payload in (
        (24, struct.pack("=BBBBBBBBI", 28, 0, 0, 0, 254, 4, 0, 1, 0)),  # MPLS
        (24, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 4, 0, 1, 0x200)),  # a cache entry
        (16, struct.pack("=BxHiII", 7, 0, 3, 0, 0)),  # a bridge port
        (20, struct.pack("=BBBBI", 7, 0, 0, 0, 3)),
        (28, struct.pack("=BxxxiHBB", 7, 3, 2, 0, 0)),
        (36, bytes(12)),
    ):
        data = message(kind, 0, payload)
        assert [decode(data, msg) for msg in messages(data)] == [None], kind


@given(st.binary(max_size=300), st.sampled_from([16, 20, 24, 28, 104]))
def test_garbled_attributes_do_no_harm(rest: bytes, kind: int) -> None:
    data = message(kind, 0, bytes(16) + rest)
    for msg in messages(data):
        decode(data, msg)
    for data in (
        message(24, 0, bytes([2]) + bytes(11) + attribute(9, rest) + attribute(30, rest)),
        message(104, 0, bytes(8) + attribute(2, rest) + attribute(12, rest)),
    ):
        assert [isinstance(decode(data, msg), RouteEvent | NexthopEvent) for msg in messages(data)] == [True]


@given(st.binary(max_size=200))
def test_garbled_frames_end_the_walk(data: bytes) -> None:
    for msg in messages(data):
        assert 16 <= msg.start <= msg.end <= len(data)


def test_link_up_as_the_kernel_counts_it() -> None:
    for flags, up in ((0x1 | 0x40, True), (0x1 | 0x10000, True), (0x1, False), (0x40, False), (0, False)):
        data = message(16, 0, struct.pack("=BxHiII", 0, 1, 3, flags, 0) + attribute(3, b"eth0\0"))
        event = next(decode(data, msg) for msg in messages(data))
        assert isinstance(event, LinkEvent)
        assert (event.link.name, event.link.up) == ("eth0", up)


@pytest.mark.parametrize("text", ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.7/32", "::/0", "2001:db8::/33", "fd00::1/128"])
def test_the_destination_may_be_anywhere(text: str) -> None:
    """The kernel puts it behind the table; whatever the order, a route is read the same."""
    family, prefix = parse(text)
    head = RTMSG.pack(AF[family], prefix[0], 0, 0, 254, 201, 0, RTN_UNICAST, 0)
    table, metric = (
        attribute(kind, struct.pack("=I", value)) for kind, value in ((RTA_TABLE, 1000), (RTA_PRIORITY, 20))
    )
    destination = attribute(RTA_DST, prefix[1:].ljust(BITS[family] // 8, b"\0")) if prefix[0] else b""
    for rest in (table + destination + metric, metric + destination + table, destination + table + metric):
        for _ in range(2):
            found = only(message(RTM_NEWROUTE, 0, head + rest))
            assert found == Route(family, 1000, 201, RTN_UNICAST, prefix, 20, 0, ())
