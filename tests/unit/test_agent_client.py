"""What the command line says when no agent answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.client import AgentUnavailableError, Client


@pytest.mark.root
def test_a_socket_of_roots_says_who_may_ask(tmp_path: Path) -> None:
    """As another user: that an agent should be started would be the wrong advice."""
    (tmp_path / "locked").mkdir(mode=0o700)
    code = (
        f"import os, sys; sys.path[:0] = {sys.path!r}; from agent.client import Client; os.setuid(65534)\n"
        f"try: Client({str(tmp_path / 'locked/api.sock')!r}).get('/v1/status')\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{tmp_path}/locked/api.sock may not be used (Permission denied): ask as root\n", done.stderr


def test_no_agent(tmp_path: Path) -> None:
    with pytest.raises(AgentUnavailableError, match=r"no agent answers on .*api.sock .*: start one with"):
        Client(str(tmp_path / "api.sock")).get("/v1/status")
