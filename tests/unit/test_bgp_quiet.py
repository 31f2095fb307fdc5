from __future__ import annotations

from bgp.quiet import Quiet


def test_one_line_stands_for_all_since_the_last() -> None:
    quiet = Quiet(60)
    assert [quiet.admit(now) for now in (1.0, 2.0, 60.9, 61.0, 61.5, 200.0)] == [1, 0, 0, 3, 0, 2]
