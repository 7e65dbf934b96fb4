"""What two texts have in common, and what of a stream an edited history holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsink.core.alignment import align
from streamsink.core.matching import LEAST, Ids, Passage, common

TEXT = np.random.default_rng(4).integers(0, 1000, 3000).astype(np.int32)
OTHER = np.random.default_rng(5).integers(1000, 2000, 3000).astype(np.int32)


def ids(tokens: Sequence[int]) -> Ids:
    return np.asarray(tokens, np.int32)


def joined(*parts: Ids) -> Ids:
    return np.concatenate([ids([]), *parts])


few = st.lists(st.integers(0, 2), max_size=60)
edits = st.lists(
    st.tuples(st.sampled_from(["keep", "drop", "add"]), st.integers(LEAST, 40)), max_size=12
)


@given(few | st.lists(st.integers(0, 500), max_size=60), few)
@settings(max_examples=300, deadline=None)
def test_passages_are_in_both_in_order(one: list[int], other: list[int]) -> None:
    for old, new in ((one, other), (one, one + other), (one + other, other)):
        found = common(ids(old), ids(new))
        for passage in found:
            assert old[passage.old :][: passage.n] == new[passage.new :][: passage.n]
            assert passage.n >= LEAST or passage.old == passage.new == 0 < passage.n
        for a, b in pairwise(found):
            assert a.old + a.n <= b.old
            assert a.new + a.n <= b.new
        n_alike = next(
            (at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
            min(len(old), len(new)),
        )
        assert found[:1] == [Passage(0, 0, found[0].n)] if n_alike else True
        assert not n_alike or found[0].n == n_alike


@given(edits)
@settings(max_examples=300, deadline=None)
def test_what_was_edited_is_found(script: list[tuple[str, int]]) -> None:
    """Of texts whose passages are there once, all that was kept is found, and no more."""
    old, new, kept = 0, ids([]), 0
    n_new = 0
    for what, n in script:
        if what == "add":
            new, n_new = joined(new, OTHER[n_new : n_new + n]), n_new + n
        else:
            if what == "keep":
                new, kept = joined(new, TEXT[old : old + n]), kept + n
            old += n
    found = common(TEXT[:old], new)
    assert sum(passage.n for passage in found) == kept


@pytest.mark.parametrize("period", [1, 2, 7, 40])
def test_texts_that_repeat_themselves(period: int) -> None:
    """What is found is alike, whatever repeats; no text takes long."""
    text = np.tile(TEXT[:period], 100_000 // period)
    for new in (text[: len(text) // 2], np.delete(text, slice(1000, 1003)), text[::-1]):
        for passage in common(text, new):
            stops = passage.old + passage.n, passage.new + passage.n
            assert np.array_equal(text[passage.old : stops[0]], new[passage.new : stops[1]])


def test_what_is_there_twice_is_found_where_the_order_says() -> None:
    old = joined(TEXT[:50], OTHER[:20], TEXT[100:150], OTHER[:20], TEXT[200:250])
    new = joined(TEXT[:50], TEXT[100:150], OTHER[:20], TEXT[200:250])
    assert common(old, new) == [Passage(0, 0, 50), Passage(70, 50, 120)]


def test_passages_that_have_changed_places() -> None:
    """The larger one is kept."""
    found = common(joined(TEXT[:30], TEXT[100:200]), joined(OTHER[:1], TEXT[100:200], TEXT[:30]))
    assert found == [Passage(30, 1, 100)]


def kept(past: Ids, window: Ids, history: Ids, room: int = 100, n_lost: int = 0) -> object:
    found = align(past, n_lost, window, history, room)
    return found.start, found.forgotten, [tuple(one) for one in found.kept]


def test_of_the_window_all_stays_up_to_what_is_new() -> None:
    past, window = TEXT[:200], TEXT[200:300]
    assert kept(past, window, TEXT[:310]) == (200, 200, [(0, 200, 100)])
    holes = joined(TEXT[:220], TEXT[230:260], TEXT[270:300], OTHER[:5])
    assert kept(past, window, holes) == (200, 200, [(0, 200, 20), (30, 220, 30), (70, 250, 30)])
    added = joined(TEXT[:220], OTHER[:3], TEXT[220:300])
    assert kept(past, window, added) == (200, 200, [(0, 200, 20)])


def test_what_stands_before_something_forgotten_is_forgotten() -> None:
    past, window = TEXT[:200], TEXT[200:300]
    edited = joined(TEXT[:50], OTHER[:20], TEXT[70:300])
    assert kept(past, window, edited, room=300) == (200, 200, [(0, 200, 100)])
    put_before = joined(TEXT[:200], OTHER[:3], TEXT[200:300])
    assert kept(past, window, put_before, room=300) == (200, 200, [])


def test_what_is_too_far_back_to_be_seen_is_forgotten() -> None:
    past, window = TEXT[:200], TEXT[200:300]
    put_before = joined(TEXT[:200], OTHER[:3], TEXT[200:300])
    assert kept(past, window, put_before, room=100) == (203, 203, [(0, 203, 100)])
    assert kept(past, window, put_before, room=101) == (200, 200, [])


def test_a_quote_is_not_the_past() -> None:
    past, window = TEXT[:200], TEXT[200:300]
    summary = joined(OTHER[:20], TEXT[50:90], OTHER[20:40], TEXT[250:300])
    assert kept(past, window, summary) == (0, 0, [])


def test_a_past_that_nobody_knows_any_more() -> None:
    past, window = TEXT[100:200], TEXT[200:300]
    assert kept(past, window, TEXT[:305], n_lost=100) == (200, 200, [(0, 200, 100)])
    assert kept(TEXT[:0], window, TEXT[:305], n_lost=200) == (200, 200, [(0, 200, 100)])
    assert kept(past, window, joined(OTHER[:90], TEXT[100:305]), n_lost=100)[2] == [(0, 190, 100)]  # type: ignore[index]


def test_nothing_of_the_window() -> None:
    past, window = TEXT[:200], TEXT[200:300]
    assert kept(past, window, TEXT[:150], room=100) == (50, 150, [])
    assert kept(past, window, TEXT[:50], room=100) == (0, 50, [])
    assert kept(past, window, OTHER[:500], room=100) == (0, 0, [])
