"""Import and export policy as an operator writes it; ``bgp`` compiles policies of its own out of it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator
from pydantic.alias_generators import to_camel

from config import prefix
from config.prefix import BITS, BY_NAME, Family
from config.values import Community, FamilyName, Name, wrong

Action = Literal["accept", "reject"]
Source = Literal["block", "aggregate", "configured", "learned"]

_RANGE = re.compile(r"(?P<prefix>\S+)(?:\s+ge\s+(?P<ge>[0-9]{1,3}))?(?:\s+le\s+(?P<le>[0-9]{1,3}))?")


class Section(BaseModel):
    """One mapping of the file: camelCase keys, nothing unknown, no conversion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel)


class PrefixRange(NamedTuple):
    """Prefixes inside ``prefix`` whose length lies between ``shortest`` and ``longest``, both included."""

    family: Family
    prefix: bytes
    """Wire bytes (config.prefix)."""
    shortest: int
    longest: int

    @classmethod
    def parse(cls, text: str) -> PrefixRange:
        """Return the range of ``"10.0.0.0/8"`` (exactly that prefix), ``"10.0.0.0/8 ge 24 le 26"``.

        ``ge`` alone reaches to host prefixes, ``le`` alone starts at the prefix itself. Raises ValueError.
        """
        match = _RANGE.fullmatch(text.strip())
        if not match or "/" not in match["prefix"]:
            raise ValueError(f"{text!r} is not a prefix with an optional ge and le")
        family, wire = prefix.parse(match["prefix"])
        low = int(match["ge"] or wire[0])
        high = int(match["le"]) if match["le"] else BITS[family] if match["ge"] else wire[0]
        if not wire[0] <= low <= high <= BITS[family]:
            raise ValueError(f"{text!r} holds no prefix: {wire[0]} <= ge <= le <= {BITS[family]} does not hold")
        return cls(family, wire, low, high)

    def __str__(self) -> str:
        """Return the text form that parse takes."""
        length, bits = self.prefix[0], BITS[self.family]
        text = prefix.text(self.family, self.prefix)
        if (self.shortest, self.longest) == (length, length):
            return text
        low = f" ge {self.shortest}" if self.shortest != length or self.longest == bits else ""
        high = f" le {self.longest}" if self.longest != bits or not low else ""
        return text + low + high


def _range(value: Any) -> PrefixRange:
    right = 'a prefix without host bits and, if wanted, lengths: "10.0.0.0/8 ge 24 le 26", prefix length <= ge <= le'
    try:
        return PrefixRange.parse(value)
    except (ValueError, AttributeError):
        raise wrong(value, right) from None


def _short_form(value: Any) -> Any:
    """Take ``import: accept`` for ``import: {default: accept}``."""
    if isinstance(value, dict):
        return value
    if value in ("accept", "reject"):
        return {"default": value}
    raise wrong(value, "accept, reject or a mapping of default and rules")


def _as_path(value: Any) -> str:
    try:
        re.compile(value)
    except (re.error, TypeError):
        raise wrong(value, 'a regular expression over AS numbers such as "^65001_", in quotes') from None
    return str(value)


class Match(Section):
    """What a rule asks of a prefix; what is left out matches everything."""

    prefixes: list[Annotated[PrefixRange, PlainValidator(_range), PlainSerializer(str)]] = Field(
        default=[], description='a list of prefixes such as "10.0.0.0/8 le 26"'
    )
    source: list[Source] = Field(default=[], description="a list of block, aggregate, configured and learned")
    family: FamilyName | None = Field(default=None, description="ipv4 or ipv6")
    communities: list[Community] = Field(
        default=[], description='a list of communities such as "65000:100", "65000:1:2" or "rt:65000:1", in quotes'
    )
    as_path: Annotated[str, BeforeValidator(_as_path)] = Field(
        default="", description='a regular expression over AS numbers such as "^65001_", in quotes'
    )
    next_hop: list[Annotated[PrefixRange, PlainValidator(_range), PlainSerializer(str)]] = Field(
        default=[], description='a list of prefixes such as "10.0.0.0/8 le 32"'
    )

    @property
    def family_number(self) -> Family | None:
        return None if self.family is None else BY_NAME[self.family]


class Changes(Section):
    """What an accepting rule changes."""

    local_pref: int | None = Field(default=None, ge=0, le=4294967295, description="0 to 4294967295")
    med: int | None = Field(default=None, ge=0, le=4294967295, description="0 to 4294967295")
    communities: list[Community] = Field(
        default=[], description='a list of communities to add such as "65000:100", in quotes'
    )
    prepend: int = Field(default=0, ge=0, le=10, description="how often our AS is prepended, 0 to 10")
    next_hop: Literal["self", "keep"] | None = Field(default=None, description="self or keep")
    remove_communities: list[Community] = Field(
        default=[], description='a list of communities to remove such as "65000:100", in quotes'
    )
    replace_communities: bool = Field(default=False, description="true (remove all before any are added) or false")
    weight: int = Field(default=0, ge=0, le=65535, description="0 to 65535")


class Rule(Section):
    name: Name = Field(description="the rule's name, unique within its policy")
    match: Match = Field(default=Match(), description="a mapping such as {prefixes: [], source: []}")
    action: Action = Field(description="accept or reject")
    set: Changes = Field(default=Changes(), description="a mapping such as {localPref: 200}")


class Policy(Section):
    """The first rule that matches decides; where none does, the default."""

    default: Action = Field(default="reject", description="accept or reject")
    rules: list[Rule] = Field(default=[], description="a list of rules, each with name, match, action and set")


PolicyOrAction = Annotated[Policy, BeforeValidator(_short_form)]

ACCEPT = Policy(default="accept")
REJECT = Policy(default="reject")
