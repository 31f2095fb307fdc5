from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp import as_path
from bgp.as_path import AS_TRANS, SEQUENCE, SET, Segment, Summary

segments = st.lists(
    st.tuples(st.sampled_from([SEQUENCE, SET]), st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=8).map(tuple)),
    max_size=5,
)


def seq(*asns: int) -> Segment:
    return SEQUENCE, asns


def a_set(*asns: int) -> Segment:
    return SET, asns


@given(segments)
def test_pack_and_segments_are_inverse(path: list[Segment]) -> None:
    packed = as_path.pack(path)
    assert list(as_path.segments(packed)) == path
    assert isinstance(as_path.examine(packed, 4, 1), Summary)


@given(segments, st.integers(1, 2**32 - 1), st.integers(1, 5))
def test_prepend_makes_the_path_longer_by_its_count(path: list[Segment], asn: int, count: int) -> None:
    before, after = as_path.pack(path), as_path.prepend(as_path.pack(path), asn, count)
    summary = as_path.examine(before, 4, 0)
    assert isinstance(summary, Summary)
    assert as_path.examine(after, 4, 0) == Summary(summary.length + count, asn, summary.own)


def test_prepend_joins_a_sequence_and_starts_one_before_a_set() -> None:
    """RFC 4271 section 5.1.2."""
    assert list(as_path.segments(as_path.prepend(as_path.pack([seq(2)]), 1, 2))) == [seq(1, 1, 2)]
    assert list(as_path.segments(as_path.prepend(as_path.pack([a_set(2)]), 1, 1))) == [seq(1), a_set(2)]
    full = as_path.pack([seq(*[7] * 255)])
    assert list(as_path.segments(as_path.prepend(full, 1, 1))) == [seq(1), seq(*[7] * 255)]
    assert as_path.prepend(full, 1, 0) == full


@given(segments)
def test_what_a_two_octet_peer_is_sent_merges_back(path: list[Segment]) -> None:
    """RFC 6793 sections 4.2.2 and 4.2.3."""
    packed = as_path.pack(path)
    narrow, wide = as_path.narrow(packed)
    as4 = None if wide is None else as_path.examine_as4_path(wide)
    assert not isinstance(as4, str)
    merged = as_path.merge(narrow, as4)
    assert [n for _, asns in as_path.segments(merged) for n in asns] == [n for _, asns in path for n in asns]
    assert as_path.examine(merged, 4, 1) == as_path.examine(packed, 4, 1)


@pytest.mark.parametrize(
    ("two", "four", "expected"),
    [
        pytest.param([seq(1, AS_TRANS)], None, [seq(1, AS_TRANS)], id="no AS4_PATH"),
        pytest.param([seq(1, 2, AS_TRANS)], [seq(2, 70000)], [seq(1, 2, 70000)], id="an old AS has put itself before"),
        pytest.param([seq(AS_TRANS)], [seq(70000)], [seq(70000)], id="same length"),
        pytest.param([seq(1)], [seq(2, 70000)], [seq(1)], id="AS4_PATH longer: ignored"),
        pytest.param(
            [seq(1), a_set(5, 6), seq(AS_TRANS)], [seq(70000)], [seq(1), a_set(5, 6), seq(70000)], id="a set is one"
        ),
        pytest.param([seq(1, 2)], [], [seq(1, 2)], id="AS4_PATH of confederation segments only"),
    ],
)
def test_merge(two: list[Segment], four: list[Segment] | None, expected: list[Segment]) -> None:
    """RFC 6793 section 4.2.3."""
    assert list(as_path.segments(as_path.merge(as_path.pack(two, 2), four))) == expected


def test_summary() -> None:
    """RFC 4271 section 9.1.2.2 (a): a set counts as one; (c): the neighbour is the first AS of a sequence."""
    packed = as_path.pack([seq(65002, 65003), a_set(1, 2, 3), seq(65002)])
    assert as_path.examine(packed, 4, 65002) == Summary(4, 65002, 2)
    assert as_path.examine(as_path.pack([a_set(1, 2)]), 4, 2) == Summary(1, 0, 1)
    assert as_path.examine(b"", 4, 2) == Summary(0, 0, 0)
    assert as_path.examine(as_path.pack([seq(1, 2)], 2), 2, 2) == Summary(2, 1, 1)


@given(st.binary(max_size=40), st.sampled_from([2, 4]))
def test_anything_is_a_path_or_a_reason(value: bytes, width: int) -> None:
    found = as_path.examine(value, width, 1)
    if isinstance(found, Summary):
        assert as_path.pack(as_path.segments(value, width), width) == value
    assert as_path.examine_as4_path(value) is not None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("02", "cut short"),
        ("0201", "overruns"),
        ("0200", "empty"),
        ("050100000001", "segment type 5"),
        ("020100000000", "AS 0"),
    ],
)
def test_malformed_as4_path(value: str, reason: str) -> None:
    """RFC 6793 section 6."""
    found = as_path.examine_as4_path(bytes.fromhex(value))
    assert isinstance(found, str)
    assert reason in found


def test_text() -> None:
    assert as_path.text(as_path.pack([seq(65001, 4200000001), a_set(3, 4), seq(5)])) == "65001 4200000001 {3,4} 5"
    assert as_path.text(b"") == ""
