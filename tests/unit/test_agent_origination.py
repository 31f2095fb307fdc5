"""What a node announces of its own addresses, and under which source its policies find it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from agent.origination import Origination
from config.prefix import parse

BLOCK = SimpleNamespace(family=4, prefix=parse("10.64.0.0/26")[1], pool="pods", lender="")
LOAN = SimpleNamespace(family=4, prefix=parse("10.64.9.7/32")[1], pool="pods", lender="n2")
RACK = parse("10.64.0.0/20")[1]


def announced(*blocks: Any, aggregates: Any = ()) -> dict[tuple[int, bytes], str]:
    speaker = Mock()
    origination = Origination(
        speaker, Mock(), blocks=lambda: blocks, announced=lambda _: True, aggregates=lambda: aggregates
    )
    origination.refresh()
    return {call.args: call.kwargs["source"] for call in speaker.originate.call_args_list}


def test_an_address_on_loan_is_an_exception() -> None:
    assert announced(BLOCK, LOAN) == {(4, BLOCK.prefix): "block", (4, LOAN.prefix): "exception"}


def test_an_aggregate_stands_for_blocks_and_never_for_exceptions() -> None:
    rack = (SimpleNamespace(family=4, name="pods"), RACK, True)
    inside = SimpleNamespace(**{**vars(LOAN), "prefix": parse("10.64.0.70/32")[1]})
    assert announced(BLOCK, inside, aggregates=[rack]) == {(4, RACK): "aggregate", (4, inside.prefix): "exception"}
