"""Connects again and again: ``stranger_flood.py ADDRESS SECONDS RATE [HEX]``; prints how often as JSON.

Each connection comes from one of 10.1.1.1 to 10.1.1.8, sends the given octets and is reset at once. The rate
is an upper bound, kept by the clock.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time


def main() -> None:
    address, seconds, rate, octets = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), bytes.fromhex(sys.argv[4])
    start = time.monotonic()
    made = 0
    while (now := time.monotonic()) < start + seconds:
        ahead = made / rate - (now - start)
        if ahead > 0.002:
            time.sleep(ahead)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.bind((f"10.1.1.{made % 8 + 1}", 0))
            try:
                sock.connect((address, 179))
                made += 1
                if octets:
                    sock.send(octets)
            except OSError:  # turned away so soon that the reset came first
                continue
    print(json.dumps({"made": made}))


if __name__ == "__main__":
    main()
