"""How pytest-xdist shares out the tests: each to the next worker that is free, save those that go together."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    "tests/runtime/test_runtime_conformance.py": "runtime",
    "tests/runtime/test_runtime_containerd.py": "runtime",
    "tests/runtime/test_runtime_cri.py": "runtime",
    "tests/runtime/test_runtime_podman.py": "runtime",
    "tests/runtime/test_runtime_lists.py": "lists",
    "tests/unit/test_config_compiled.py": "compiled",
    "tests/unit/test_ipam_store.py": "store",
}
"""Files whose tests share what is expensive to make, as a lab with its runtimes or an etcd, and by what they share."""


class Scheduling(LoadScopeScheduling):
    """The scheduler. Larger groups come first, then the tests in the order of their files."""

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER.get(nodeid.partition("::")[0], nodeid)
