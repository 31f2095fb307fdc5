"""``podroute lab logs|graph|pcap|impair|save``: look into a running lab, and disturb it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import click

from labs import capture
from labs.errors import LabError
from labs.impairments import Link
from labs.lab import Lab
from labs.saving import draw, fresh_folder, save


@click.command()
@click.argument("name", metavar="LAB")
@click.argument("nodes", metavar="[NODE]...", nargs=-1)
@click.option("--follow", "-f", is_flag=True, help="Go on as the logs grow, until Ctrl-C.")
def logs(name: str, nodes: tuple[str, ...], follow: bool) -> None:
    """Print the logs of all nodes, or of those named: of their commands, FRR's daemons and what `exec` did."""
    net = Lab.find(name)
    chosen = [net.node(node) for node in nodes] or list(net.nodes.values())
    if not follow:
        for node in chosen:
            click.echo(node.logs(), nl=False)
        return
    files: dict[Path, IO[str]] = {}
    with ExitStack() as stack:
        while any(node.namespaces.alive() for node in chosen):
            for node in chosen:
                for path in sorted(node.directory.rglob("*.log")):
                    if path not in files:
                        files[path] = stack.enter_context(path.open(errors="replace"))
                    for line in files[path]:
                        click.echo(f"{node.name} {path.stem}: {line}", nl=not line.endswith("\n"))
            time.sleep(0.2)


@click.command()
@click.argument("name", metavar="LAB")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Write to this file.  [default: LAB.svg; - prints]"
)
def graph(name: str, output: Path | None) -> None:
    """Draw a lab as SVG: nodes, links, the state of every session, routes learned."""
    picture = asyncio.run(draw(Lab.find(name)))
    if str(output) == "-":
        click.echo(picture, nl=False)
        return
    path = output or Path(f"{name}.svg")
    path.write_text(picture)
    click.echo(str(path))


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", metavar="LAB")
@click.argument("place", metavar="NODE[:INTERFACE]")
@click.argument("expression", metavar="[FILTER]...", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--output", "-w", type=click.Path(path_type=Path), help="Write packets to this file; - is standard output."
)
@click.pass_context
def pcap(ctx: click.Context, name: str, place: str, expression: tuple[str, ...], output: Path | None) -> None:
    """Capture packets in a node, on one interface or all, until Ctrl-C.

    Options go before LAB. Without --output packets are printed as text; `-w - LAB n1:eth1 | wireshark -k -i -` shows
    them as they come.
    """
    node, _, interface = place.partition(":")
    with ExitStack() as stack:
        stdout: IO[bytes] | None = None
        printer = None
        if output is None:
            # Started before this process enters the lab of an ordinary user, where tcpdump does not run.
            printer = subprocess.Popen(["tcpdump", "-n", "-l", "-r", "-"], stdin=subprocess.PIPE)
            stdout = printer.stdin
        elif str(output) != "-":
            stdout = stack.enter_context(output.open("wb"))
        try:
            found = Lab.find(name).node(node)
        except LabError:
            if printer is not None:
                printer.kill()  # it would complain of a capture without a beginning
                printer.wait()
            raise
        argv = capture.command(interface or "any", expression)
        child = found.popen(*argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=None)
        if printer is not None and printer.stdin is not None:
            # The capture holds the other end: when it ends, so does the printer.
            printer.stdin.close()
        # Ctrl-C reaches it too, which then writes out what it has and ends.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _ending(child))
        status = child.wait()
        if printer is not None:
            printer.wait()
    ctx.exit(status if status >= 0 else 128 - status)


def _ending(child: subprocess.Popen[bytes]) -> Callable[[int, object], None]:
    return lambda *_: capture.end(child)


@click.command()
@click.argument("name", metavar="LAB")
@click.argument("place", metavar="NODE:INTERFACE")
@click.option("--rate", help="Send at most this much, `10mbit`.")
@click.option("--loss", type=float, help="Lose this many packets of 100, at random; 100 loses all.")
@click.option("--limit", type=int, help="Pass at most this many packets per second.")
@click.option(
    "--direction",
    type=click.Choice(["out", "in", "both"]),
    default="out",
    show_default=True,
    help="Which packets --loss and --limit hit: those this end sends, gets, or both.",
)
@click.option("--down", "state", flag_value="down", help="Set the interface down: both ends lose their carrier.")
@click.option("--up", "state", flag_value="up", help="Set the interface up.")
@click.option("--clear", is_flag=True, help="Remove every impairment of this link first.")
def impair(
    name: str,
    place: str,
    rate: str | None,
    loss: float | None,
    limit: int | None,
    direction: str,
    state: str | None,
    clear: bool,
) -> None:
    """Disturb a link: a rate, loss in one direction, a packet limit, no carrier. Shows what is set then."""
    if loss is not None and limit is not None:
        raise click.UsageError("--loss and --limit are one rule: give one of them")

    async def work() -> str:
        link = Link.find(Lab.find(name), place)
        if clear:
            await link.clear()
        if rate is not None:
            await link.rate(rate)
        if loss is not None:
            await link.lose(loss, direction=direction)
        if limit is not None:
            await link.limit(limit, direction=direction)
        if state is not None:
            await (link.down() if state == "down" else link.up())
        return await link.show()

    click.echo(asyncio.run(work()))


@click.command("save")
@click.argument("name", metavar="LAB")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), required=False)
def save_lab(name: str, folder: Path | None) -> None:
    """Write routes, sessions, logs, captures and the picture of a lab into one FOLDER, and print its path."""
    if folder is not None and folder.is_dir() and any(folder.iterdir()):
        raise LabError(f"{folder} is not empty: name a folder that is, or a new one")
    net = Lab.find(name)
    click.echo(str(asyncio.run(save(net, folder or fresh_folder(name)))))
