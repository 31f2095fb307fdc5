"""Packets of an interface as a pcap stream on standard output, where tcpdump itself cannot capture.

It is executed by itself in a node: `python3 -I sniff.py INTERFACE [FILTER]...`; `any` stands for all interfaces.
tcpdump gives up root's rights by taking groups, which a user namespace without other users forbids; it still compiles
filters.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import subprocess
import sys
import time

ETH_P_ALL = 3
SO_ATTACH_FILTER = 26
LONGEST = 262144
ETHERNET, COOKED = 1, 113
"""Link types of a pcap file; the second, LINUX_SLL, has a made-up header in place of the link's own."""


def main(interface: str, expression: list[str]) -> str | None:
    """Capture until interrupted; return what is wrong."""
    cooked = interface == "any"
    if cooked and expression:
        return "a filter needs an interface: name one in place of `any`"
    kind = socket.SOCK_DGRAM if cooked else socket.SOCK_RAW
    with socket.socket(socket.AF_PACKET, kind, 0) as packets:
        if expression:
            compiled = subprocess.run(
                ["tcpdump", "-ddd", "-y", "EN10MB", *expression], stdout=subprocess.PIPE, text=True
            )
            if compiled.returncode:
                return f"no filter: {' '.join(expression)}"
            _attach(packets, compiled.stdout)
        packets.bind(("" if cooked else interface, ETH_P_ALL))
        print(f"listening on {interface}", file=sys.stderr, flush=True)
        out = sys.stdout.buffer
        out.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, LONGEST, COOKED if cooked else ETHERNET))
        out.flush()
        while True:
            data, (_, protocol, packet_type, hardware, address) = packets.recvfrom(LONGEST)
            seconds, rest = divmod(time.time_ns(), 10**9)
            if cooked:
                data = struct.pack("!HHH8sH", packet_type, hardware, len(address), address[:8], protocol) + data
            out.write(struct.pack("=IIII", seconds, rest // 1000, len(data), len(data)) + data)
            out.flush()


def _attach(packets: socket.socket, program: str) -> None:
    """Give the socket a filter: lines of four numbers, after one that counts them (bpf(4), sock_fprog)."""
    lines = [tuple(map(int, line.split())) for line in program.splitlines()[1:]]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    packets.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(lines), ctypes.addressof(code)))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2:]))
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error.strerror}")
    except KeyboardInterrupt:
        pass
