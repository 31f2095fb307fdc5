"""What the agent's answers look like to a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from agent.durations import duration

Answer = Mapping[str, Any]

_UNLIMITED = 10_000
"""Columns of what is no terminal."""
_FOLDED = {
    "ADDRESSES",
    "ADVERTISED TO",
    "AS PATH",
    "BY",
    "DESIRED",
    "IN THE KERNEL",
    "NODES",
    "RULE",
    "WHY",
    "WHY NOT",
    "processes",
}
"""Columns of sentences and lists, which take several lines where the terminal is too narrow. The others never do."""
_NARROWEST = 16
_STATE_STYLE = {"Established": "green", "Idle": "red", "Active": "red", "Connect": "yellow"}


def status(answer: Answer) -> None:
    console = _console()
    node = answer["node"]
    console.print(Text.assemble(("node ", "dim"), (node["name"], "bold"), f"  AS {node['as']}  {node['routerId']}"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(
        "agent",
        f"podroute {answer['version']} ({answer['form']['name']}), {answer['state']}, up {duration(answer['uptime'])}",
    )
    if answer["converged"]:
        grid.add_row("converged", Text("yes", "green"))
    else:
        for row, reason in enumerate(answer["waitingFor"] or ["starting"]):
            grid.add_row("waiting for" if not row else "", Text(reason, "yellow"))
    grid.add_row("sessions", f"{answer['peers']['established']} of {answer['peers']['configured']} established")
    for row, made in enumerate(answer["listenRanges"]):
        text = f"{made['name']} ({made['prefix']}): {made['peers']} of at most {made['limit']} dynamic neighbours"
        if made["refusedConnections"]:
            text += f", {made['refusedConnections']} connections refused"
        grid.add_row("listen ranges" if not row else "", text)
    store = answer["store"]
    grid.add_row("store", Text(f"away: {store['problem']}", "red") if store["problem"] else store["url"])
    if store["fenced"]:
        grid.add_row("FENCED", Text("blocks withdrawn and containers refused until the store is back", "bold red"))
    if store["lostBlocks"]:
        grid.add_row("LOST BLOCKS", Text(", ".join(store["lostBlocks"]), "bold red"))
    grid.add_row("blocks", ", ".join(answer["blocks"]) or "none")
    grid.add_row("pods", str(answer["pods"]))
    for family, counts in answer["fib"].items():
        grid.add_row(f"FIB {family}", ", ".join(f"{count} {state}" for state, count in counts.items()) or "empty")
    if answer["silentGateways"]:
        grid.add_row("do not answer", Text(", ".join(answer["silentGateways"]), "yellow"))
    for row, finding in enumerate(answer["findings"]):
        grid.add_row("findings" if not row else "", Text(finding, "yellow"))
    console.print(grid)


def peers(answer: Iterable[Answer]) -> None:
    table = _table("PEER", "ADDRESS", "AS", "STATE", "FOR", "FAMILY", "RECEIVED", "ACCEPTED", "ADVERTISED", "WHY")
    for peer in answer:
        state = Text(peer["state"], _STATE_STYLE.get(peer["state"], "yellow"))
        address = peer["address"] + (f" (in {peer['listenRange']})" if peer["dynamic"] else "")
        first = [peer["name"], address, str(peer["as"] or "?"), state, duration(peer["for"])]
        why = peer["problem"] or ""
        for family, counts in peer["families"].items() or [("", None)]:
            cells = [family, "", "", "", why]
            if counts is not None:
                numbers = [str(counts[key]) for key in ("received", "accepted", "advertised")]
                cells = [family, *numbers, counts["problem"] or why]
            table.add_row(*first, *cells)
            first, why = [""] * 5, ""
    _print(table, "no peers are configured")


def reloaded(answer: Answer) -> None:
    """What a reload did, or would do, a line each."""
    texts = {
        "resets": "session resets",
        "added": "peer begins",
        "removed": "peer ends",
        "policies": "policies change",
        "limits": "limit changes",
        "advertised": "is advertised",
        "withdrawn": "is withdrawn",
        "onlink": "on-link interface changes",
        "checkNeighbours": "takes effect at once",
        "resilient": "routes move to such next-hop groups",
        "metrics": "metrics are served there",
    }
    lines = [f"{name}: {what}" for key, what in texts.items() for name in answer[key]]
    console = _console()
    console.print("reloaded" if answer["applied"] else "would change (nothing is done)")
    for line in lines or ["nothing changes"]:
        console.print(f"  {line}", highlight=False)


def routes(answer: Iterable[Answer]) -> None:
    table = _table("PREFIX", "", "NEXT HOP", "PEER", "PREF", "AS PATH", "KERNEL", "WHY")
    for route in answer:
        kernel = Text(route["kernel"], "green" if route["kernel"] == "installed" else "yellow")
        first: list[str | Text] = [route["prefix"]]
        for path in route["paths"] or [None]:
            if path is None:
                table.add_row(*first, "", "", "", "", "", kernel, route["problem"] or "")
                continue
            mark = "*" if path["used"] else ""
            origin = _origin(path)
            cells = [mark, path["nextHop"] or "-", origin, str(path["localPref"]), path["asPath"]]
            table.add_row(*first, *cells, kernel, path["reason"] or route["problem"] or "")
            first, kernel = [""], Text("")
    _print(table, "no routes")


def route(answer: Sequence[Answer]) -> None:
    """One prefix: its paths, and what the kernel holds."""
    routes(answer)
    for one in answer:
        _kernel(one["fib"])


def _kernel(rows: Iterable[Answer]) -> None:
    """What is desired of one prefix beside what the kernel holds."""
    table = _table("METRIC", "WHOSE", "DESIRED", "IN THE KERNEL", "STATE", "WHY")
    for row in rows:
        state = Text(row["state"], "green" if row["state"] == "installed" else "yellow")
        desired, kernel = (", ".join(row[side]) or "-" for side in ("desired", "kernel"))
        table.add_row(str(row["metric"]), row["owner"], desired, kernel, state, row["why"])
    _print(table, "no routes, neither desired nor in the kernel")


def _origin(path: Answer) -> str:
    """Say who announced a path, and with which identifier (RFC 7911)."""
    number = "" if path["pathId"] is None else f" path {path['pathId']}"
    return f"{path['peer'] or path['owner']}{number}"


def explain(answer: Answer) -> None:
    console = _console()
    about = "" if answer["asked"] == answer["prefix"] else f", which answers for {answer['asked']}"
    console.print(Text.assemble((answer["prefix"], "bold"), about))
    for line in answer["summary"]:
        console.print(f"  {line}", markup=False, highlight=False)
    table = _table("", "FROM", "NEXT HOP", "REACHED", "PREF", "AS PATH", "RULE", "WHY NOT")
    for path in answer["paths"]:
        mark = Text("best", "green") if path["best"] else Text("used", "green") if path["used"] else Text("")
        origin = _origin(path)
        cells = [path["nextHop"] or "-", path["reached"], str(path["localPref"]), path["asPath"], path["rule"]]
        table.add_row(mark, origin, *cells, path["reason"])
    _print(table, "no paths")
    _kernel(answer["fib"])
    exports = _table("TOLD TO", "", "PATH", "BY")
    for export in answer["exports"]:
        which = " ".join(str(part) for part in (export["origin"], export["pathId"]) if part)
        exports.add_row(export["peer"], "yes" if export["advertised"] else "no", which, export["reason"])
    _print(exports, "told to nobody")


def blocks(answer: Iterable[Answer]) -> None:
    table = _table("BLOCK", "POOL", "USED", "RESERVED", "FREE", "ADVERTISED TO")
    for block in answer:
        table.add_row(
            block["prefix"],
            block["pool"],
            str(block["used"]),
            str(block["reserved"]),
            str(block["free"]),
            ", ".join(block["advertisedTo"]) or Text("nobody", "yellow"),
        )
    _print(table, "this node owns no block")


def pods(answer: Iterable[Answer]) -> None:
    table = _table("CONTAINER", "NAME", "IF", "ADDRESSES", "HOST IF", "NETWORK")
    for pod in answer:
        addresses = ", ".join(pod["addresses"])
        table.add_row(pod["containerId"][:13], pod["name"], pod["ifname"], addresses, pod["hostIfname"], pod["network"])
    _print(table, "no pods")


def ipam_show(answer: Answer) -> None:
    table = _table("POOL", "CIDR", "BLOCKS", "CLAIMED", "ADDRESSES", "USED", "")
    for pool in answer["pools"]:
        table.add_row(
            pool["name"],
            pool["cidr"],
            str(pool["blocks"]),
            str(pool["claimed"]),
            str(pool["addresses"]),
            str(pool["used"]),
            _share(pool["used"], pool["addresses"]),
        )
    _print(table, "no pools")
    table = _table("NODE", "POOL", "BLOCKS", "ADDRESSES", "USED", "", "")
    for node in answer["nodes"]:
        cells = [node["name"], node["pool"], str(node["blocks"]), str(node["size"]), str(node["used"])]
        alive = Text("") if node["alive"] else Text("dead", "red")
        table.add_row(*cells, _share(node["used"], node["size"]), alive)
    _print(table, "no node owns a block")


_CELLS = {"used": ("█", "red"), "resting": ("▒", "yellow"), "reserved": ("r", "blue"), "free": ("·", "green")}


def ipam_picture(answer: Answer) -> None:
    console = _console()
    cells = answer["cells"]
    counts = {state: cells.count(state) for state in _CELLS}
    console.print(Text.assemble((answer["block"], "bold"), f" of node {answer['node']}, one cell an address"))
    for start in range(0, len(cells), 64):
        row = Text(f"{start:>5} ", "dim")
        for state in cells[start : start + 64]:
            row.append(*_CELLS[state])
        console.print(row)
    legend = Text("      ")
    for state, (cell, style) in _CELLS.items():
        legend.append(cell, style).append(f" {counts[state]} {state}  ")
    console.print(legend)


def ipam_blocks(answer: Iterable[Answer]) -> None:
    table = _table("BLOCK", "POOL", "NODE", "USED", "RESERVED", "CLAIMED AT", "GENERATION")
    for block in answer:
        counts = ["" if block[key] is None else str(block[key]) for key in ("used", "reserved")]
        cells = [block["prefix"], block["pool"], block["owner"], *counts, block["claimedAt"], str(block["generation"])]
        table.add_row(*cells)
    _print(table, "no blocks")


def ipam_pools(answer: Iterable[Answer]) -> None:
    table = _table("POOL", "CIDR", "BLOCKS OF", "NODES", "")
    for pool in answer:
        nodes = ", ".join(f"{label}={value}" for label, value in pool["nodes"].items()) or "all"
        flags = [flag for flag in ("disabled", "manual", "notAdvertised") if pool[flag]]
        flags += [f"reserved {one}" for one in pool["reservations"]]
        if split := pool["splitBy"]:
            flags.append(f"split by {split['label']} into /{split['size']}")
            flags += [f"{prefix} for {value}" for prefix, value in pool.get("superBlocks", {}).items()]
        table.add_row(pool["name"], pool["cidr"], f"/{pool['blockSize']}", nodes, ", ".join(flags))
    _print(table, "no pools")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table, empty: str) -> None:
    if table.row_count:
        show(table)
    else:
        _console().print(Text(empty, "dim"))


def show(table: Table) -> None:
    """Print a table; what is wider than the terminal is left to the terminal, so that no prefix is cut in two."""
    for column in table.columns:
        column.no_wrap = column.header not in _FOLDED
        width = max(Text.from_markup(str(cell)).cell_len for cell in (column.header, *column.cells))
        column.min_width = width if column.no_wrap else min(width, _NARROWEST)
    console = _console()
    least = Measurement.get(console, console.options.update(width=_UNLIMITED), table).minimum
    console.size = ConsoleDimensions(max(console.width, least), console.height)
    console.print(table)


def _console() -> Console:
    """Return where answers go: a row is one line where it is no terminal, for `grep` and the like."""
    console = Console()
    return console if console.is_terminal else Console(width=_UNLIMITED)
