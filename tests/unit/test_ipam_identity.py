from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipam.errors import IdentityError, StateInUseError
from ipam.identity import StateDirectory


def test_a_node_keeps_its_uuid(tmp_path: Path) -> None:
    path = str(tmp_path / "state" / "deep")
    first = StateDirectory(path)
    made = first.identity("n1")
    assert first.identity("n1") == made
    first.close()
    first.close()
    again = StateDirectory(path)
    assert again.identity("n1") == made
    again.close()
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert sorted(os.listdir(path)) == ["identity.json", "lock"]


def test_two_nodes_have_two_uuids(tmp_path: Path) -> None:
    one, other = StateDirectory(str(tmp_path / "1")), StateDirectory(str(tmp_path / "2"))
    assert one.identity("n").uuid != other.identity("n").uuid
    one.close()
    other.close()


def test_a_state_directory_belongs_to_one_name(tmp_path: Path) -> None:
    state = StateDirectory(str(tmp_path))
    made = state.identity("n1")
    with pytest.raises(IdentityError) as caught:
        state.identity("n2")
    assert str(caught.value) == (
        f"state directory {tmp_path} belongs to node n1 (UUID {made.uuid}), but node.name is n2: "
        "set node.name to n1, or give n2 a stateDir of its own"
    )
    state.close()


def test_one_agent_at_a_time(tmp_path: Path) -> None:
    state = StateDirectory(str(tmp_path))
    with pytest.raises(StateInUseError) as caught:
        StateDirectory(str(tmp_path))
    assert str(caught.value) == (
        f"state directory {tmp_path} is in use by another agent (process {os.getpid()}): "
        "stop it, or give this one a stateDir of its own"
    )
    state.close()
    StateDirectory(str(tmp_path)).close()


def test_the_lock_goes_with_the_process(tmp_path: Path) -> None:
    code = "import os, sys; from ipam.identity import StateDirectory; d = StateDirectory(sys.argv[1]); os._exit(9)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False).returncode == 9
    StateDirectory(str(tmp_path)).close()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": "n1", "uuid": "x"}', '{"name": "n1", "uuid": 5}'])
def test_a_corrupt_identity_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "identity.json").write_text(text)
    state = StateDirectory(str(tmp_path))
    with pytest.raises(IdentityError, match=r"identity\.json is corrupt: restore it, or write"):
        state.identity("n1")
    assert (tmp_path / "identity.json").read_text() == text
    state.close()


def test_a_crash_while_the_identity_is_written_leaves_none(tmp_path: Path) -> None:
    (tmp_path / "identity.json.new").write_text('{"name": "n1", "uu')
    state = StateDirectory(str(tmp_path))
    made = state.identity("n1")
    assert json.loads((tmp_path / "identity.json").read_text()) == {"name": "n1", "uuid": made.uuid}
    state.close()


def test_a_state_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(IdentityError) as caught:
        StateDirectory(str(tmp_path / "state"))
    assert (
        str(caught.value)
        == f"{tmp_path}/state cannot be used: File exists; the agent must be able to read and write it"
    )
