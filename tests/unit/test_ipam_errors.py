"""Every error has a code of its own, and the documentation says what to do about it."""

from __future__ import annotations

import re
from pathlib import Path

from ipam import errors

_ABSTRACT = {"ipam", "database"}


def every() -> list[type[errors.IpamError]]:
    found = [getattr(errors, name) for name in dir(errors)]
    return [one for one in found if isinstance(one, type) and issubclass(one, errors.IpamError)]


def test_codes_are_unique() -> None:
    codes = [one.code for one in every()]
    assert len(set(codes)) == len(codes)


def test_the_documentation_names_each_error_and_whether_to_retry() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ipam.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    told = {code: cells[-1].strip() == "yes" for cells in rows for code in re.findall(r"`([a-z-]+)`", cells[0])}
    for one in every():
        if one.code not in _ABSTRACT:
            assert told.get(one.code) is one.retry, one.code
