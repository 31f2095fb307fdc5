"""Records of the labs on this host: one directory per lab, which makes its name taken, and a JSON file in it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from labs.errors import LabError
from labs.processes import Process
from labs.rights import outer_user
from labs.topology import NAME


def _root() -> Path:
    user = outer_user()
    if user == 0:
        return Path("/run/podroute-labs")
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(own) / "podroute-labs" if os.access(own or "/", os.W_OK) else Path(f"/tmp/podroute-labs-{user}")


ROOT = _root()
"""Where this user's labs are."""


class Record:
    """A lab's directory: ``lab.json``, ``clab/`` (``__clabDir__``), ``nodes/NODE/`` with logs and process numbers.

    Raises LabError where the name cannot be one.
    """

    def __init__(self, name: str, root: Path) -> None:
        # A name becomes a path that is removed with everything below it.
        if not NAME.fullmatch(name):
            raise LabError(f"`{name}` is not the name of a lab, labs here: {', '.join(names(root)) or 'none'}")
        self.name = name
        self.root = root
        self.directory = root / name
        self._lock = -1

    def create(self) -> None:
        """Take the name and the lock. Raises LabError where a lab of this name exists."""
        while True:
            self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
            if self.root.stat().st_uid != os.geteuid():
                raise LabError(f"{self.root} belongs to somebody else: remove it, or set XDG_RUNTIME_DIR")
            try:
                self.directory.mkdir(mode=0o755)
                break
            except FileExistsError:
                raise LabError(self._taken()) from None
            except FileNotFoundError:
                # The last other lab's teardown removed the empty root in between.
                continue
        self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.write({"name": self.name, "state": "building"})

    def exists(self) -> bool:
        return self.directory.is_dir()

    def write(self, content: dict[str, Any]) -> None:
        """Replace the lab's record."""
        runner = Process.of(os.getpid())
        content = {**content, "runner": {"pid": runner.pid, "start": runner.start} if runner else None}
        temporary = self.directory / "lab.json.new"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(self.directory / "lab.json")

    def read(self) -> dict[str, Any]:
        """Return the lab's record. Raises LabError where there is no lab of this name, or none that is complete."""
        if not self.exists():
            others = ", ".join(names(self.root)) or "none"
            raise LabError(f"no lab `{self.name}` is up, labs here: {others}")
        try:
            content: dict[str, Any] = json.loads((self.directory / "lab.json").read_text())
        except (OSError, ValueError):
            content = {}
        if content.get("state") != "up":
            raise LabError(f"lab `{self.name}` is not complete: {self._remedy()}")
        return content

    def release(self) -> None:
        """Give up the lock; the name stays taken."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def await_runner(self, waiting: Callable[[], None], timeout: float) -> None:
        """Wait until nobody else is building this lab. Raises LabError after ``timeout`` seconds."""
        if self._lock >= 0 or not self.exists():
            return
        deadline = time.monotonic() + timeout
        told = False
        with suppress(FileNotFoundError):
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                while True:
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        return
                    except BlockingIOError:
                        if not told:
                            waiting()
                            told = True
                        if time.monotonic() > deadline:
                            raise LabError(f"lab `{self.name}` is still being built: stop its runner first") from None
                        time.sleep(0.05)
            finally:
                os.close(descriptor)

    def remove(self) -> None:
        """Remove the lab's directory, and the root where it was the last lab. Raises LabError."""
        try:
            shutil.rmtree(self.directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise LabError(f"{self.directory}: cannot be removed: {error}") from None
        finally:
            self.release()
        with suppress(OSError):
            self.root.rmdir()

    def _taken(self) -> str:
        return f"a lab `{self.name}` exists already: {self._remedy()}"

    def _remedy(self) -> str:
        return f"`podroute lab down {self.name}` removes it"


def names(root: Path) -> list[str]:
    """Return the names of all labs on this host, half-made ones too."""
    with suppress(FileNotFoundError):
        return sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    return []
