"""Optional masquerade: what pods send out of the pools gets the address of the node (nft(8)).

Off by default: the point of routed pods is that everybody sees their own addresses. One table of ours holds it all; it
is replaced in one transaction and removed when masquerade is off.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from config import prefix
from config.prefix import FAMILIES, Family

TABLE = "podroute"
_KEYWORDS: dict[Family, str] = {4: "ip", 6: "ip6"}
_TIMEOUT = 10.0


class MasqueradeError(Exception):
    """The rules cannot be set; the text says why and what would help."""


def apply(pools: Sequence[tuple[Family, bytes]]) -> None:
    """Masquerade what leaves these pools (wire bytes); without any, remove what an earlier run set up.

    Blocks. Raises MasqueradeError.
    """
    nft = shutil.which("nft")
    if nft is None:
        if pools:
            raise MasqueradeError("cni.masquerade needs the program nft: install nftables, or set it to false")
        return
    if not pools and TABLE not in _run(nft, "list", "tables", "inet").split():
        return
    _run(nft, "-f", "-", rules=ruleset(pools))


def ruleset(pools: Sequence[tuple[Family, bytes]]) -> str:
    """Return the transaction for nft that leaves these rules and no other ones in our table."""
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}"]
    if not pools:
        return "\n".join(lines) + "\n"
    lines += [f"table inet {TABLE} {{"]
    rules = []
    for family in FAMILIES:
        found = [prefix.text(family, wire) for of, wire in pools if of == family]
        if found:
            keyword = _KEYWORDS[family]
            lines += [
                f"  set pools{family} {{ type ipv{family}_addr; flags interval; auto-merge; "
                f"elements = {{ {', '.join(found)} }}; }}"
            ]
            rules.append(f"    {keyword} saddr @pools{family} {keyword} daddr != @pools{family} masquerade")
    lines += [
        "  chain postrouting {",
        "    type nat hook postrouting priority srcnat; policy accept;",
        *rules,
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _run(nft: str, *arguments: str, rules: str = "") -> str:
    try:
        done = subprocess.run([nft, *arguments], input=rules, capture_output=True, text=True, timeout=_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MasqueradeError(f"{nft} does not run: {error}") from None
    if done.returncode:
        raise MasqueradeError(f"nft refuses the masquerade rules: {done.stderr.strip()}")
    return done.stdout
