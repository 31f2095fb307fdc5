"""`podroute cni`: the CNI side's commands, with the paths that the node's file states."""

from __future__ import annotations

import click

from cni.commands import cni_commands, settings_of
from cni.install import InstallSettings
from config.load import load
from config.model import DEFAULT_PATH
from config.problems import ConfigError


def _settings(path: str) -> InstallSettings:
    try:
        config = load(path)
    except ConfigError as error:
        raise click.ClickException("\n".join(error.lines)) from None
    where = config.cni
    return settings_of(socket=where.socket, state_dir=config.state_dir, bin_dir=where.bin_dir, conf_dir=where.conf_dir)


cni = cni_commands(_settings, DEFAULT_PATH)
