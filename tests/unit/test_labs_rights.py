"""Why an ordinary user has no namespaces, and which users a process has."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from labs import rights

REFUSED = OSError(errno.EPERM, "Operation not permitted")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for directory in ("self/ns", "self/task/1", "sys/user", "sys/kernel"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "self/ns/user").touch()
    (tmp_path / "sys/user/max_user_namespaces").write_text("100\n")
    return tmp_path


def test_a_kernel_without_user_namespaces(proc: Path) -> None:
    (proc / "self/ns/user").unlink()
    assert rights.missing(REFUSED, proc) == "user namespaces, which this kernel has not (CONFIG_USER_NS)"


@pytest.mark.parametrize(
    ("switch", "value", "name"),
    [
        ("user/max_user_namespaces", "0", "user.max_user_namespaces"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns"),
    ],
)
def test_a_setting_that_forbids_them(proc: Path, switch: str, value: str, name: str) -> None:
    (proc / "sys" / switch).write_text(f"{value}\n")
    assert rights.missing(REFUSED, proc) == f"a user namespace, which the setting {name} = {value} forbids"


def test_other_reasons(proc: Path) -> None:
    assert rights.missing(REFUSED, proc) == "a user namespace, which is refused: Operation not permitted"
    (proc / "self/task/2").mkdir()
    assert "a process with several threads cannot have: start it under `unshare -Ur`" in rights.missing(REFUSED, proc)


def test_the_map_of_users(proc: Path) -> None:
    (proc / "self/uid_map").write_text("         0       1000          1\n         1     100000      65536\n")
    assert rights.user_map(proc) == [(0, 1000, 1), (1, 100000, 65536)]
