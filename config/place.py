"""Where tables of prefixes keep one: in which of many small dicts instead of one large one.

A dict is rebuilt as a whole when it grows, which takes a quarter of a second at a million entries and would stop the
event loop. So a table is cut into parts by the hash of a prefix, and all tables alike: prefixes that are together in
one are together in the others, and can be stored by a few calls and not one by one.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Final

PLACES: Final = 64
TOP: Final = 52
"""A place is chosen by the 12 highest bits of a hash. A dict chooses its slots by the lowest, and prefixes that had
those in common would all meet in a few of them."""


def _places() -> bytes:
    """Give the last place twice as large a share as the first, and the others one in between.

    Parts of one size would grow at the same time, and the pause would be as long as that of one large dict. So their
    growth is spread evenly over the time in which the table doubles.
    """
    shares = list(accumulate(2.0 ** (n / PLACES) for n in range(PLACES)))
    ends = [share / shares[-1] * 4096 for share in shares]
    return bytes(min(bisect_right(ends, place), PLACES - 1) for place in range(4096))


PLACE: Final = _places()
"""``PLACE[hash(prefix[:LEAD[family]]) >> TOP]`` is where a prefix belongs, from 0 to 63; a negative index counts from
the end. Loops over many prefixes say it themselves."""


class Together(list[bytes]):
    """Distinct prefixes of one family that have one place."""

    __slots__ = ()


class Run(Together):
    """Such as share their leading octets (LEAD), as most do that arrive in one UPDATE."""

    __slots__ = ()
