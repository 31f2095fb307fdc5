"""`podroute ipam`: pools, blocks and addresses, of the cluster and of this node; all through the agent."""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import quote

import click

from agent.cli import asks_agent, show_answer
from agent.client import Client

_PATIENCE = 300.0
"""Seconds that the agent may take."""


@click.group()
def ipam() -> None:
    """Pools, blocks and addresses."""


@ipam.command()
@click.argument("block", required=False)
@asks_agent
def show(block: str | None, socket_path: str, as_json: bool) -> None:
    """How full pools and nodes are. BLOCK, one of this node's, is drawn: one cell an address."""
    answer = Client(socket_path, _PATIENCE).get("/v1/ipam/show", block=block)
    show_answer(answer, as_json, "ipam_picture" if block else "ipam_show")


@ipam.command()
@click.option("--pool", help="Only this pool's.")
@click.option("--node", help="Only this node's.")
@asks_agent
def blocks(pool: str | None, node: str | None, socket_path: str, as_json: bool) -> None:
    """All blocks of the cluster and their owners."""
    show_answer(Client(socket_path, _PATIENCE).get("/v1/ipam/blocks", pool=pool, node=node), as_json, "ipam_blocks")


@ipam.group(invoke_without_command=True)
@asks_agent
@click.pass_context
def pools(context: click.Context, socket_path: str, as_json: bool) -> None:
    """The cluster's pools; `pools set` changes one."""
    if context.invoked_subcommand is None:
        show_answer(Client(socket_path, _PATIENCE).get("/v1/ipam/pools"), as_json, "ipam_pools")


@pools.command("set")
@click.argument("name")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE...")
@asks_agent
def set_pool(name: str, changes: tuple[str, ...], socket_path: str, as_json: bool) -> None:
    """Change a pool for all nodes.

    disabled=, manual= and notAdvertised= true or false, aggregate= none, beside or only, blockSize= of an empty pool.
    """
    wanted: dict[str, str | float | None] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise click.UsageError(f"{change!r} is not KEY=VALUE")
        wanted[key] = value
    answer = Client(socket_path, _PATIENCE).post(f"/v1/ipam/pools/{quote(name, safe='')}", **wanted)
    show_answer([answer], as_json, "ipam_pools")


@ipam.command()
@click.option("--fix", is_flag=True, help="Repair what can be repaired.")
@asks_agent
def check(fix: bool, socket_path: str, as_json: bool) -> None:
    """Compare ledger, store and kernel, and name each disagreement.

    Exit status 1 where there is one left, or the store could not be asked.
    """
    client = Client(socket_path, _PATIENCE)
    answer: Any = client.post("/v1/ipam/check") if fix else client.get("/v1/ipam/check")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        for one in answer["disagreements"]:
            click.echo(f"{one['kind']}: {one['text']}")
        for done in answer["fixed"]:
            click.echo(f"fixed: {done}")
        if answer["storeProblem"]:
            click.echo(f"block records were not compared: {answer['storeProblem']}")
        if not answer["disagreements"]:
            click.echo("ledger and kernel agree" if answer["storeProblem"] else "ledger, store and kernel agree")
    if answer["storeProblem"] or any(not (fix and one["fixable"]) for one in answer["disagreements"]):
        sys.exit(1)


@ipam.command()
@click.argument("address")
@click.option("--force", is_flag=True, help="Also where its container runs: it is cut off.")
@asks_agent
def release(address: str, force: bool, socket_path: str, as_json: bool) -> None:
    """Release ADDRESS and what else its container has, on this node."""
    answer = Client(socket_path, _PATIENCE).post("/v1/ipam/release", address=address, force="true" if force else None)
    click.echo(json.dumps(answer) if as_json else f"released {', '.join(answer['released'])} of {answer['handle']}")


@ipam.command()
@click.argument("node")
@click.option("--quarantine", default=300, show_default=True, help="Seconds until the blocks can be claimed.")
@asks_agent
def reclaim(node: str, quarantine: int, socket_path: str, as_json: bool) -> None:
    """Give the blocks of NODE back, which is dead and does not forward any more."""
    answer = Client(socket_path, _PATIENCE).post("/v1/ipam/reclaim", node=node, quarantine=quarantine)
    if as_json:
        click.echo(json.dumps(answer))
        return
    taken = ", ".join(answer["blocks"]) or "no block"
    click.echo(f"{taken} of node {node}: free in {quarantine} s")
