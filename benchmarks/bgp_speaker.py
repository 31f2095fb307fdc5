"""podroute's speaker as a process of its own, to be measured like any other daemon: no kernel routes, no agent.

Takes its configuration as JSON on the command line; answers each line on standard input with a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from agent.garbage import GarbageCollector, promote
from bgp.policy import Match, Policy, Rule
from bgp.settings import PeerSettings
from bgp.speaker import Speaker
from config.nexthop import Gateway, NextHops, Resolution
from config.prefix import Family

EVERYTHING = Policy(rules=(Rule("all", True, Match(sources=frozenset(("block", "static", "learned")))),))
NOTHING = Policy()
OWN = Policy(accept=True)

_TICK = 0.002


class OnLink:
    """Every next hop is on the link, as it is in the benchmark's topology."""

    def lookup(self, address: bytes, device: str = "") -> Resolution | None:
        return Resolution((Gateway(address, device or "eth0"),), 0)

    def local(self, session_address: bytes, family: Family) -> bytes | None:
        return session_address if family == 4 else None


class Measured:
    """A running speaker with a clock beside it that tells how long the event loop was held."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.routes = 0
        self.longest = self.longest_cpu = 0.0
        self._watching = True
        self._speaker = Speaker(
            asn=config["as"],
            router_id=socket.inet_aton(config["address"]),
            resolver=OnLink(),
            on_fib=self._on_fib,
            on_session=lambda change: promote(),
            listen=[(config["address"], 179)],
        )
        for peer in config["peers"]:
            settings = PeerSettings(
                name=peer["address"],
                address=peer["address"],
                asn=peer["as"],
                import_policy=OWN,
                export_policy=OWN if config.get("ownOnly") else EVERYTHING if peer["receives"] else NOTHING,
                families=frozenset((4,)),
                passive=True,
                hold_time=peer.get("holdTime", 90),
            )
            self._speaker.add_peer(settings)

    async def run(self) -> None:
        collector = GarbageCollector()
        collector.start()
        await self._speaker.start()
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        print("ready", flush=True)
        watch = loop.create_task(self._watch())
        while line := await reader.readline():
            command = json.loads(line)
            self._obey(command)
            counts = [peer.families[4] for peer in self._speaker.peers()]
            answer = {
                "received": sum(count.received for count in counts),
                "advertised": sum(count.advertised for count in counts),
                "routes": self.routes,
                "longest": self.longest,
                "longestCpu": self.longest_cpu,
                "collection": collector.longest,
                "idle": self._speaker.idle,
                "cpu": time.process_time(),
            }
            print(json.dumps(answer), flush=True)
            if command.get("reset"):
                self.longest = self.longest_cpu = 0.0
        watch.cancel()

    def _obey(self, command: dict[str, Any]) -> None:
        if "originate" in command:
            prefix = bytes.fromhex(command["originate"])
            self._speaker.originate(4, prefix, owner="benchmark", source="static")
        if "watch" in command:
            self._watching = command["watch"]

    async def _watch(self) -> None:
        while True:
            before, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(_TICK if self._watching else 0.2)
            if self._watching:
                self.longest = max(self.longest, time.perf_counter() - before - _TICK)
                self.longest_cpu = max(self.longest_cpu, time.thread_time() - cpu)

    def _on_fib(self, family: Family, changes: list[tuple[Sequence[bytes], NextHops | None]]) -> None:
        self.routes += sum(len(prefixes) for prefixes, _ in changes)


if __name__ == "__main__":
    asyncio.run(Measured(json.loads(sys.argv[1])).run())
