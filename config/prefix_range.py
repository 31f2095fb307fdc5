"""Prefixes by the range of their lengths, as prefix lists have them."""

from __future__ import annotations

import re
from typing import NamedTuple

from config import prefix
from config.prefix import BITS, Family

_FORM = re.compile(r"(?P<prefix>\S+/\S+)(?:\s+ge\s+(?P<ge>[0-9]{1,3}))?(?:\s+le\s+(?P<le>[0-9]{1,3}))?")


class PrefixRange(NamedTuple):
    """The prefixes inside ``prefix`` whose length is from ``ge`` to ``le``, both included."""

    family: Family
    prefix: bytes
    """Wire bytes (config.prefix)."""
    ge: int
    le: int

    @classmethod
    def parse(cls, text: str) -> PrefixRange:
        """Return the range of ``"10.0.0.0/8"`` (exactly that prefix), ``"... le 26"`` or ``"... ge 24 le 26"``.

        ``ge`` alone reaches to host prefixes, ``le`` alone starts at the prefix itself. Raises ValueError that says
        what is wrong.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is not of the form PREFIX [ge LENGTH] [le LENGTH]")
        family, wire = prefix.parse(found["prefix"])
        ge = int(found["ge"] or wire[0])
        le = int(found["le"]) if found["le"] else BITS[family] if found["ge"] else wire[0]
        if not wire[0] <= ge <= le <= BITS[family]:
            raise ValueError(f"{text!r}: lengths must satisfy {wire[0]} <= ge <= le <= {BITS[family]}")
        return cls(family, wire, ge, le)

    def __str__(self) -> str:
        """Return the text form that parse takes."""
        length, bits = self.prefix[0], BITS[self.family]
        text = prefix.text(self.family, self.prefix)
        if (self.ge, self.le) == (length, length):
            return text
        low = f" ge {self.ge}" if self.ge != length or self.le == bits else ""
        high = f" le {self.le}" if self.le != bits or not low else ""
        return text + low + high
