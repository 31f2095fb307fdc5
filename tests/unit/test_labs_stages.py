"""Stages: what waits for what, cycles, and which links are attached one end after the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from labs.errors import CommandError, LabError
from labs.lifecycle import Lifecycle, apart, until_healthy
from labs.stages import Stage, StageExec, StagePlan
from labs.topology import Healthcheck, Topology
from tests.labs_files import Reader


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


CHECK = "healthcheck: {test: [CMD, 'true']}, cmd: sleep 1, "


def nodes(more: str = "", **stages: str) -> str:
    """Return a topology whose nodes have these ``stages`` each."""
    listed = "".join(f"    {name}: {{{CHECK}stages: {text}}}\n" for name, text in stages.items())
    return f"name: x\ntopology:\n  defaults: {{kind: linux, image: alpine}}\n  nodes:\n{listed}{more}"


def wait(stage: str, node: str, other: str) -> str:
    return f"{{{stage}: {{wait-for: [{{node: {node}, stage: {other}}}]}}}}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            nodes(a=wait("create", "b", "create"), b=wait("create", "a", "create")),
            "a:create waits for b:create waits for a:create",
        ),
        (
            nodes(
                a=wait("create", "b", "healthy"),
                b=wait("configure", "c", "create-links"),
                c=wait("create", "a", "create"),
            ),
            "a:create waits for b:healthy waits for b:configure waits for c:create-links waits for c:create waits for "
            "a:create",
        ),
        (nodes(a=wait("create", "a", "create")), "a:create waits for a:create"),
        (
            nodes("    s: {network-mode: 'container:a'}\n", a=wait("create", "s", "create")),
            "a:create waits for s:create waits for a:create",
        ),
    ],
)
def test_a_cycle_is_refused_and_named(reader: Reader, text: str, told: str) -> None:
    right = "remove one of these `wait-for` or `network-mode`"
    assert reader.faults(text) == [f"topology.nodes: {told}, {right}"]


def test_two_nodes_may_wait_for_different_stages_of_each_other(reader: Reader) -> None:
    plan = reader.read(nodes(a=wait("configure", "b", "create-links"), b=wait("create-links", "a", "create")))
    assert plan.nodes["a"].stages[Stage.CONFIGURE].wait_for == (("b", Stage.CREATE_LINKS),)


@pytest.mark.parametrize(
    ("stages", "place", "told"),
    [
        (wait("create", "q", "create"), "create.wait-for[0].node", "no node `q`, there are: a"),
        (wait("creat", "a", "create"), "creat", "unknown key, did you mean `create`?"),
        ("{create: {waits: []}}", "create.waits", "unknown key, did you mean `wait-for`?"),
        ("{configure: {wait-for: [{node: a}]}}", "configure.wait-for[0].stage", "`` is not one of them, there are `cr"),
        (
            "{configure: {exec: [{command: x, target: pod}]}}",
            "configure.exec[0]",
            "`pod` is not one of them, there are",
        ),
        ("{configure: {exec: {on-entry: [x]}}}", "configure.exec.on-entry", "unknown key, did you mean `on-enter`?"),
        (
            "{create: {exec: [{command: x}]}}",
            "create.exec[0]",
            "the node is not there yet, `on-exit`, or `target: host`",
        ),
        ("{configure: {exec: [{command: 'a \"b'}]}}", "configure.exec[0]", '`a "b`: no closing quotation'),
    ],
)
def test_faults_of_stages(reader: Reader, stages: str, place: str, told: str) -> None:
    (fault,) = reader.faults(nodes(a=stages))
    assert fault.startswith(f"topology.nodes.a.stages.{place}: {told}")


def test_what_cannot_be_waited_for(reader: Reader) -> None:
    bare = "    b: {}\n    c: {stages: {healthy: {}, exit: {}}}\n"
    told = reader.faults(nodes(bare, a="{create: {wait-for: [{node: b, stage: healthy}, {node: b, stage: exit}]}}"))
    assert [fault.split(", ")[0] for fault in told] == [
        "topology.nodes.a.stages.create.wait-for[0].node: node `b` has no healthcheck",
        "topology.nodes.a.stages.create.wait-for[1].node: node `b` has no command that could end",
        "topology.nodes.c.healthcheck: missing",
        "topology.nodes.c.cmd: missing",
    ]


def test_links_whose_nodes_wait_for_each_other(reader: Reader) -> None:
    text = nodes(
        "  links:\n"
        + "".join(f"    - endpoints: [{ends}]\n" for ends in ("'a:e1', 'b:e1'", "'a:e2', 'c:e1'", "'b:e2', 'host:h'")),
        a=wait("create", "b", "configure"),
        b="{}",
        c="{}",
    )
    assert [str(link.a) for link in apart(reader.read(text))] == ["a:e1"]


async def go(plan: Topology, name: str, lifecycle: Lifecycle, told: list[str]) -> None:
    for stage in Stage:
        async with lifecycle.stage(name, stage):
            told.append(f"{name} {stage}")


async def test_the_order_is_kept(reader: Reader) -> None:
    text = nodes(
        a="{create-links: {exec: [{command: in}, {command: out, phase: on-exit, target: host}], "
        "wait-for: [{node: b, stage: exit}]}}",
        b="{}",
    )
    told: list[str] = []

    async def run(node: str, command: StageExec) -> None:
        told.append(f"{node} {command.target} {' '.join(command.argv)}")

    plan = reader.read(text)
    lifecycle = Lifecycle(plan, run)
    async with asyncio.timeout(60):
        await asyncio.gather(*(go(plan, name, lifecycle, told) for name in plan.nodes))
    links = told.index("a create-links")
    assert told[links - 1 : links + 2] == ["a container in", "a create-links", "a host out"]
    assert told.index("b exit") < links - 1
    assert told.index("a create") < told.index("b exit")
    assert (lifecycle.calls_for("b", Stage.EXIT), lifecycle.calls_for("a", Stage.EXIT)) == (True, False)
    assert plan.nodes["b"].stages == {}
    assert StagePlan() == StagePlan((), ())


class Ill:
    """A node that fails its test a number of times."""

    name = "n"

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked: list[tuple[tuple[str, ...], float]] = []

    async def run(self, *argv: str, timeout: float) -> None:  # noqa: ASYNC109
        self.asked.append((argv, timeout))
        if len(self.asked) <= self.failures:
            raise CommandError("said no", returncode=1, stdout="", stderr="")


async def test_health_is_asked_for_until_it_is_there_or_lost() -> None:
    check = Healthcheck(("ok", "?"), interval=0, timeout=7, retries=3)
    node = Ill(2)
    await until_healthy(node, check)  # type: ignore[arg-type]
    assert node.asked == [(("ok", "?"), 7)] * 3
    with pytest.raises(LabError, match="node n is not healthy, 3 checks failed, the last: said no"):
        await until_healthy(Ill(3), check)  # type: ignore[arg-type]
    # Failures of the start period do not count.
    patient = Ill(9)
    await until_healthy(patient, Healthcheck(("ok",), interval=0, retries=1, start_period=60))  # type: ignore[arg-type]
    assert len(patient.asked) == 10
