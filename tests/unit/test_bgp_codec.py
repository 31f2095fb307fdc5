from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp import codec
from bgp.framing import Framer
from bgp.messages import BgpError, GracefulRestart, Negotiated, Notification, Open, RouteRefresh
from bgp.notifications import hard_reset, shutdown_text
from config.prefix import Family

ID = bytes((10, 0, 0, 1))


def body(message: bytes) -> bytes:
    [(_, found)] = Framer(65535).feed(message)
    return found


def an_open(**fields: object) -> Open:
    return Open(**({"asn": 65002, "hold_time": 90, "identifier": bytes((10, 0, 0, 2))} | fields))  # type: ignore[arg-type]


def capability(code: int, value: bytes) -> bytes:
    return bytes((code, len(value))) + value


def raw_open(
    *capabilities: bytes,
    version: int = 4,
    asn: int = 65002,
    hold_time: int = 90,
    identifier: bytes = ID,
    parameters: bytes | None = None,
) -> bytes:
    if parameters is None:
        parameters = b"".join(bytes((2, len(c))) + c for c in capabilities)
    return pack("!BHH", version, asn, hold_time) + identifier + bytes((len(parameters),)) + parameters


def codes(decode: Callable[[bytes], object], data: bytes) -> set[int]:
    """Return the code of the BgpError that decoding raises, nothing where it raises none."""
    try:
        decode(data)
    except BgpError as error:
        return {error.code}
    return set()


FAMILIES: tuple[Family, ...] = (4, 6)
families = st.sampled_from([frozenset(FAMILIES), frozenset(FAMILIES[:1]), frozenset(FAMILIES[1:])])
texts = st.text("abcdefghijklmnopqrstuvwxyz0123456789-./", max_size=60)
opens = st.builds(
    Open,
    asn=st.integers(1, 2**32 - 1),
    hold_time=st.one_of(st.just(0), st.integers(3, 65535)),
    identifier=st.binary(min_size=4, max_size=4).filter(any),
    families=families,
    four_octet_as=st.just(True),
    multiprotocol=st.just(True),
    route_refresh=st.booleans(),
    enhanced_refresh=st.booleans(),
    extended_message=st.booleans(),
    extended_next_hop=st.sampled_from([frozenset(), frozenset({(4, 6)})]),
    graceful_restart=st.none()
    | st.builds(
        GracefulRestart,
        restarting=st.booleans(),
        notification=st.booleans(),
        restart_time=st.integers(0, 4095),
        forwarding=st.dictionaries(st.sampled_from(FAMILIES), st.booleans()),
    ),
    add_path=st.dictionaries(st.sampled_from(FAMILIES), st.integers(1, 3)),
    hostname=texts,
    software=texts,
)


@given(opens)
def test_open_round_trip(sent: Open) -> None:
    assert codec.decode_open(body(codec.encode_open(sent))) == sent


def test_as_numbers_of_four_octets_travel_as_as_trans() -> None:
    """RFC 6793 section 4.1."""
    found = body(codec.encode_open(an_open(asn=4200000001)))
    assert found[1:3] == pack("!H", 23456)
    assert codec.decode_open(found).asn == 4200000001


def test_open_without_capabilities_means_ipv4_unicast() -> None:
    """RFC 4760 section 8."""
    found = codec.decode_open(raw_open())
    assert found.families == frozenset((4,))
    assert (found.multiprotocol, found.four_octet_as, found.route_refresh) == (False, False, False)


def test_long_parameters_take_the_extended_form_and_come_back() -> None:
    """RFC 9072, sending."""
    long = an_open(hostname="h" * 64, software="s" * 64, families=frozenset((4, 6)), add_path={4: 3, 6: 3})
    restart = GracefulRestart(forwarding={4: True, 6: True})
    sent = Open(**{f: getattr(long, f) for f in Open.__slots__} | {"graceful_restart": restart})
    found = body(codec.encode_open(sent))
    assert codec.decode_open(found) == sent
    extended = (
        raw_open(parameters=b"")[:9] + bytes((200, 255)) + pack("!H", 9) + b"\2\0\6" + capability(65, pack("!I", 65002))
    )
    assert codec.decode_open(extended).four_octet_as, "the one-octet length is not to be looked at"


