"""A podroute speaker for the suite, that passes on what it learns: ``python -m ... < FILE``, ends with its input.

The first line of its input is JSON: ``asn``, ``address``, and ``peers``, a list of ``[address, AS, passive]``.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from dataclasses import dataclass

from bgp.policy import ACCEPT, Match, Policy, Rule
from bgp.settings import AddPath, PeerSettings
from bgp.speaker import Speaker
from config.nexthop import Gateway, Resolution
from config.prefix import Family

PASS_ON = Policy((Rule("learned", True, Match(sources=frozenset(("learned",)))),), accept=True)


@dataclass(frozen=True)
class OnLink:
    """Every next hop is a neighbour; ``own6`` is our own one for IPv6."""

    own6: bytes

    def lookup(self, address: bytes, device: str = "") -> Resolution | None:
        return Resolution((Gateway(address, device or "eth0"),), 0)

    def local(self, session_address: bytes, family: Family) -> bytes | None:
        return session_address if len(session_address) == (4 if family == 4 else 16) else self.own6


async def main() -> None:
    given = json.loads(sys.stdin.readline())
    speaker = Speaker(
        asn=given["asn"],
        router_id=socket.inet_aton(given["address"]),
        resolver=OnLink(socket.inet_pton(socket.AF_INET6, given["address6"])),
        on_fib=lambda family, batch: None,
        on_session=lambda change: None,
        listen=((given["address"], 179),),
    )
    for address, asn, passive in given["peers"]:
        speaker.add_peer(
            PeerSettings(
                name=address,
                address=address,
                asn=asn,
                import_policy=ACCEPT,
                export_policy=PASS_ON,
                local_address=given["address"],
                passive=passive,
                add_path=AddPath(receive=True),
                connect_retry=1.0,
            )
        )
    await speaker.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await speaker.stop(notification=None)


if __name__ == "__main__":
    asyncio.run(main())
