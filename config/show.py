"""The configuration as it holds: every default filled in, secrets left out."""

from __future__ import annotations

from typing import Any

import yaml

from config.check_peers import DIALLED_ONLY
from config.model import LISTEN_LIMIT, Config

REDACTED = "<redacted>"


def effective(config: Config) -> dict[str, Any]:
    """Return the configuration as plain data with the file's keys, in the schema's order.

    Peers without a policy get the one that holds for them; where a password lies is not shown, only that there is one.
    """
    data = config.model_dump(mode="json", by_alias=True)
    for name, peer in config.peers.items():
        shown = data["peers"][name]
        for key, policy in zip(("import", "export"), config.policies(peer), strict=True):
            shown[key] = (
                policy.model_dump(mode="json", by_alias=True, exclude_none=True) if policy.rules else (policy.default)
            )
        if peer.password_file is not None:
            shown["passwordFile"] = REDACTED
        if peer.listen_range is None:
            del shown["listenRange"], shown["listenLimit"]
        else:
            for key in DIALLED_ONLY.values():
                del shown[key]
            del shown["address"]
            shown["listenLimit"] = peer.listen_limit or LISTEN_LIMIT
    for name, mesh in config.mesh.items():
        if mesh.password_file is not None:
            data["mesh"][name]["passwordFile"] = REDACTED
        for key, written in (("import", mesh.import_policy), ("export", mesh.export_policy)):
            if written is None:
                del data["mesh"][name][key]
            else:
                dumped = written.model_dump(mode="json", by_alias=True, exclude_none=True)
                data["mesh"][name][key] = dumped if written.rules else written.default
    if config.store.password_file is not None:
        data["store"]["passwordFile"] = REDACTED
    # As short as it can be written
    store = {key: value for key, value in data["store"].items() if value not in (None, False)}
    data["store"] = store if len(store) > 1 else config.store.url
    return data


def dump_yaml(data: dict[str, Any]) -> str:
    """Return plain data as YAML, keys in their own order."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
