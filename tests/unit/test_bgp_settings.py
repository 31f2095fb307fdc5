"""Peers as the speaker is told about them, addresses, and the errors of listening."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest

from bgp.fsm_table import State
from bgp.listener import Listener
from bgp.messages import GracefulRestart, Open
from bgp.policy import ACCEPT, REJECT
from bgp.settings import PeerSettings
from bgp.sockets import Endpoint, TcpOptions, set_md5
from bgp.status import SpeakerError, capability_names


def settings(address: str = "10.1.1.1", asn: int = 65001, **more: Any) -> PeerSettings:
    policies = {"import_policy": ACCEPT, "export_policy": REJECT}
    return PeerSettings(name="p", address=address, asn=asn, **(policies | more))


@pytest.mark.parametrize("text", ["10.1.1.1", "fd00::1", "fe80::1%eth0"])
def test_endpoints_read_and_write_alike(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


@pytest.mark.parametrize("text", ["fe80::1", "fd00::1%eth0", "10.1.1.1%eth0", "tor1", "10.1.1.0/24", ""])
def test_what_is_not_an_endpoint(text: str) -> None:
    with pytest.raises(ValueError):
        Endpoint.parse(text)


def test_an_endpoint_with_its_port() -> None:
    assert Endpoint.parse("10.1.1.1").with_port(179) == "10.1.1.1:179"
    assert Endpoint.parse("fe80::1%eth0").with_port(179) == "[fe80::1%eth0]:179"


def test_local_address_and_address_are_of_one_family() -> None:
    with pytest.raises(ValueError, match=r"^peer p: fd00::2 and 10.1.1.1 are not of one family"):
        settings(local_address="fd00::2")


def test_ipv4_over_an_ipv6_session_is_offered_with_ipv6_next_hops() -> None:
    """RFC 8950 section 4."""
    assert settings("fd00::1").extended_next_hop == {(4, 6)}
    assert settings("10.1.1.1").extended_next_hop == set()
    assert settings("fd00::1", families=frozenset((6,))).extended_next_hop == set()


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ({}, TcpOptions(ttl=1)),
        ({"asn": 65000}, TcpOptions(ttl=255)),
        ({"multihop": 3}, TcpOptions(ttl=3)),
        ({"ttl_security": 1}, TcpOptions(ttl=255, minimum_ttl=255)),
        ({"ttl_security": 2, "multihop": 9}, TcpOptions(ttl=255, minimum_ttl=254)),
    ],
)
def test_external_peers_are_on_the_link_unless_told_otherwise(more: dict[str, Any], options: TcpOptions) -> None:
    assert settings(**more).tcp_options(65000) == options


def test_the_password_is_not_printed() -> None:
    assert "secret" not in repr(settings(password=b"secret"))
    assert "secret" not in repr(settings(password=b"secret").tcp_options(65000))


def test_a_password_may_be_too_long() -> None:
    with (
        socket.socket() as sock,
        pytest.raises(ValueError, match="password of 81 octets, TCP-MD5 takes 80 at most"),
    ):
        set_md5(sock, Endpoint.parse("10.1.1.1"), b"x" * 81)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            errno.EACCES,
            "cannot listen on 0.0.0.0:179: Permission denied (ports below 1024 need root or CAP_NET_BIND_SERVICE)",
        ),
        (
            errno.EAFNOSUPPORT,
            "cannot listen on 0.0.0.0:179: Address family not supported by protocol "
            "(the kernel lacks this address family: leave it out of bgp.listen)",
        ),
        (errno.EMFILE, "cannot listen on 0.0.0.0:179: Too many open files"),
    ],
)
async def test_why_the_speaker_cannot_listen(error: int, text: str) -> None:
    def opener(family: int) -> socket.socket:
        raise OSError(error, "")

    with pytest.raises(SpeakerError) as caught:
        Listener("0.0.0.0", 179, opener, lambda sock, remote: False)
    assert str(caught.value) == text


def test_capabilities_for_people() -> None:
    offer = Open(
        65001,
        90,
        bytes(4),
        frozenset((4, 6)),
        graceful_restart=GracefulRestart(forwarding={4: True}),
        extended_next_hop=frozenset(((4, 6),)),
        add_path={6: 1},
        other=(71,),
    )
    assert capability_names(offer) == (
        "multiprotocol ipv4",
        "multiprotocol ipv6",
        "4-octet AS",
        "route refresh",
        "extended next hop ipv4 via ipv6",
        "graceful restart 120 s (ipv4)",
        "add-path ipv6 (receive)",
        "code 71",
    )
    assert capability_names(Open(1, 90, bytes(4), multiprotocol=False, four_octet_as=False, route_refresh=False)) == ()


def test_states_are_in_the_order_of_progress() -> None:
    assert [state.value for state in State] == ["Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established"]
