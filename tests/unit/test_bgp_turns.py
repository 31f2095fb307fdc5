"""Whose turn it is in the speaker's task: counted in turns, not in seconds."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from bgp.peer import LITTLE
from bgp.session import Session
from bgp.speaker import Speaker
from config.nexthop import NextHops
from config.prefix import Family, make
from tests.bgp_ribs import Node, Resolver, add_peer, session
from tests.unit.test_bgp_runs import announcement

TABLE = [make(4, (20 << 24) + (number << 8), 24) for number in range(1000)]
FEW = [make(4, (30 << 24) + (number << 8), 24) for number in range(3)]


class Arrived:
    """A session of which octets wait."""

    def __init__(self, unread: int, process: Callable[[], None]) -> None:
        self.unread = unread
        self._process = process

    def read(self, budget: int) -> bool:
        self._process()
        return False


class Fixture:
    """A speaker with two peers, of which one announces a table; ``log`` says what happened in which order."""

    def __init__(self, *, full: bool = False) -> None:
        self.log: list[str] = []
        self.full = full
        self.speaker = Speaker(
            asn=65001,
            router_id=bytes((10, 0, 0, 1)),
            resolver=Resolver(),
            on_fib=self.on_fib,
            on_session=print,
            fib_full=lambda: self.full,
        )
        self.node = Node("n", 65001, 1)
        self.node.rib = self.speaker.rib
        self.peers = [Node("table", 65002, 2), Node("little", 65003, 3)]
        for peer in self.peers:
            add_peer(self.node, peer)
            add_peer(peer, self.node)
            session(self.node, peer)
        self.speaker._turns.turn()
        self.log.clear()

    def on_fib(self, family: Family, changes: list[tuple[Sequence[bytes], NextHops | None]]) -> None:
        self.log.append(f"{sum(len(prefixes) for prefixes, _ in changes)} told")

    def arrive(self, peer: int, prefixes: list[bytes], unread: int) -> None:
        """Have an announcement wait to be read, as octets of a session."""
        node = self.peers[peer]
        body = announcement(node.asn, 1, prefixes, node.address(4))

        def process() -> None:
            self.log.append(f"{node.name} read")
            self.speaker.rib.receive_all(node.name, [body], print, little=unread <= LITTLE)
            self.speaker._turns.wake()

        self.speaker._turns.readers.append(cast(Session, Arrived(unread, process)))


async def test_who_says_little_is_read_and_decided_before_a_table() -> None:
    fixture = Fixture()
    fixture.arrive(0, TABLE, 50_000)
    fixture.arrive(1, FEW, 60)
    fixture.speaker._turns.turn()
    assert fixture.log == ["little read", "3 told", "table read", "1000 told"]


async def test_who_says_little_is_told_to_the_fib_while_that_is_full() -> None:
    fixture = Fixture(full=True)
    fixture.arrive(0, TABLE, 50_000)
    fixture.arrive(1, FEW, 60)
    assert not fixture.speaker._turns.turn()
    assert fixture.log == ["little read", "3 told"]


async def test_those_who_say_little_leave_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgp.turns._SPARED", 100)
    fixture = Fixture()
    fixture.arrive(0, TABLE, 50_000)
    for _ in range(10):
        fixture.arrive(1, FEW, 60)
    fixture.speaker._turns.turn()
    assert fixture.log.index("table read") == 3  # after two that said little, and what became of it


async def test_what_arrives_in_a_turn_is_there_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    fixture, log = Fixture(), list[str]()
    here, there = socket.socketpair()
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def turn() -> bool:
        log.append("turn")
        there.send(b"octet")
        if log.count("turn") == 4:
            over.set()
        return not over.is_set()

    def arrived() -> None:
        log.append(here.recv(100).decode())

    monkeypatch.setattr(fixture.speaker._turns, "turn", turn)
    with here, there:
        loop.add_reader(here, arrived)
        task: asyncio.Task[Any] = loop.create_task(fixture.speaker._turns.run())
        fixture.speaker._turns.read_on()
        await over.wait()
        task.cancel()
        loop.remove_reader(here)
    assert log == ["turn", "octet"] * 3 + ["turn"]
