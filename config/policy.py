"""Import and export policy as an operator writes it; ``bgp`` compiles policies of its own out of it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator
from pydantic.alias_generators import to_camel

from config.prefix import BY_NAME, Family
from config.prefix_range import PrefixRange
from config.values import Community, FamilyName, Name, wrong

Action = Literal["accept", "reject"]
Source = Literal["block", "exception", "aggregate", "static", "learned"]


class Section(BaseModel):
    """One mapping of the file: camelCase keys, nothing unknown, no conversion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel)


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
    source: list[Source] = Field(default=[], description="a list of block, exception, aggregate, static and learned")
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
