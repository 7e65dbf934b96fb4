"""Spans pinned where they stand: read once, never evaluated again, never lost."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamsink import session
from streamsink.core.plan import MAIN
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import SessionError, UsageError
from streamsink.model import Model
from tests.fake_backend import FakeBackend
from tests.faulty_backend import FaultyBackend
from tests.test_chat import answer, fed, open_chat

N_CTX = 48
TOKENS = [random.Random(3).randrange(256) for _ in range(600)]


def opened(policy: SinkPolicy, n_ctx: int = N_CTX) -> tuple[Stream, FakeBackend]:
    backend = FakeBackend(2 * n_ctx + 8)
    return Stream(backend, policy, n_ctx), backend


def cells_are_the_ledger(stream: Stream, backend: FakeBackend) -> None:
    if not stream.visible_tokens():  # cells are cleared with the next token
        return
    stream.logits()  # what is missing is evaluated
    cells = sorted((cell for cell in backend.cells if MAIN in cell.sequences), key=lambda c: c.pos)
    assert [cell.token for cell in cells] == stream.visible_tokens()


# -- against a stream whose prefix is made to grow -------------------------------------------------


@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
@pytest.mark.parametrize("slack", [0, 7, None])
def test_it_is_a_prefix_that_grows_when_the_span_arrives(placement: Any, slack: int | None) -> None:
    """The same cells, to the last bit of what they remember."""
    policy = SinkPolicy(4, 1, placement, slack)
    (held, mine), (grown, theirs) = opened(policy), opened(policy)
    for stream in (held, grown):
        stream.feed(TOKENS[:40])
    assert held.pin(20, 30, in_place=True).n_evaluated == 0
    for at, token in enumerate(TOKENS[40:200], 40):
        # The next token pushes out that of an index.
        if at - (N_CTX - 4) == 20:
            grown.change(n_keep=14)
        for stream in (held, grown):
            stream.feed([token])
        assert held.visible_tokens() == grown.visible_tokens(), at
        assert held.logits().tolist() == grown.logits().tolist(), at
    assert held.stats.pinned == grown.stats.pinned == 14
    assert (20, 30) in held.pinned_ranges
    for stream, backend in ((held, mine), (grown, theirs)):
        cells_are_the_ledger(stream, backend)


def test_nothing_is_evaluated_and_nothing_seen_twice() -> None:
    backend = FaultyBackend(FakeBackend(2 * N_CTX + 8))
    stream = Stream(backend, SinkPolicy(4, 1, "rotate"), N_CTX)
    stream.feed(TOKENS[:40])
    n = backend.calls.count("decode")
    stream.pin(20, 30, in_place=True)
    assert backend.calls.count("decode") == n
    assert stream.visible_tokens() == TOKENS[:40]
    assert [(part.start, part.stop, part.pinned) for part in stream.visible()] == [
        (0, 4, True), (4, 20, False), (20, 30, True), (30, 40, False),
    ]  # fmt: skip
    for token in TOKENS[40:200]:
        stream.feed([token])
    assert stream.visible_tokens() == TOKENS[:4] + TOKENS[20:30] + TOKENS[200 - 34 : 200]
    assert backend.calls.count("decode") == n + 160


# -- whatever is done ------------------------------------------------------------------------------


CALLS = (
    *("feed", "feed", "feed one", "generate", "turn", "pin", "unpin", "rewind", "discard"),
    *("fork", "restore", "repin", "break off"),
)


@pytest.mark.parametrize("seed", range(80))
def test_whatever_is_done_it_is_there_once(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    n_discard: Any = draw.choice([1, 3, 9, "half", "turn", "sentence"])
    placement: Any = draw.choice(["rotate", "reanchor", "auto"])
    stream, backend = opened(SinkPolicy(draw.choice([0, 1, 4]), n_discard, placement))
    stream.feed(TOKENS[:20])
    held: list[range] = []
    for _ in range(40):
        what = draw.choice(CALLS)
        sees = stream.stats.sees
        start = sees[-1][0] if sees else stream.stats.index
        if what == "feed":
            n = draw.randrange(1, 60)
            stream.feed([draw.randrange(256) for _ in range(n)])
        elif what == "feed one":
            stream.feed([draw.randrange(256)])
        elif what == "generate":
            for _ in stream.generate(draw.randrange(1, 9), sampling=Sampling(seed=1)):
                pass
        elif what == "turn":
            stream.begin_turn()
        elif what == "discard":
            stream.change(n_discard=draw.choice([1, 2, 9, "half", "turn"]))
        elif what == "pin" and start < stream.stats.index:
            first = draw.randrange(start, stream.stats.index)
            span = range(first, min(first + draw.randrange(1, 8), stream.stats.index))
            n_keep = stream.stats.pinned
            try:
                stream.pin(span.start, span.stop, in_place=True)
            except UsageError:
                continue
            if stream.stats.pinned == n_keep + len(span):
                held.append(span)
            else:  # of some of it there was a copy already
                stream.unpin()
        elif what == "unpin" and held:
            known = {tuple(one) for one in stream.pinned_ranges}
            stream.unpin()
            gone = known - {tuple(one) for one in stream.pinned_ranges}
            held = [span for span in held if (span.start, span.stop) not in gone]
        elif what == "rewind":
            index = max(draw.randrange(start, stream.stats.index + 1), *(s.stop for s in held), 0)
            with suppress(UsageError):  # it is of the head by now
                stream.rewind(min(index, stream.stats.index))
        elif what == "break off":
            before = stream.visible_tokens(), stream.pins, stream.pinned_ranges, stream.stats.index
            with suppress(ZeroDivisionError), stream.transaction():
                stream.feed([draw.randrange(256) for _ in range(draw.randrange(1, 90))])
                raise ZeroDivisionError
            assert before == (
                stream.visible_tokens(),
                stream.pins,
                stream.pinned_ranges,
                stream.stats.index,
            )
        elif what == "fork":
            stream = stream.fork()
            backend = stream._context  # type: ignore[assignment]
        elif what == "restore":
            stream.save(tmp_path / "a.session")
            stream.restore(
                session.read(tmp_path / "a.session").stream,
                session.read(tmp_path / "a.session").kind,
                session.read_cells(tmp_path / "a.session") if draw.random() < 0.5 else None,
            )
        elif what == "repin" and stream.stats.pinned < N_CTX - 20:
            with suppress(UsageError):  # an empty stream has none
                stream.repin([draw.randrange(256) for _ in range(draw.randrange(1, 9))])
        cells_are_the_ledger(stream, backend)
        assert stream.stats.pinned + stream.stats.window <= N_CTX
        seen = Counter(at for part in stream.visible() for at in range(part.start, part.stop))
        for span in held:
            assert all(seen[at] == 1 for at in span), (what, span, stream.stats.sees)
            assert any(first <= span.start and span.stop <= last for first, last in
                       stream.pinned_ranges)  # fmt: skip


def test_what_is_taken_back_is_pinned_no_more() -> None:
    stream, backend = opened(SinkPolicy(4))
    stream.feed(TOKENS[:40])
    stream.pin(20, 30, in_place=True)
    stream.pin(32, 36, in_place=True)
    stream.rewind(34)
    pins = [len(stream.pins)]
    stream.rewind(25)
    pins.append(len(stream.pins))
    assert pins == [1, 0]
    stream.feed(TOKENS[40:140])
    cells_are_the_ledger(stream, backend)
    assert stream.stats.pinned == 4


def test_what_cannot_be_held() -> None:
    stream, _ = opened(SinkPolicy(4))
    stream.feed(TOKENS[:48])
    stream.pin(10, 20, in_place=True)
    with pytest.raises(UsageError, match="already"):
        stream.pin(15, 25, in_place=True)
    stream.pin(20, 48, in_place=True)
    with pytest.raises(UsageError, match="leaves no window"):
        stream.pin(4, 10, in_place=True)
    with pytest.raises(UsageError, match="leaves no window"):
        stream.repin([1] * 40)
    stream.change(n_keep=6)  # decided anew
    assert stream.pins == ()


def test_an_edited_history_leaves_it_alone() -> None:
    stream, backend = opened(SinkPolicy(4))
    stream.feed(TOKENS[:40])
    stream.pin(20, 30, in_place=True)
    stream.align(TOKENS[:15] + TOKENS[35:40] + [1, 2, 3])
    assert stream.pins == (tuple(TOKENS[20:30]),)
    assert stream.visible_tokens()[4:14] == TOKENS[20:30]
    stream.feed(TOKENS[100:200])
    assert stream.visible_tokens()[4:14] == TOKENS[20:30]
    cells_are_the_ledger(stream, backend)


def test_a_damaged_session_is_refused(tmp_path: Path) -> None:
    stream, _ = opened(SinkPolicy(4))
    stream.feed(TOKENS[:40])
    stream.pin(20, 30, in_place=True)
    saved = stream.capture().stream
    for ranges, tokens in (
        (((20, 31),), saved.pinned.held[0].tokens),
        (((35, 45),), saved.pinned.held[0].tokens),
        (((20, 24), (26, 32)), saved.pinned.held[0].tokens),
        (((1, 11),), saved.pinned.held[0].tokens),
    ):
        span = replace(saved.pinned.held[0], ranges=ranges, tokens=tokens)
        bad = replace(saved, pinned=replace(saved.pinned, held=(span,)))
        with pytest.raises(SessionError, match="held"):
            bad.check(258)


# -- in a chat, and on real cells ------------------------------------------------------------------


def test_a_turn_is_pinned_where_it_stands() -> None:
    chat, backend = open_chat(SinkPolicy("system"), n_ctx=120, system="Be kind.")
    answer(chat, backend, "Hi", "Ho")
    answer(chat, backend, "A secret?", "It is 7.")
    n = chat.stream.stats.pinned
    assert chat.pin() > n
    assert fed(chat).count(b"A secret?") == 1
    for at in range(8):
        answer(chat, backend, f"On {at}?", f"On it goes {at}.")
        assert fed(chat).count(b"A secret?") == 1
        assert [chat.memory(one) for one in chat.messages[2:4]] == ["pinned"] * 2
    assert fed(chat).startswith(
        b"<s>[system]Be kind.</s>[user]A secret?</s>[assistant]It is 7.</s>"
    )
    assert chat.unpin() < chat.stream.n_ctx
    for at in range(8):
        answer(chat, backend, f"On {at}?", f"On it goes {at}.")
    assert b"A secret?" not in fed(chat)


@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
def test_on_real_cells(model: Model, placement: Any) -> None:
    policy = SinkPolicy(4, 1, placement, 5)
    rows = []
    for in_place in (True, False):
        with model.stream(policy, N_CTX, "f32", "f32", threads=1) as stream:
            stream.feed(TOKENS[:40])
            if in_place:
                stream.pin(20, 30, in_place=True)
            for at, token in enumerate(TOKENS[40:140], 40):
                if not in_place and at - (N_CTX - 4) == 20:
                    stream.change(n_keep=14)
                stream.feed([token])
            stream.feed(TOKENS[140:300])  # in lanes
            rows.append((stream.visible_tokens(), stream.logits()))
    assert rows[0][0] == rows[1][0]
    np.testing.assert_allclose(rows[0][1], rows[1][1], atol=1e-4)


def test_in_an_engine_as_alone(model: Model) -> None:
    rows = []
    with model.engine(2, N_CTX, "f32", "f32", threads=1) as engine:
        for place in ("engine", "alone"):
            policy = SinkPolicy(4)
            if place == "engine":
                stream = engine.stream(policy)
            else:
                stream = model.stream(policy, N_CTX, "f32", "f32", threads=1)
            with stream:
                stream.feed(TOKENS[:40])
                stream.pin(20, 30, in_place=True)
                stream.feed(TOKENS[40:140])
                rows.append((stream.visible_tokens(), stream.pinned_ranges, stream.logits()))
    assert rows[0][:2] == rows[1][:2]
    np.testing.assert_allclose(rows[0][2], rows[1][2], atol=1e-4)
