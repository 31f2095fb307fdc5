"""The command line of labs: ``podroute lab up|down|ps|exec``, and what labs.looking adds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from typing import Any

import click
from rich.table import Table

from agent import tables
from labs import looking
from labs.errors import LabError
from labs.lab import Lab, load, resolve
from labs.processes import sharing
from labs.teardown import take_down


class _Group(click.Group):
    """Shows what an operator can cause as one message, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LabError as error:
            raise click.ClickException(str(error)) from None
        except PermissionError as error:
            raise click.ClickException(f"{error.filename or error}: not permitted, run this as root") from None
        except OSError as error:
            if error.filename is None:
                raise
            raise click.ClickException(f"{error.filename}: {error.strerror}") from None


@click.group(cls=_Group)
def lab() -> None:
    """Networks of routers and nodes on this machine, from containerlab's topology files, without Docker."""


@lab.command()
@click.argument("topology")
@click.option("--name", help="Name of the lab, instead of the one in the file.")
@click.option("--check", is_flag=True, help="Only check the file.")
@click.option("--quiet", "-q", is_flag=True, help="Print no progress.")
def up(topology: str, name: str | None, check: bool, quiet: bool) -> None:
    """Build the lab of a TOPOLOGY file (*.clab.yml), or of a shipped topology by its name (two-racks, one-tor).

    The lab stays up until `podroute lab down`. Exit status 1 where it could not be built, or something in it failed.
    """
    plan = load(topology, name=name)
    if check:
        click.echo(f"{resolve(topology)}: {len(plan.nodes)} nodes, {len(plan.links)} links, no faults")
        return
    built = asyncio.run(_up(topology, name, quiet))
    if built.problems:
        raise click.ClickException(f"lab `{built.name}` is up, with problems:\n" + "\n".join(built.problems))
    if not quiet:
        click.echo(f"podroute lab exec {built.name} NODE COMMAND... runs a command in a node")
        click.echo(f"podroute lab down {built.name} removes the lab")


async def _up(topology: str, name: str | None, quiet: bool) -> Lab:
    building = asyncio.ensure_future(
        Lab.up(topology, name=name, progress=None if quiet else lambda line: click.echo(line, err=True))
    )
    # What was built is removed on SIGTERM too.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, building.cancel)
    try:
        return await building
    except asyncio.CancelledError:
        raise click.Abort from None


@lab.command()
@click.argument("labs", metavar="LAB...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove every lab on this machine.")
def down(labs: tuple[str, ...], everything: bool) -> None:
    """Remove labs by name, complete or half-made, with everything that runs in them."""
    if not labs and not everything:
        raise click.UsageError("name the labs to remove, or say --all")
    absent = []
    for name in Lab.names() if everything else labs:
        if take_down(name, waiting=lambda: click.echo("a runner is building this lab, waiting for it", err=True)):
            click.echo(f"lab {name} is down")
        else:
            absent.append(name)
    if absent:
        raise LabError(f"no lab {', '.join(absent)} is up, labs here: {', '.join(Lab.names()) or 'none'}")


@lab.command()
@click.argument("name", metavar="[LAB]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(name: str | None, as_json: bool) -> None:
    """List labs, their nodes and what runs in them."""
    found = [_listing(known) for known in ([name] if name else Lab.names())]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("no lab is up")
        return
    table = Table("lab", "node", "image", "labels", "processes", box=None, pad_edge=False)
    for entry in found:
        if entry["state"] != "up":
            table.add_row(entry["name"], "", "", "", f"not complete, podroute lab down {entry['name']}")
        for node in entry["nodes"]:
            labels = " ".join(f"{key}={value}" for key, value in node["labels"].items())
            running = " ".join(f"{process['name']}[{process['pid']}]" for process in node["processes"])
            state = running if node["alive"] else "gone"
            table.add_row(entry["name"], node["name"], node["image"], labels, state)
    tables.show(table)


def _listing(name: str) -> dict[str, Any]:
    try:
        net = Lab.find(name, look=True)
        record = net.describe()
    except LabError:
        if name not in Lab.names():
            raise
        return {"name": name, "state": "incomplete", "nodes": []}
    nodes = []
    for node in net.nodes.values():
        known = record["nodes"][node.name]
        space = node.namespaces
        others = [process for process in sharing(space.identities(), ("pid",)) if process != space.holder]
        nodes.append(
            {
                "name": node.name,
                "kind": known["kind"],
                "image": known["image"],
                "labels": known["labels"],
                "alive": space.alive(),
                "pid": space.holder.pid,
                "netns": node.netns,
                "logs": known["logs"],
                "processes": [{"pid": process.pid, "name": _name(process.pid)} for process in others],
            }
        )
    return {
        "name": name,
        "state": "up",
        "topology": record["topology"],
        "created": record["created"],
        "nodes": nodes,
        "links": record["links"],
    }


def _name(pid: int) -> str:
    with suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return file.read().strip()
    return "?"


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", metavar="LAB")
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def execute(ctx: click.Context, name: str, node: str, command: tuple[str, ...]) -> None:
    """Run a command in a node of a lab, without a shell, on this terminal; the exit status is the command's."""
    if command[0] == "--" and len(command) > 1:
        command = command[1:]
    environment = {known: os.environ[known] for known in ("TERM", "COLUMNS", "LINES") if known in os.environ}
    child = Lab.find(name).node(node).popen(*command, env=environment, stdin=None, stdout=None, stderr=None)
    # The terminal sends Ctrl-C to the command too; what it does about it is its own affair.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = child.wait()
    ctx.exit(status if status >= 0 else 128 - status)


for _command in (looking.logs, looking.graph, looking.pcap, looking.impair, looking.save_lab):
    lab.add_command(_command)
