"""The `podroute` command. Each group lives in its own room; this file only hangs them on one tree."""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from typing import Any
from urllib.parse import quote

import click

from agent.client import DEFAULT_SOCKET, AgentRefusedError, AgentUnavailableError, Client

# Loaded when they are asked for: `podroute peers` need not pay for pydantic or the speaker. Names instead of imports
# also keep the rooms above this one (labs) out of the agent's own imports.
_GROUPS = {
    "agent": "agent.main:agent",
    "cni": "agent.cni_commands:cni",
    "config": "config.commands:config_commands",
    "ipam": "agent.ipam_commands:ipam",
    "lab": "labs.commands:lab",
}


_LONGEST_WAIT = 3600.0
"""Seconds; agent.api's own."""


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_GROUPS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _GROUPS:
            module, attribute = _GROUPS[cmd_name].split(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="podroute")
def cli() -> None:
    """BGP routing-mode control plane for containers."""


def main() -> None:
    """Run the command; what an operator can cause is one line and exit status 1."""
    try:
        cli()
    except (AgentUnavailableError, AgentRefusedError) as error:
        click.echo(f"podroute: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # The reader went away (`podroute routes | head`): not an error of ours.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        click.echo(f"podroute: the output cannot be written ({error.strerror}): make room", err=True)
        # Or the interpreter tries once more as it ends, and complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def asks_agent(command: Any) -> Any:
    """Add the options of a command that asks the agent."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    return click.option(
        "--socket",
        "socket_path",
        default=DEFAULT_SOCKET,
        envvar="PODROUTE_SOCKET",
        show_default=True,
        help="The agent's socket.",
    )(command)


def show_answer(answer: Any, as_json: bool, table: str) -> None:
    """Print an answer as JSON, or with a function of agent.tables."""
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    from agent import tables  # rich is slow to import, and scripts use --json

    getattr(tables, table)(answer)


@cli.command()
@asks_agent
def status(socket_path: str, as_json: bool) -> None:
    """One page: is this node converged, and if not, what is it waiting for."""
    show_answer(Client(socket_path).get("/v1/status"), as_json, "status")


@cli.command()
@asks_agent
def peers(socket_path: str, as_json: bool) -> None:
    """BGP peers: state, families, prefix counts, last errors."""
    show_answer(Client(socket_path).get("/v1/peers"), as_json, "peers")


@cli.command()
@click.argument("prefix", required=False)
@click.option("--family", type=click.Choice(["ipv4", "ipv6"]), help="Only this family.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many prefixes.")
@asks_agent
def routes(prefix: str | None, family: str | None, limit: int | None, socket_path: str, as_json: bool) -> None:
    """Routes: every path, which is used, and what the kernel holds now. PREFIX shows one, and why these differ."""
    found = Client(socket_path).stream("/v1/routes", prefix=prefix, family=family, limit=limit)
    if as_json:
        for route in found:
            click.echo(json.dumps(route))
        return
    show_answer(list(found), False, "route" if prefix else "routes")


@cli.command()
@click.argument("prefix")
@asks_agent
def explain(prefix: str, socket_path: str, as_json: bool) -> None:
    """All about one PREFIX or address: paths, policy, decision, next hops, kernel, and why they differ."""
    show_answer(Client(socket_path).get("/v1/explain", prefix=prefix), as_json, "explain")


@cli.command()
@asks_agent
def blocks(socket_path: str, as_json: bool) -> None:
    """Blocks that this node owns, and how full they are."""
    show_answer(Client(socket_path).get("/v1/blocks"), as_json, "blocks")


@cli.command()
@asks_agent
def pods(socket_path: str, as_json: bool) -> None:
    """Pods that this node wired: addresses, interfaces, names."""
    show_answer(Client(socket_path).get("/v1/pods"), as_json, "pods")


@cli.command()
@click.argument("name")
@click.argument("what", type=click.Choice(["shutdown", "start"]))
@click.option("--text", default="", help="What the peer's operator is told (RFC 9003).")
@asks_agent
def peer(name: str, what: str, text: str, socket_path: str, as_json: bool) -> None:
    """End a peer's session until it is started again, or until the agent restarts."""
    answer = Client(socket_path).post(f"/v1/peers/{quote(name, safe='')}/{what}", text=text or None)
    click.echo(json.dumps(answer) if as_json else f"{name}: {answer['problem']}")


@cli.command()
@click.option("--mode", type=click.Choice(["graceful", "drain", "purge"]), help="Default: `onStop` of the node's file.")
@asks_agent
def stop(mode: str | None, socket_path: str, as_json: bool) -> None:
    """End the agent: graceful (routes stay, peers wait for it), drain (traffic led away first), purge (all removed)."""
    answer = Client(socket_path).post("/v1/stop", mode=mode)
    click.echo(json.dumps(answer) if as_json else f"stopping, mode {answer['mode']}")


@cli.command()
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@asks_agent
def reload(dry_run: bool, socket_path: str, as_json: bool) -> None:
    """Have the agent read its file anew: all of it holds, or, where anything is wrong, nothing."""
    show_answer(Client(socket_path).post("/v1/reload", dryRun="1" if dry_run else None), as_json, "reloaded")


@cli.command("wait-converged")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds.")
@asks_agent
def wait_converged(timeout: float, socket_path: str, as_json: bool) -> None:
    """Wait until sessions, End-of-RIBs, FIB and own blocks are all in place. Exit status 1 after the timeout."""
    patience = min(max(0.0, timeout), _LONGEST_WAIT) + 10  # what the agent refuses needs none
    answer = Client(socket_path, timeout=patience).get("/v1/converged", timeout=timeout)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    elif answer["converged"]:
        click.echo(f"converged after {answer['waited']:.2f} s")
    else:
        click.echo("podroute: not converged, waiting for:", err=True)
        for reason in answer["waitingFor"]:
            click.echo(f"  {reason}", err=True)
    if not answer["converged"]:
        sys.exit(1)
