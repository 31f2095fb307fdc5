"""What changes a few at a time goes to the kernel past what waits: at once, and never past what must be before it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from config.kernel import NEXT_HOP_IDS
from config.nexthop import NextHop, NextHops
from config.prefix import Run, make
from routes.installer import Installer
from routes.interfaces import Interfaces
from routes.nexthops import Registry
from routes.table import Table
from routes.target import Kind, Target
from routes.writer import Job, RouteJob, Writer
from tests.bgp_ribs import Resolver

HOPS: NextHops = (NextHop("a", bytes((10, 0, 0, 2))),)
MANY = [Run(make(4, (20 << 24) + (n << 16) + (third << 8), 24) for third in range(256)) for n in range(40)]
ONE = make(4, 40 << 24, 16)


class Recorder:
    """A writer whose kernel takes its time; ``log`` gets who sends how many routes."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        assert isinstance(job, RouteJob)
        self.jobs.append(job)
        self.log.append(f"{self.name} {job.batch.size}")


class Fixture:
    def __init__(self, directory: Path) -> None:
        self.log: list[str] = []
        self.routes, self.urgent = Recorder("routes", self.log), Recorder("urgent", self.log)
        registry = Registry(resolver=Resolver(), interfaces=Interfaces(), ids=NEXT_HOP_IDS, protocol=201, objects=True)
        self.installer = Installer(
            registry,
            table=254,
            protocol=201,
            state_file=directory / "routes.json",
            on_results=print,
            on_unverified=print,
            on_room=lambda: None,
        )
        self.installer._writer = cast(Writer, self.routes)
        self.installer._urgent = cast(Writer, self.urgent)
        self.table: Table = self.installer.table(4, 20)
        self.target = Target(Kind.OTHER)

    def update(self, prefixes: Sequence[Sequence[bytes]], hops: NextHops | None = HOPS) -> None:
        self.table.update([(some, hops) for some in prefixes], lambda hops: self.target)
        self.installer.hurry(self.table)
        self.installer.schedule()


async def turn() -> None:
    """Let the loop do what is scheduled."""
    await asyncio.sleep(0)


async def test_it_goes_at_once(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    fixture.update(MANY)
    fixture.update([(ONE,)])
    assert fixture.log == ["urgent 1"]  # in the turn in which it was told, and before anything of the table
    await turn()
    assert {line.split()[0] for line in fixture.log[1:]} == {"routes"}


async def test_it_passes_the_last_batch_of_a_table(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    fixture.update(MANY[:1])
    await turn()
    fixture.update([(ONE,)])
    assert fixture.log == ["routes 256", "urgent 1"]


async def test_nothing_is_hurried_where_nothing_waits(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    fixture.update([(ONE,)])
    await turn()
    assert fixture.log == ["routes 1"]


async def test_it_does_not_pass_what_is_on_its_way_to_the_same_prefix(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    fixture.update([(ONE,)])
    await turn()
    fixture.update([(ONE,)], None)
    await turn()
    assert fixture.log == ["routes 1"]
    job = fixture.routes.jobs[0]
    job.done(job)
    await turn()
    assert fixture.log == ["routes 1", "routes 1"]
    assert cast(RouteJob, fixture.routes.jobs[1]).batch.parts[0].want is None
