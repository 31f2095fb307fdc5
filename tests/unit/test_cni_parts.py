"""Small parts of the agent's half: locks by key, recovery after a crash."""

from __future__ import annotations

import asyncio

from cni.hooks import Attachment, Handle
from cni.locks import KeyedLocks
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