def test_unused_and_broken_informational_capabilities_do_no_harm() -> None:
    found = codec.decode_open(
        raw_open(
            capability(73, b"\x40ab"), capability(75, b"\x03\xff\xfex"), capability(9, b"\4"), capability(71, b"abc")
        )
    )
    assert found.hostname == "ab"
    assert found.software.endswith("x")
    assert found.other == (9, 71)


def test_capability_of_several_families_and_repeats() -> None:
    found = codec.decode_open(
        raw_open(
            capability(1, pack("!HBB", 1, 0, 1)),
            capability(1, pack("!HBB", 1, 0, 1)) + capability(1, pack("!HBB", 25, 0, 70)),
            capability(1, pack("!HBB", 2, 0, 1)),
            capability(69, pack("!HBBHBB", 1, 1, 9, 2, 1, 1)),
        )
    )
    assert found.families == {4, 6}
    assert found.add_path == {6: 1}, "RFC 7911 section 4: 9 is no mode, so that entry is ignored"


@pytest.mark.parametrize(
    ("message", "subcode", "data"),
    [
        pytest.param(raw_open(version=3), 1, b"\0\4", id="6.2 version: data is the one we support"),
        pytest.param(raw_open(asn=0), 2, b"", id="RFC 7607 AS 0"),
        pytest.param(raw_open(capability(65, bytes(4))), 2, b"", id="RFC 7607 4-octet AS 0"),
        pytest.param(raw_open(capability(65, pack("!I", 7))), 2, b"", id="RFC 6793 two different AS numbers"),
        pytest.param(raw_open(identifier=bytes(4)), 3, b"", id="RFC 6286 identifier 0"),
        pytest.param(raw_open(parameters=b"\1\0"), 4, b"", id="6.2 authentication parameter, deprecated"),
        pytest.param(raw_open(parameters=b"\x09\x01x"), 4, b"", id="6.2 unknown parameter"),
        pytest.param(raw_open(hold_time=1), 6, b"", id="6.2 hold time 1"),
        pytest.param(raw_open(hold_time=2), 6, b"", id="6.2 hold time 2"),
        pytest.param(raw_open() + b"x", 0, b"", id="octets after the parameters"),
        pytest.param(raw_open()[:-1] + b"\4\2\2", 0, b"", id="parameters cut short"),
        pytest.param(raw_open(parameters=b"\2"), 0, b"", id="half a parameter header"),
        pytest.param(raw_open(parameters=b"\2\5\1\4\0"), 0, b"", id="parameter overruns"),
        pytest.param(raw_open(parameters=b"\2\1\1"), 0, b"", id="half a capability header"),
        pytest.param(raw_open(b"\x41\x09\0\0"), 0, b"", id="capability overruns"),
        pytest.param(raw_open(capability(65, b"\0\1")), 0, b"", id="4-octet AS of two octets"),
        pytest.param(raw_open(capability(1, b"\0\1")), 0, b"", id="multiprotocol of two octets"),
        pytest.param(raw_open(capability(64, b"\0")), 0, b"", id="graceful restart of one octet"),
        pytest.param(raw_open()[:-1] + b"\xff", 0, b"", id="lone 255 (exabgp: IndexError)"),
        pytest.param(raw_open()[:-1] + b"\xff\xff", 0, b"", id="RFC 9072 without a length"),
        pytest.param(raw_open()[:-1] + b"\xff\xff\0\5", 0, b"", id="RFC 9072 overruns"),
        pytest.param(raw_open()[:-1] + b"\xff\xff\0\2\2\0", 0, b"", id="RFC 9072 half a parameter header"),
    ],
)
def test_open_that_is_refused(message: bytes, subcode: int, data: bytes) -> None:
    with pytest.raises(BgpError) as caught:
        codec.decode_open(message)
    assert (caught.value.code, caught.value.subcode, caught.value.data) == (2, subcode, data)
    assert caught.value.reason


