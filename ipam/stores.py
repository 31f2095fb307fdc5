"""The store that a configuration names."""

from __future__ import annotations

from config.store import Store as Settings
from ipam.etcd_store import EtcdStore
from ipam.sqlite_store import SqliteStore
from ipam.store import Store


def store_of(settings: Settings) -> Store:
    """Return the store, not open yet. Raises StoreError where it can never be used as configured."""
    if settings.place.scheme == "etcd":
        return EtcdStore.of(settings)
    return SqliteStore(settings.place.path)
