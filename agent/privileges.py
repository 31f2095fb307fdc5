"""Which capabilities the agent lacks (capabilities(7)), asked before anything is touched."""

from __future__ import annotations

NEEDED = {
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
}
"""Port 179; routes, links and sysctls; entering containers' network namespaces. Without one of them nothing works."""
USEFUL = {"CAP_NET_BROADCAST": 11}
"""To hear of a container's MAC address that changes, at once instead of at CHECK."""


def missing_privileges(status: str = "/proc/self/status") -> list[str]:
    """Return the names of needed capabilities that this process does not hold, in a stable order."""
    effective = 0
    with open(status) as lines:
        for line in lines:
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
    return [name for name, bit in NEEDED.items() if not effective >> bit & 1]
