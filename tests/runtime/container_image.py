"""The image of the agent, built from the Containerfile; its base is made here, for no registry is asked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "localhost/podroute:dev"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_ENGINE = """[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
pids_limit = 0
"""
LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
"""podman's own are higher than what may be asked for inside another container."""


def settings(directory: Path) -> dict[str, str]:
    """Write podman's configuration with all storage in a directory, and return the environment that names it."""
    engine, storage = directory / "containers.conf", directory / "storage.conf"
    engine.write_text(_ENGINE)
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{directory}/storage"\nrunroot = "{directory}/run"\n'
    )
    return {"CONTAINERS_CONF": str(engine), "CONTAINERS_STORAGE_CONF": str(storage)}


def build(directory: Path, environment: Mapping[str, str]) -> None:
    """Build the image; takes minutes."""
    base = directory / "base"
    _run("debootstrap", "--variant=minbase", "bookworm", str(base))
    # What this machine trusts, which may be a proxy that stands between it and the package index.
    shutil.copy(_CERTIFICATES, base / "etc/ca.crt")
    (base / "etc/pip.conf").write_text("[global]\ncert = /etc/ca.crt\n")
    (wanted,) = set(re.findall(r"^FROM (\S+)", (ROOT / "Containerfile").read_text(), re.MULTILINE))
    archive = directory / "base.tar"
    _run("tar", "--create", "--file", str(archive), "--directory", str(base), ".")
    _run("podman", "import", str(archive), wanted, more=environment)
    _run("podman", "build", "--network", "host", *LIMITS, "--tag", NAME, str(ROOT), more=environment)


def clear(directory: Path) -> None:
    """Remove all that was made, mounts first. podman's own reset would take the machine's networks with it."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in reversed([point for point in points if Path(point).is_relative_to(directory)]):
        subprocess.run(["umount", "--lazy", point], check=True)
    shutil.rmtree(directory)


def _run(*command: str, more: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, env=os.environ | (more or {}), capture_output=True, text=True, errors="replace")
    assert not done.returncode, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
