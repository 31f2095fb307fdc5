"""`podroute agent`: one node's process from its command line to its exit status."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from importlib.metadata import version
from typing import NoReturn

import click

from agent.api import ApiServer
from agent.errors import StartError
from agent.log import set_up
from agent.node import Node
from agent.privileges import missing_privileges
from bgp.status import SpeakerError
from cni.server import ServerError
from config.compiled import form
from config.load import load
from config.model import DEFAULT_PATH, Config
from config.problems import ConfigError
from ipam.errors import IpamError
from routes.fib import FibError

log = logging.getLogger("podroute.agent")

_REFUSALS = (StartError, ConfigError, SpeakerError, FibError, IpamError, ServerError)
"""What an operator can cause: one line and exit status 1. Anything else is a defect and keeps its traceback."""

_SWITCH = 0.0005
"""Seconds that a thread may keep the interpreter while another wants it: the thread that feeds the kernel needs it only
for moments, and while it waits for it the kernel has nothing to do."""


@click.command()
@click.option("--config", "path", default=DEFAULT_PATH, show_default=True, help="The node's file.")
def agent(path: str) -> None:
    """Run this node's control plane until SIGTERM or SIGINT."""
    try:
        config = load(path)
    except ConfigError as error:
        for line in error.lines:
            click.echo(line, err=True)
        sys.exit(1)
    missing = missing_privileges()
    if missing:
        _refuse(f"the agent needs {', '.join(missing)} to write routes and wire containers: run it as root")
    set_up(config.log.level, config.log.format)
    log.info(
        "starting", extra={"fields": {"version": version("podroute"), "form": form().name, "detail": form().detail}}
    )
    sys.setswitchinterval(_SWITCH)
    try:
        asyncio.run(_run(config, path))
    except _REFUSALS as error:
        _refuse(str(error))


def _refuse(text: str) -> NoReturn:
    """Say in one line why the agent cannot run."""
    click.echo(f"podroute: {text}", err=True)
    sys.exit(1)


async def _run(config: Config, path: str) -> None:
    node = Node(config, path)
    api = ApiServer(node, config.api.socket)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.stop)
    await api.start()
    try:
        await node.run()
    finally:
        await api.stop()
