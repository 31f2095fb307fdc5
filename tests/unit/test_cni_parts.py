"""Small parts of the agent's half: locks by key, recovery after a crash, waiting for the kernel."""

from __future__ import annotations

import asyncio
import socket

import pytest

from cni import links, netlink
from cni.errors import CniError
from cni.hooks import Attachment, Handle
from cni.locks import KeyedLocks
from cni.netlink import Message, Netlink
from cni.podnet import HostLink, host_ifname
from cni.recovery import reconcile


async def test_holders_of_one_key_follow_each_other() -> None:
    locks: KeyedLocks[str] = KeyedLocks()
    order: list[str] = []
    gate = asyncio.Event()

    async def hold(key: str, label: str) -> None:
        async with locks.hold(key):
            order.append(f"{label} in")
            await gate.wait()
            order.append(f"{label} out")

    async with asyncio.TaskGroup() as group:
        group.create_task(hold("a", "first"))
        group.create_task(hold("a", "second"))
        group.create_task(hold("b", "other"))
        await asyncio.sleep(0)
        assert order == ["first in", "other in"]
        gate.set()
    assert order == ["first in", "other in", "first out", "other out", "second in", "second out"]
    assert len(locks) == 0


async def test_a_holder_that_fails_or_is_cancelled_lets_go() -> None:
    locks: KeyedLocks[str] = KeyedLocks()

    async def wait() -> None:
        async with locks.hold("a"):
            await asyncio.Event().wait()

    holder, waiter = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    assert len(locks) == 0


def attachment(container: str, *, wired: bool = True) -> Attachment:
    handle = Handle("podroute", container, "eth0")
    return Attachment(handle, (), {"hostInterface": host_ifname(handle)} if wired else {})


def host_link(container: str, index: int, *, complete: bool = True) -> HostLink:
    return HostLink(host_ifname(Handle("podroute", container, "eth0")), index, complete, 2, 0)


def test_recovery() -> None:
    runs, vanished, unfinished, elsewhere = (
        attachment("runs"),
        attachment("vanished"),
        attachment("unfinished"),
        attachment("elsewhere", wired=False),
    )
    half, unknown = host_link("unfinished", 2, complete=False), host_link("unknown", 3)
    recovery = reconcile([runs, vanished, unfinished, elsewhere], [host_link("runs", 1), half, unknown])
    assert recovery.keep == [runs]
    assert recovery.release == [vanished, unfinished]
    assert recovery.remove == [half, unknown]


def test_recovery_of_nothing() -> None:
    assert reconcile([], []) == ([], [], [])


class Kernel(Netlink):
    """Gives one answer after the other, the last one for ever."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)

    def one(self, message: Message) -> bytes | None:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


DOWN, UP = (netlink.link_header(7) + netlink.attribute(netlink.IFLA_OPERSTATE, bytes([state])) for state in (2, 6))


def test_a_carrier_is_waited_for() -> None:
    kernel = Kernel(DOWN, DOWN, UP)
    links.await_carrier(kernel, 7)
    assert kernel.answers == [UP]


def test_what_does_not_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "LIMIT", 0.01)
    with pytest.raises(CniError, match="interface 7 has no carrier"):
        links.await_carrier(Kernel(DOWN), 7)
    with pytest.raises(CniError, match="interface 7 went away"):
        links.await_carrier(Kernel(None), 7)
    with pytest.raises(CniError, match="fd00::1 is not in use"):
        links.await_local(Kernel(None), socket.inet_pton(socket.AF_INET6, "fd00::1"))
