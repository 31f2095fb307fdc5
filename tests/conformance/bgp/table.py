"""All cases, in the order in which they are best begun: the ones with long timers first."""

from __future__ import annotations

import fnmatch

from tests.conformance.bgp import add_paths, openings, states, update_rows
from tests.conformance.bgp.cases import Case


def cases(only: str = "*") -> list[Case]:
    """Return the cases whose ``group: name`` or RFC matches a shell pattern."""
    everything = [*states.cases(), *openings.cases(), *add_paths.cases(), *update_rows.cases()]
    pattern = f"*{only.lower()}*"
    return [
        c for c in everything if fnmatch.fnmatch(c.title.lower(), pattern) or fnmatch.fnmatch(c.rfc.lower(), pattern)
    ]
