"""Agents in namespaces on one bridge, with one store and a mesh of sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.agents import PATIENCE, Agent
from tests.etcd import Etcd
from tests.netns import Netns, link

STORE = "10.0.0.254"
"""Where etcd is, in the bridge's namespace."""


class Bridge:
    """None of its agents is started; they share ``store.db`` in the directory, or etcd where there is one."""

    def __init__(self, make: Callable[[], Netns], directory: Path, running: list[Agent], *, etcd: bool = False) -> None:
        self.make, self.directory, self.running = make, directory, running
        self.switch = make()
        self.switch.run("ip", "link", "add", "br0", "type", "bridge")
        self.switch.run("ip", "link", "set", "br0", "up")
        self.switch.run("ip", "addr", "add", f"{STORE}/24", "dev", "br0")
        self.etcd = Etcd(hosts=[STORE], wrap=self.switch.command()) if etcd else None

    @property
    def store(self) -> str:
        return self.etcd.url if self.etcd else f"sqlite://{self.directory}/store.db"

    def close(self) -> None:
        if self.etcd is not None:
            self.etcd.close()

    def plug(self, number: int) -> Netns:
        ns = self.make()
        link(ns, "eth0", self.switch, f"p{number}")
        self.switch.run("ip", "link", "set", f"p{number}", "master", "br0")
        ns.run("ip", "addr", "add", f"10.0.0.{number}/24", "dev", "eth0")
        return ns

    def agent(self, number: int, *, asn: int = 65000, mesh: dict[str, Any] | None = None, **config: Any) -> Agent:
        policies = {"import": "accept", "export": "accept", "holdTime": 9}
        node = {"name": f"n{number}", "as": asn, "routerId": f"192.0.2.{number}", "addresses": [f"10.0.0.{number}"]}
        agent = Agent(
            self.plug(number),
            self.directory,
            f"n{number}",
            asn,
            node=node,
            store=self.store,
            pools={"p": {"cidr": "10.64.0.0/16"}},
            mesh={"all": {"select": {}, **policies, **(mesh or {})}},
            **{"ipam": {"lease": 3}, **config},
        )
        self.running.append(agent)
        return agent


async def established(agent: Agent, *names: str, pause: float = 0.05) -> dict[str, Any]:
    """Return an agent's sessions once they are exactly these, all established."""
    async with asyncio.timeout(PATIENCE):
        while True:
            peers = {peer["name"]: peer for peer in await asyncio.to_thread(agent.client.get, "/v1/peers")}
            if set(peers) == set(names) and all(peer["state"] == "Established" for peer in peers.values()):
                return peers
            await asyncio.sleep(pause)