@given(st.binary(max_size=120), st.binary(max_size=60))
def test_any_open_decodes_or_raises_bgp_error(noise: bytes, parameters: bytes) -> None:
    for message in (noise, b"\4" + noise, raw_open(parameters=parameters), raw_open(parameters=b"\2\x1e" + parameters)):
        assert codes(codec.decode_open, message) <= {2}


def negotiate(local: Open, peer: Open, expected: int | None = None) -> Negotiated:
    return codec.negotiate(local, peer, peer.asn if expected is None else expected)


def test_negotiated_is_what_both_offer() -> None:
    local = an_open(asn=65001, identifier=ID, families=frozenset((4, 6)), extended_message=True)
    found = negotiate(local, an_open(families=frozenset((6,)), hold_time=30, extended_message=True))
    assert found.families == frozenset((6,))
    assert (found.hold_time, found.keepalive, found.ibgp) == (30, 10, False)
    assert (found.receive_limit, found.send_limit, found.four_octet_as) == (65535, 65535, True)
    found = negotiate(local, an_open(four_octet_as=False))
    assert (found.receive_limit, found.send_limit, found.four_octet_as) == (65535, 4096, False), "RFC 8654 section 4"
    assert negotiate(an_open(hold_time=0), an_open(identifier=ID)).hold_time == 0


@pytest.mark.parametrize(
    ("local", "peer", "expected", "subcode", "reason"),
    [
        pytest.param(an_open(asn=65001), an_open(), 65003, 2, "expected AS 65003, received AS 65002", id="wrong AS"),
        pytest.param(an_open(asn=70000), an_open(asn=70000), 70000, 3, "identifier 10.0.0.2", id="RFC 6286 2.2"),
        pytest.param(
            an_open(asn=1, families=frozenset((6,))), an_open(), 65002, 7, "we offer ipv6, the peer ipv4", id="RFC 5492"
        ),
    ],
)
def test_opens_that_do_not_go_together(local: Open, peer: Open, expected: int, subcode: int, reason: str) -> None:
    with pytest.raises(BgpError, match=reason) as caught:
        codec.negotiate(local, peer, expected)
    assert (caught.value.code, caught.value.subcode) == (2, subcode)


def test_unsupported_capability_carries_what_the_peer_lacks() -> None:
    """RFC 5492 section 3."""
    with pytest.raises(BgpError) as caught:
        negotiate(an_open(asn=1, families=frozenset((6,))), an_open())
    assert caught.value.data == capability(1, pack("!HBB", 2, 0, 1))


def test_external_peers_may_share_an_identifier() -> None:
    """RFC 6286 section 2.1: unique within an AS."""
    negotiate(an_open(asn=1), an_open(asn=2))


def test_keepalive() -> None:
    assert codec.KEEPALIVE.hex() == "ff" * 16 + "001304"


@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=300))
def test_notification_round_trip_keeps_the_raw_data(code: int, subcode: int, data: bytes) -> None:
    sent = Notification(code, subcode, data)
    assert codec.decode_notification(body(codec.encode_notification(sent))) == sent
    assert codec.describe(sent)


def test_notification_too_short_for_its_codes() -> None:
    assert codec.decode_notification(b"\6") == Notification(0, 0, b"\6")


