"""Stores that tests of several files use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from config.store import Store as Settings
from ipam.etcd_store import EtcdStore
from ipam.sqlite_store import SqliteStore
from ipam.store import Store
from tests.etcd import Etcd, etcd, needs_etcd
from tests.stores import Counting


@pytest.fixture(scope="session")
def member() -> Iterator[Etcd]:
    """etcd with one member, for tests that do not stop it."""
    with etcd() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", pytest.param("etcd", marks=needs_etcd)])
async def store(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Counting]:
    """An empty store of each kind."""
    inner: Store = SqliteStore(str(tmp_path / "store.db"))
    if request.param == "etcd":
        cluster: Etcd = request.getfixturevalue("member")
        cluster.etcdctl("del", "", "--prefix")
        inner = EtcdStore.of(Settings(url=cluster.url))
    opened = Counting(inner)
    await opened.open()
    yield opened
    await opened.close()
