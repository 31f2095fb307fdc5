"""`make demo` as people run it: to the end, interrupted, broken, and left up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from labs.lab import Lab

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left"), pytest.mark.timeout(240)]

NAME = f"demo-{os.getpid()}"


def start(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "labs.demo", "--name", NAME, *options]
    env = {**os.environ, "COLUMNS": "160"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if word in line:
            return said
    raise AssertionError(f"the demo ended without saying {word!r}:\n{said}")


def test_every_check_holds_and_nothing_is_left() -> None:
    process = start()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "every check held" in said
    assert "64 of 64 pings answered" in said
    assert "LOST" not in said


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGINT, "7 nodes, 6 links"),
        (signal.SIGTERM, "has converged"),
        (signal.SIGINT, "The ToRs reach the pods"),
    ],
)
def test_interrupted_at_any_step_it_leaves_nothing(number: signal.Signals, step: str) -> None:
    process = start()
    said = read_until(process, step)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said + rest
    assert "nothing is left behind" in rest


def test_a_check_that_fails_is_the_exit_status() -> None:
    process = start()
    said = read_until(process, "has converged")
    agent = Lab.find(NAME).node("n3").process
    assert agent is not None
    agent.kill()
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said + rest
    assert "FAILED" in rest
    assert "nothing is left behind" in rest


def test_kept_up_it_prints_what_to_type_and_goes_with_lab_down() -> None:
    process = start("--keep")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert f"podroute lab exec {NAME} n1 -- podroute status" in said
    net = Lab.find(NAME)
    assert all(net.node(name).process for name in ("n1", "n2", "n3", "n4"))
    down = start("--down")
    told, _ = down.communicate(timeout=60)
    assert (down.returncode, NAME in told) == (0, True)
    assert NAME not in Lab.names()