@pytest.mark.parametrize(
    ("notification", "text"),
    [
        (
            Notification(6, 2, shutdown_text("maintenance until 10:00")),
            'Cease/Administrative Shutdown: "maintenance until 10:00"',
        ),
        (Notification(6, 4, shutdown_text("é" * 200)), 'Cease/Administrative Reset: "' + "é" * 127 + '"'),
        (Notification(6, 2, b"\2a\n"), 'Cease/Administrative Shutdown: "a "'),
        (Notification(6, 2, b"\x09ab"), "Cease/Administrative Shutdown: 096162"),
        (Notification(6, 2), "Cease/Administrative Shutdown"),
        (Notification(6, 7), "Cease/Connection Collision Resolution"),
        (hard_reset(Notification(6, 2, b"\2hi")), 'Cease/Hard Reset: Cease/Administrative Shutdown: "hi"'),
        (Notification(8, 0), "Send Hold Timer Expired"),
        (Notification(4, 0), "Hold Timer Expired"),
        (Notification(2, 1, b"\0\4"), "OPEN Message Error/Unsupported Version Number: supports version 4"),
        (Notification(1, 2, b"\x10\x01"), "Message Header Error/Bad Message Length: length 4097"),
        (Notification(2, 2), "OPEN Message Error/Bad Peer AS"),
        (Notification(3, 99, b"\1"), "UPDATE Message Error/subcode 99: 01"),
        (Notification(77, 0), "code 77"),
        (Notification(5, 3), "Finite State Machine Error/Unexpected Message in Established State"),
    ],
)
def test_names(notification: Notification, text: str) -> None:
    """RFC 4271 section 4.5, 4486, 6608, 8538, 9003, 9687."""
    assert codec.describe(notification) == text


def test_shutdown_text_fits_255_octets() -> None:
    """RFC 9003 section 2."""
    assert shutdown_text("") == b""
    assert shutdown_text("é") == b"\2\xc3\xa9"
    assert len(shutdown_text("é" * 300)) == 255, "cut before a character that does not fit"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("subtype", [0, 1, 2])
def test_route_refresh_round_trip(family: Family, subtype: int) -> None:
    sent = RouteRefresh(family, subtype)
    assert codec.decode_route_refresh(body(codec.encode_route_refresh(sent))) == sent


@pytest.mark.parametrize("raw", ["00010901", "00190046", "00010002"], ids=["subtype 9", "EVPN", "multicast"])
def test_route_refresh_to_ignore(raw: str) -> None:
    """RFC 7313 section 5, RFC 2918 section 4."""
    assert codec.decode_route_refresh(bytes.fromhex(raw)) is None


@pytest.mark.parametrize("size", [0, 3, 5])
def test_route_refresh_of_a_wrong_length(size: int) -> None:
    """RFC 7313 section 5: the data are the whole message."""
    with pytest.raises(BgpError) as caught:
        codec.decode_route_refresh(bytes(size))
    assert (caught.value.code, caught.value.subcode, len(caught.value.data)) == (7, 1, 19 + size)


def test_attributes_as_text() -> None:
    raw = bytes.fromhex("40010100" + "40020602010000fdea" + "400304c0000202" + "c00804fdea0064")
    assert dict(codec.attributes_text(raw)) == {
        "origin": "igp",
        "as-path": "( 65002 )",
        "next-hop": "192.0.2.2",
        "community": "65002:100",
    }


@given(st.binary(max_size=60))
def test_attributes_as_text_never_leak_an_exception(raw: bytes) -> None:
    assert codes(codec.attributes_text, raw) <= {3}


def test_exabgp_forgets_as_numbers() -> None:
    from exabgp.bgp.message.open.asn import ASN
    from exabgp.protocol.resource import Resource

    for asn in range(1, 20_000, 2):
        codec.attributes_text(b"\x40\x02\x06\x02\x01" + pack("!I", asn + 70_000))
    assert len(Resource.cache[ASN]) <= 4096


def run(lines: Iterable[str]) -> str:
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_asks_no_resolver_and_leaves_the_process_as_it_was() -> None:
    output = run(
        [
            "import logging, os, signal, socket, threading",
            "def asked(*args): raise SystemExit('asked the resolver')",
            "socket.getfqdn = socket.gethostbyaddr = socket.getaddrinfo = asked",
            "before = dict(os.environ), signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:]",
            "import bgp.codec",
            "after = dict(os.environ), signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:]",
            "print(before == after, threading.active_count())",
        ]
    )
    assert output == "True 1\n"


def test_another_release_of_exabgp_is_refused() -> None:
    output = run(
        [
            "import exabgp.version",
            "exabgp.version.release = '5.0.16'",
            "try:",
            "    import bgp.codec",
            "except ImportError as error:",
            "    print(error)",
        ]
    )
    assert output == "podroute needs exabgp 5.0.15, found 5.0.16\n"
