"""Packets of a node's interface, captured by tcpdump into a pcap file on the host."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from labs.errors import LabError
from labs.node import Node
from labs.processes import Process
from labs.rights import may_set_groups
from labs.waiting import off_loop

_SNIFF = Path(__file__).with_name("sniff.py")
_LONGEST_DRAIN = 10.0


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
            await off_loop(lambda: end(process))
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


def end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a capture when it has written the packets that have come so far. Blocks meanwhile, 10 s at most.

    Interrupted in between, it would leave those that it has not read yet: it waits for packets when there are none.
    """
    capturing = Process.of(process.pid)
    deadline = time.monotonic() + _LONGEST_DRAIN
    while capturing is not None and not capturing.waiting() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)


def command(interface: str, expression: tuple[str, ...] = ()) -> list[str]:
    """Return the command that writes a capture to its standard output, packet by packet."""
    if not may_set_groups():
        return ["/usr/bin/python3", "-I", str(_SNIFF), interface, *expression]
    # It stays root: a node's files may be out of reach of tcpdump's own user.
    return ["tcpdump", "-Z", "root", "-n", "-U", "--immediate-mode", "-i", interface, "-w", "-", *expression]
