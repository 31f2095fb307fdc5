"""Packets of a node's interface, captured by tcpdump into a pcap file on the host."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import IO

from labs.errors import LabError
from labs.node import Node
from labs.rights import may_set_groups
from labs.waiting import off_loop

_SNIFF = Path(__file__).with_name("sniff.py")


class Capture:
    """``async with Capture(node, "eth1", "tcp port 179") as packets``: captures until the block ends.

    The file is ``packets.path``, ``INTERFACE.pcap`` among the node's logs by default, which a saved lab contains.
    """

    def __init__(self, node: Node, interface: str = "any", *expression: str, path: Path | None = None) -> None:
        self.node = node
        self.path = path or node.directory / f"{interface}.pcap"
        self._argv = command(interface, expression)
        self._file: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start, and wait until the interface is listened on. Raises LabError with what tcpdump said."""
        self._file = self.path.open("wb")
        self._process = self.node.popen(*self._argv, stdout=self._file, stderr=subprocess.PIPE)
        stream = self._process.stderr
        said = []
        while stream is not None and (line := await off_loop(stream.readline)):
            said.append(line.decode(errors="replace").strip())
            if "listening on" in said[-1]:
                return
        await self.stop()
        raise LabError(f"node {self.node.name}: tcpdump did not start: {' / '.join(said)}")

    async def stop(self) -> None:
        """End the capture; what was captured is in the file then."""
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(signal.SIGINT)
            await off_loop(process.communicate)
        if self._file is not None:
            self._file.close()

    async def __aenter__(self) -> Capture:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop()


def command(interface: str, expression: tuple[str, ...] = ()) -> list[str]:
    """Return the command that writes a capture to its standard output, packet by packet."""
    if not may_set_groups():
        return ["/usr/bin/python3", "-I", str(_SNIFF), interface, *expression]
    # It stays root: a node's files may be out of reach of tcpdump's own user.
    return ["tcpdump", "-Z", "root", "-n", "-U", "--immediate-mode", "-i", interface, "-w", "-", *expression]
