"""``podroute cni``: installs the plugin for a node's runtime, and removes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click

from cni.install import CHAINABLE, InstallError, InstallSettings, Kind, install, uninstall


def cni_commands(load: Callable[[str], InstallSettings], default_config: str) -> click.Group:
    """Return the group ``cni``. ``load`` reads the settings out of a node's file, and may raise ClickException."""
    config = click.option(
        "--config", type=click.Path(), default=default_config, show_default=True, help="The node's configuration file."
    )

    @click.group(name="cni")
    def group() -> None:
        """Install the CNI plugin for this node's container runtime, or remove it."""

    @group.command(name="install")
    @config
    @click.option("--force", is_flag=True, help="Overwrite files that podroute did not write.")
    @click.option("--chain", metavar="NAMES", default="", help=f"Plugins to run behind: {','.join(CHAINABLE)}.")
    @click.option("--interpreter", metavar="PATH", help="The Python that runs the plugin.")
    @click.option(
        "--plugin",
        type=click.Choice(get_args(Kind)),
        default="auto",
        show_default=True,
        help="Which plugin; auto: compiled, where there is or was a C compiler.",
    )
    def install_command(config: str, force: bool, chain: str, interpreter: str | None, plugin: Kind) -> None:
        """Write the plugin and its network configuration where the runtime looks for them."""
        settings = replace(load(config), chain=[name for name in chain.split(",") if name])
        _report(lambda: install(settings, force=force, interpreter=interpreter, plugin=plugin))

    @group.command(name="uninstall")
    @config
    @click.option("--force", is_flag=True, help="Remove the files even if podroute did not write them.")
    def uninstall_command(config: str, force: bool) -> None:
        """Remove the plugin and its network configuration. Stop the containers first."""
        settings = load(config)
        _report(lambda: uninstall(settings, force=force))

    return group


def settings_of(*, socket: str, state_dir: str, bin_dir: str, conf_dir: str) -> InstallSettings:
    """Return the settings that a node's file stands for."""
    return InstallSettings(Path(socket), notes_directory(state_dir), Path(bin_dir), Path(conf_dir))


def notes_directory(state_dir: str) -> Path:
    """Return where plugin and agent agree that deletions are noted."""
    return Path(state_dir) / "cni-deletions"


def _report(action: Callable[[], list[str]]) -> None:
    try:
        lines = action()
    except InstallError as error:
        raise click.ClickException(str(error)) from None
    for line in lines:
        click.echo(line)
