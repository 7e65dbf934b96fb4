"""Evictions of whole turns and sentences: where a window begins, and what is cut all the same."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsink.core import moves
from streamsink.core.events import Event
from streamsink.core.policy import SinkPolicy
from streamsink.engine.sentences import Sentences
from streamsink.engine.stream import Stream
from tests.fake_backend import FakeBackend, FakeTokenizer

N_CTX, N_KEEP = 40, 4


def opened(n_discard: str, events: list[Event] | None = None) -> Stream:
    policy = SinkPolicy(N_KEEP, n_discard, "reanchor", 8)  # type: ignore[arg-type]
    report = events.append if events is not None else None
    return Stream(FakeBackend(N_CTX + 8, n_lanes=4), policy, N_CTX, on_event=report)


def window_start(stream: Stream) -> int:
    return next(part.start for part in stream.visible() if not part.pinned)


def test_boundaries() -> None:
    found = moves.merged((), (3, 7, 7, 5, 12))
    assert found == (3, 7, 12)
    assert moves.later(found, 2) == found
    assert moves.later(found, 3) == (7, 12), "what was passed is forgotten"
    assert moves.later(found, 11) == (12,)
    assert moves.later(found, 12) == ()


@given(st.lists(st.integers(1, 25), min_size=1, max_size=30))
@settings(deadline=None)
def test_the_window_begins_where_a_turn_begins(sizes: list[int]) -> None:
    events: list[Event] = []
    with opened("turn", events) as stream:
        starts = [N_KEEP]
        stream.feed(range(N_KEEP))
        for size in sizes:
            stream.begin_turn()
            starts.append(stream.stats.index)
            stream.feed([5] * size)
            assert window_start(stream) in starts
            assert stream.stats.pinned + stream.stats.window <= N_CTX
    gone = [event for event in events if event.kind == "evict"]
    assert not any(event.cut for event in gone)
    # No more than was needed: had the last one evicted stayed, the next token had found no room.
    assert all(a.index + a.n_tokens == b.index for a, b in pairwise(gone))


def test_the_oldest_turn_leaves_alone() -> None:
    events: list[Event] = []
    with opened("turn", events) as stream:
        stream.feed(range(N_KEEP))
        for size in (10, 12, 14):
            stream.begin_turn()
            stream.feed([7] * size)
        assert events == []
        stream.feed([8])
        gone = [(event.index, event.n_tokens) for event in events if event.kind == "evict"]
        assert gone == [(N_KEEP, 10)]


def test_a_turn_that_fills_the_window_is_cut_and_told() -> None:
    events: list[Event] = []
    with opened("turn", events) as stream:
        stream.feed(range(N_KEEP))
        stream.begin_turn()
        stream.feed([7] * 100)
        assert any(event.cut for event in events)
        stream.begin_turn()
        start = stream.stats.index
        events.clear()
        stream.feed([9] * 35)
        assert window_start(stream) == start
        assert not [event for event in events if event.kind == "evict"][-1].cut


def test_sentences() -> None:
    text = "One two three. Four five six! Seven eight nine? " * 4
    events: list[Event] = []
    with opened("sentence", events) as stream:
        stream.feed(text)
        whole = stream.text(stream.visible_tokens()[stream.stats.pinned :])
    # A token of the fake vocabulary is a byte: the space belongs to the next sentence.
    assert whole.lstrip().split(" ")[0] in ("One", "Four", "Seven")
    assert events
    assert not any(event.cut for event in events)


@pytest.mark.parametrize(
    ("piece", "ends"),
    [
        (b".", True), (b"!", True), (b'."', True), (b".\n", True), (b"\n", True), (b"\n\n", True),
        ("。".encode(), True), (b"?) ", True), (b"word", False), (b" ", False), (b",", False),
        (b"", False), (b"3.1", False),
    ],
)  # fmt: skip
def test_what_ends_a_sentence(piece: bytes, ends: bool) -> None:
    class OneToken(FakeTokenizer):
        def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
            return piece

    assert Sentences(OneToken()).ends_with(0) == ends


def test_a_change_of_mind() -> None:
    with opened("turn") as stream:
        stream.feed(range(N_KEEP))
        for _ in range(3):
            stream.begin_turn()
            stream.feed([7] * 12)
        stream.change(n_discard=1)
        stream.feed([8] * 3)
        assert window_start(stream) == N_KEEP + 3
        stream.change(n_discard="turn")
        stream.feed([8])
        assert window_start(stream) == N_KEEP + 12


def test_turns_that_have_left_are_not_remembered() -> None:
    with opened("half") as stream:
        stream.feed(range(N_KEEP))
        for _ in range(200):
            stream.begin_turn()
            stream.feed([7] * 3)
        assert len(stream._controller.state.boundaries) <= N_CTX


def test_reset_forgets_turns() -> None:
    with opened("turn") as stream:
        stream.feed(range(30))
        stream.begin_turn()
        stream.reset()
        stream.feed(range(N_KEEP))
        stream.feed([7] * (N_CTX - N_KEEP))
        stream.feed([7])
        assert window_start(stream) == N_KEEP + (N_CTX - N_KEEP) // 2, "half was cut off"
