"""The stream against an independent implementation of the paper, on real llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from streamsink.core.events import Event, Evicted, Step
from streamsink.core.plan import MAIN, SCRATCH
from streamsink.core.policy import OVERSHOOT, Discard, Placement, SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import CapabilityError, ClosedError, DecodeError, UsageError
from streamsink.llama import lane_probe as probe
from streamsink.llama.context import NativeContext
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.reference import nll, stream_logits
from tests.tiny_gguf import SPECIALS, TinyModel

Floats = NDArray[np.float64]

N_CTX, N_KEEP = 48, 4
TOLERANCE = 2e-4
"""Nat. llama.cpp computes in float32, the reference in float64."""
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def tokens(tiny_model: TinyModel) -> list[int]:
    n_vocab = tiny_model.config.n_vocab
    return [int(t) for t in np.random.default_rng(1).integers(len(SPECIALS), n_vocab, 400)]


@pytest.fixture(scope="module")
def expected(tiny_model: TinyModel, tokens: list[int]) -> Callable[..., Floats]:
    @cache
    def scores(
        n_discard: int | Literal["half"] = 1, slack: int = 0, n_keep: int = N_KEEP
    ) -> Floats:
        logits = stream_logits(tiny_model, tokens, N_CTX, n_keep, n_discard, slack)
        return nll(logits, tokens)

    return scores


def open_stream(model: Model, policy: SinkPolicy, n_lanes: int = 64, **options: Any) -> Stream:
    """A stream whose cache rounds nothing."""
    return model.stream(policy, N_CTX, "f32", "f32", n_lanes=n_lanes, threads=1, **options)


def assert_close(scores: Floats, reference: Floats) -> None:
    assert scores.shape == reference.shape
    assert (np.isnan(scores) == np.isnan(reference)).all()
    assert np.nanmax(np.abs(scores - reference)) < TOLERANCE


def context_of(stream: Stream) -> NativeContext:
    backend = stream._context
    assert isinstance(backend, NativeContext)
    return backend


def count_calls(monkeypatch: pytest.MonkeyPatch, context: NativeContext, name: str) -> list[int]:
    """Collect the number of tokens of each call of a method."""
    plain = getattr(context, name)
    sizes: list[int] = []

    def counted(tokens: Sequence[int], *rest: object) -> None:
        sizes.append(len(tokens))
        plain(tokens, *rest)

    monkeypatch.setattr(context, name, counted)
    return sizes


# -- what the stream computes -------------------------------------------------------------------


@pytest.mark.parametrize("n_lanes", [1, 64])
@pytest.mark.parametrize("n_discard", [1, 3, "half"])
@pytest.mark.parametrize("slack", [0, 16])
@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
def test_scores_are_the_papers(
    model: Model,
    tokens: list[int],
    expected: Callable[..., Floats],
    placement: Placement,
    slack: int,
    n_discard: Discard,
    n_lanes: int,
) -> None:
    policy = SinkPolicy(N_KEEP, n_discard, placement, slack)
    with open_stream(model, policy, n_lanes) as stream:
        scores = stream.score(tokens)
        stats = stream.stats
    assert_close(scores, expected(n_discard, slack))
    assert stats.placement == placement
    assert stats.evicted > 300
    assert stats.gap <= slack
    moves = {"rotate": stats.shifts, "reanchor": stats.reanchors}
    assert moves.pop(placement) > 0
    assert set(moves.values()) == {0}


@pytest.mark.parametrize("n_discard", [1, 3, "half"])
def test_a_gap_of_any_size_is_the_references(
    model: Model, tokens: list[int], expected: Callable[..., Floats], n_discard: Discard
) -> None:
    with open_stream(model, SinkPolicy(N_KEEP, n_discard, "reanchor", 63)) as stream:
        assert_close(stream.score(tokens), expected(n_discard, 63))


@pytest.mark.parametrize("n_keep", [0, 1, 46, 47])
@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
def test_the_smallest_and_largest_sinks(
    model: Model,
    tokens: list[int],
    expected: Callable[..., Floats],
    placement: Placement,
    n_keep: int,
) -> None:
    with open_stream(model, SinkPolicy(n_keep, 1, placement, 0)) as stream:
        assert_close(stream.score(tokens), expected(1, 0, n_keep))


@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
def test_pieces_and_one_call_are_the_same(
    model: Model, tokens: list[int], expected: Callable[..., Floats], placement: Placement
) -> None:
    with open_stream(model, SinkPolicy(N_KEEP, 1, placement, 16)) as stream:
        scores, at = [], 0
        for size in (1, 2, 46, 1, 5, 95, 50):
            scores.append(stream.score(tokens[at : at + size]))
            at += size
        assert stream.feed(tokens[at : at + 100]) == 100
        scores.append(stream.score(tokens[at + 100 :]))
        assert stream.score([]).shape == (0,)
    reference = expected(1, 16)
    assert_close(np.concatenate(scores), np.delete(reference, range(at, at + 100)))


# -- lanes --------------------------------------------------------------------------------------


def test_lanes_are_used_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
    model: Model,
    tokens: list[int],
    expected: Callable[..., Floats],
) -> None:
    records: dict[int, list[Evicted]] = {}
    kinds: dict[int, list[str]] = {}
    for n_lanes in (1, 64):
        gone: list[Evicted] = []
        events: list[Event] = []
        policy = SinkPolicy(N_KEEP, 1, "reanchor", 63)
        with open_stream(
            model, policy, n_lanes, on_evict=gone.append, on_event=events.append
        ) as stream:
            context = context_of(stream)
            sizes = count_calls(monkeypatch, context, "decode_lanes")
            assert_close(stream.score(tokens), expected(1, 63))
            assert context.n_lanes == n_lanes
            assert stream.stats.evictions == len(tokens) - N_CTX
        assert bool(sizes) == (n_lanes > 1)
        assert not sizes or max(sizes) > 30
        records[n_lanes] = gone
        kinds[n_lanes] = sorted(event.kind for event in events)
    assert records[1] == records[64]
    at = [record.index for record in records[64]]
    assert at == list(range(N_KEEP, N_KEEP + len(tokens) - N_CTX))
    assert [t for record in records[64] for t in record.tokens] == [tokens[index] for index in at]
    assert kinds[1].count("evict") == kinds[64].count("evict")


def test_without_working_lanes_a_stream_goes_token_by_token(
    monkeypatch: pytest.MonkeyPatch,
    model: Model,
    tokens: list[int],
    expected: Callable[..., Floats],
) -> None:
    asked: list[int] = []

    def fails(context: NativeContext, n_lanes: int) -> None:
        asked.append(n_lanes)

    monkeypatch.setattr(probe, "lane_order", fails)
    with open_stream(model, SinkPolicy(N_KEEP, 1, "reanchor", 63)) as stream:
        context = context_of(stream)
        sizes = count_calls(monkeypatch, context, "decode_lanes")
        assert_close(stream.score(tokens), expected(1, 63))
        assert context.n_lanes == 1
    assert asked == [63]
    assert sizes == []


# -- a policy that changes, positions that grow -------------------------------------------------


def assert_invariants(stream: Stream, tokens: Sequence[int]) -> None:
    """What holds at any time; ``tokens`` is the whole stream so far."""
    parts = stream.visible()
    stats = stream.stats
    assert stats.pinned + stats.window <= N_CTX
    assert stats.evicted + stats.pinned + stats.window == stats.index == len(tokens)
    assert sum(part.stop - part.start for part in parts if part.pinned) == stats.pinned
    assert sum(part.stop - part.start for part in parts) == stats.pinned + stats.window
    assert all(part.start < part.stop for part in parts)
    assert all(before.stop <= after.start for before, after in pairwise(parts))
    assert parts[-1].stop == stats.index
    for part in parts:
        assert list(part.tokens) == list(tokens[part.start : part.stop])
    assert stats.positions[1] - stats.positions[0] == stats.pinned + stats.window + stats.gap


CHANGES: list[dict[str, Any]] = [
    {},
    {"n_keep": 10},
    {"n_keep": 2},
    {"n_discard": "half"},
    {"placement": "rotate", "slack": 0},
    {"n_keep": 12, "n_discard": 3},
    {"placement": "reanchor", "slack": 16},
    {"n_keep": 0},
    {"n_keep": 5, "n_discard": 43},
    {"n_keep": -1, "n_discard": 1},
]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("n_lanes", [1, 64])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_a_policy_may_change_on_the_way(
    model: Model, tokens: list[int], size: int, n_lanes: int, order: int
) -> None:
    gone: list[Evicted] = []
    policy = SinkPolicy(N_KEEP, 1, "reanchor", 16)
    with open_stream(model, policy, n_lanes, on_evict=gone.append) as stream:
        whole = tokens[:60]
        stream.feed(whole[:20])
        stream.feed(whole[20:])
        for settings in CHANGES[::order]:
            stream.change(**settings)
            for _ in range(3):
                fresh = [tokens[(len(whole) + at) % len(tokens)] for at in range(size)]
                assert np.isfinite(stream.score(fresh)).all()
                whole = [*whole, *fresh]
                assert_invariants(stream, whole)
        live = {index for part in stream.visible() for index in range(part.start, part.stop)}
    forgotten = [record.index + at for record in gone for at in range(len(record.tokens))]
    assert sorted([*forgotten, *live]) == list(range(len(whole)))
    for record in gone:
        assert list(record.tokens) == whole[record.index : record.index + len(record.tokens)]


def test_a_larger_sink_pins_the_oldest_that_is_left(model: Model, tokens: list[int]) -> None:
    with open_stream(model, SinkPolicy(N_KEEP, 1, "reanchor", 16)) as stream:
        stream.feed(tokens[:100])
        stream.change(n_keep=10)
        stream.feed(tokens[100:300])
        pinned = [index for p in stream.visible() if p.pinned for index in range(p.start, p.stop)]
        assert pinned == [0, 1, 2, 3, 56, 57, 58, 59, 60, 61]
        stream.change(n_keep=2)
        stream.feed(tokens[300:308])
        parts = stream.visible()
    assert [(p.start, p.stop, p.pinned) for p in parts] == [(0, 2, True), (262, 308, False)]


def test_the_placement_may_change_and_scores_stay_the_papers(
    model: Model, tokens: list[int], expected: Callable[..., Floats]
) -> None:
    with open_stream(model, SinkPolicy(N_KEEP, 1, "reanchor", 0)) as stream:
        scores = []
        for at in range(0, 400, 40):
            placement = ("reanchor", "rotate")[at // 40 % 2]
            stream.change(placement=placement)
            scores.append(stream.score(tokens[at : at + 40]))
        assert stream.stats.shifts > 100
        assert stream.stats.reanchors > 100
    assert_close(np.concatenate(scores), expected(1, 0))


def test_a_policy_that_does_not_fit_changes_nothing(model: Model, tokens: list[int]) -> None:
    with open_stream(model, SinkPolicy(N_KEEP)) as stream:
        stream.feed(tokens[:60])
        before = stream.policy, stream.stats
        for settings in ({"n_keep": N_CTX}, {"n_discard": 45}, {"placement": "sideways"}):
            with pytest.raises(UsageError):
                stream.change(**settings)
        assert (stream.policy, stream.stats) == before
        stream.feed(tokens[60:80])
        assert_invariants(stream, tokens[:80])


def test_an_approximate_placement_is_taken_by_force_only(tokens: list[int], tmp_path: Path) -> None:
    path = TinyModel.create(n_head=1, n_head_kv=1).write(tmp_path / "a-head-of-64.gguf")
    policy = SinkPolicy(N_KEEP, 1, "rotate", slack=16)
    with Model(Weights(path)) as model:
        with pytest.raises(CapabilityError, match=r"quantised anew.*force=True"):
            model.stream(policy, N_CTX, "q4_0")
        with model.stream(replace(policy, force=True), N_CTX, "q4_0") as stream:
            scores = stream.score(tokens)
            stats = stream.stats
        assert np.isfinite(scores[1:]).all()
        assert stats.shifts > 0
        assert "quantised anew" in stats.why
        with model.stream(replace(policy, placement="auto"), N_CTX, "q4_0") as stream:
            assert stream.stats.placement == "reanchor"


def test_an_impossible_placement_is_refused_to_force_too(model: Model, tmp_path: Path) -> None:
    # llama.cpp's K-shift would end the process.
    with pytest.raises(CapabilityError, match="cannot shift bf16 keys"):
        model.stream(SinkPolicy(N_KEEP, 1, "rotate", force=True), N_CTX, "bf16")
    path = TinyModel.create(n_head=2, n_head_kv=2).write(tmp_path / "heads-of-32.gguf")
    with (
        Model(Weights(path)) as other,
        pytest.raises(CapabilityError, match="cannot shift q8_0 keys of 32"),
    ):
        other.stream(SinkPolicy(N_KEEP, 1, "rotate", force=True), N_CTX, "q8_0")


def test_types_that_do_not_fit_the_heads(model: Model) -> None:
    with pytest.raises(CapabilityError, match=r"cache_type_k='q8_0' .* 16 dimensions"):
        model.stream(SinkPolicy(N_KEEP), N_CTX, "q8_0")
    with pytest.raises(CapabilityError, match=r"cache_type_v='q4_0' .* 16 dimensions"):
        model.stream(SinkPolicy(N_KEEP), N_CTX, "f16", "q4_0")


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_rope_scaled_by_option_is_that_of_a_scaled_model(
    scaling: Literal["linear", "yarn"], model: Model, tiny_model: TinyModel, tokens: list[int]
) -> None:
    config = replace(
        tiny_model.config,
        rope_scaling=scaling,
        rope_factor=4.0,
        context_length=4 * tiny_model.config.context_length,
    )
    scaled = replace(tiny_model, config=config)
    expected = nll(stream_logits(scaled, tokens, N_CTX, N_KEEP, 1, 16), tokens)
    policy = SinkPolicy(N_KEEP, 1, "reanchor", slack=16)
    with open_stream(model, policy, rope_scaling=scaling, rope_scale=4.0) as stream:
        assert_close(stream.score(tokens), expected)


def test_rope_scaling_stretches_the_trained_context(model: Model) -> None:
    n_ctx = int(model.n_ctx_train * (1 + OVERSHOOT))
    policy = SinkPolicy(4)
    with model.stream(policy, n_ctx, threads=1) as stream:
        assert stream.stats.slack == 0
    with model.stream(policy, n_ctx, rope_scaling="yarn", rope_scale=2.0, threads=1) as stream:
        assert stream.stats.slack > 100
        assert stream.stats.placement == "reanchor"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rope_scaling": "ntk", "rope_scale": 2.0}, "rope_scaling='ntk' is not possible"),
        ({"rope_scaling": "yarn"}, "go together"),
        ({"rope_scale": 2.0}, "go together"),
        ({"rope_scaling": "none", "rope_scale": 2.0}, "go together"),
        ({"rope_scaling": "yarn", "rope_scale": 0.5}, "rope_scale=0.5 is not possible"),
        ({"rope_scaling": "yarn", "rope_scale": float("nan")}, "rope_scale=nan"),
    ],
)
def test_rope_scaling_that_is_none(model: Model, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        model.stream(SinkPolicy(), N_CTX, **options)


@pytest.mark.parametrize("n_lanes", [1, 64])
@pytest.mark.parametrize("slack", [0, 16])
@pytest.mark.parametrize("n_keep", [0, N_KEEP])
def test_a_rebase_changes_nothing(
    model: Model,
    tokens: list[int],
    expected: Callable[..., Floats],
    n_keep: int,
    slack: int,
    n_lanes: int,
) -> None:
    policy = SinkPolicy(n_keep, 1, "reanchor", slack)
    with open_stream(model, policy, n_lanes, n_batch=80) as stream:
        # Twice the sum of n_ctx, slack and batch is the least: at most 288 here.
        stream._controller.rebase_at = 60
        scores = stream.score(tokens)
        assert stream.stats.rebases > 0
        assert stream.stats.positions[1] < 300
        assert_invariants(stream, tokens)
    assert_close(scores, expected(1, slack, n_keep))


# -- generating ---------------------------------------------------------------------------------

PROMPT = [0, 5, 99, 200, 17]


@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
def test_greedy_generation_follows_the_reference(
    model: Model, tiny_model: TinyModel, placement: Placement
) -> None:
    with open_stream(model, SinkPolicy(N_KEEP, 1, placement, 16)) as stream:
        stream.feed(PROMPT)
        steps = list(stream.generate(200, sampling=GREEDY, ignore_eos=True))
        assert stream.stats.evicted > 150
        whole = [*PROMPT, *(step.token for step in steps)]
        assert stream.stats.index == len(whole)
        assert_invariants(stream, whole)
    assert [step.index for step in steps] == list(range(len(PROMPT), len(whole)))
    assert [step.finish for step in steps] == [None] * 199 + ["length"]
    logits = stream_logits(tiny_model, whole, N_CTX, N_KEEP, 1, 16)[len(PROMPT) - 1 : -1]
    top = np.sort(logits, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-3
    assert clear.sum() > 190
    assert (logits.argmax(axis=1)[clear] == np.array(whole[len(PROMPT) :])[clear]).all()


def test_what_was_generated_was_taken_in(model: Model, tiny_model: TinyModel) -> None:
    tail = list(range(20, 120))
    with open_stream(model, SinkPolicy(N_KEEP, 1, "reanchor", 16)) as stream:
        stream.feed(PROMPT)
        steps = list(stream.generate(60, sampling=Sampling(seed=3), ignore_eos=True))
        scores = stream.score(tail)
    whole = [*PROMPT, *(step.token for step in steps), *tail]
    reference = nll(stream_logits(tiny_model, whole, N_CTX, N_KEEP, 1, 16), whole)
    assert_close(scores, reference[-len(tail) :])


def test_the_same_seed_gives_the_same_tokens(model: Model) -> None:
    runs: list[list[int]] = []
    for seed in (1, 1, 2):
        with open_stream(model, SinkPolicy()) as stream:
            stream.feed("Call me Ishmael.")
            steps = stream.generate(100, sampling=Sampling(seed=seed), ignore_eos=True)
            runs.append([step.token for step in steps])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_loop_may_be_left_and_the_stream_goes_on(model: Model, tokens: list[int]) -> None:
    with open_stream(model, SinkPolicy()) as stream:
        whole = tokens[:30]
        stream.feed(whole)
        for _ in range(4):
            taken: list[Step] = []
            for step in stream.generate(None, sampling=GREEDY, ignore_eos=True):
                taken.append(step)
                if len(taken) == 17:
                    break
            whole = [*whole, *(step.token for step in taken), *tokens[:9]]
            assert stream.stats.index == len(whole) - 9
            assert stream.visible_tokens()[-17:] == [step.token for step in taken]
            stream.feed(tokens[:9])
            assert stream.stats.index == len(whole)
            assert_invariants(stream, whole)


def test_the_end_of_text_ends_generation(
    monkeypatch: pytest.MonkeyPatch, model: Model, tokens: list[int]
) -> None:
    with open_stream(model, SinkPolicy()) as stream:
        stream.feed(tokens[:20])
        drawn = iter([50, 60, SPECIALS.index("</s>"), 70])
        monkeypatch.setattr(context_of(stream), "sample", lambda sampler, index: next(drawn))
        steps = list(stream.generate(10))
        assert [(step.token, step.finish) for step in steps] == [
            (50, None),
            (60, None),
            (SPECIALS.index("</s>"), "eos"),
        ]
        assert steps[-1].text == ""
        assert stream.stats.index == 23


def test_a_stop_string_ends_generation(
    monkeypatch: pytest.MonkeyPatch, model: Model, tokens: list[int]
) -> None:
    with open_stream(model, SinkPolicy()) as stream:
        stream.feed(tokens[:20])
        drawn = iter(stream.tokenize("one, two, STOP three"))
        monkeypatch.setattr(context_of(stream), "sample", lambda sampler, index: next(drawn))
        steps = list(stream.generate(100, stop=["STOP"], ignore_eos=True))
        assert "".join(step.text for step in steps) == "one, two, "
        assert [step.finish for step in steps] == [None] * (len(steps) - 1) + ["stop"]
        assert stream.stats.index == 20 + len(steps)


def test_generation_from_nothing_begins_with_bos(model: Model) -> None:
    with open_stream(model, SinkPolicy()) as stream:
        steps = list(stream.generate(3, sampling=GREEDY, ignore_eos=True))
        assert [step.index for step in steps] == [1, 2, 3]
        assert stream.visible_tokens() == [stream.bos, *(step.token for step in steps)]
        assert list(stream.generate(0)) == []


# -- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_keep", [N_CTX, N_CTX + 1])
def test_a_sink_without_a_window(model: Model, n_keep: int) -> None:
    with pytest.raises(UsageError, match="n_keep"):
        open_stream(model, SinkPolicy(n_keep))


@pytest.mark.parametrize(("option", "types"), [("k", ("q9", "f32")), ("v", ("f32", "q9"))])
def test_a_cache_type_that_is_none(model: Model, option: str, types: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=f"cache_type_{option}"):
        model.stream(SinkPolicy(), N_CTX, *types)


@pytest.mark.parametrize(
    ("bad", "says"),
    [(-1, "vocabulary"), (300, "vocabulary"), (2**31, "vocabulary"), (1.5, "token ids")],
)
@pytest.mark.parametrize("operation", ["feed", "score"])
def test_what_is_no_token(
    model: Model,
    tokens: list[int],
    expected: Callable[..., Floats],
    operation: Literal["feed", "score"],
    bad: float,
    says: str,
) -> None:
    with open_stream(model, SinkPolicy(N_KEEP, 1, "reanchor", 0)) as stream:
        with pytest.raises(UsageError, match=says):
            getattr(stream, operation)([*tokens[:5], bad])
        assert stream.stats.index == 0
        assert_close(stream.score(tokens[:60]), expected()[:60])


def test_a_closed_stream(model: Model, tokens: list[int]) -> None:
    stream = open_stream(model, SinkPolicy())
    stream.feed(tokens[:5])
    steps = stream.generate(5)
    next(steps)
    stream.close()
    stream.close()
    for operation in (
        lambda: stream.feed(tokens),
        lambda: stream.score(tokens),
        lambda: next(stream.generate()),
        lambda: next(steps),
        lambda: stream.change(n_keep=5),
        stream.visible,
        stream.reset,
    ):
        with pytest.raises(ClosedError):
            operation()


def test_a_prompt_too_long_to_be_pinned(model: Model, tokens: list[int]) -> None:
    with open_stream(model, SinkPolicy(n_keep=-1)) as stream:
        for size in (N_CTX, N_CTX + 1, 400):
            with pytest.raises(UsageError, match="pinned prefix"):
                stream.feed(tokens[:size])
            assert stream.stats.index == 0
            assert stream.visible() == []
        stream.feed(tokens[: N_CTX - 1])
        stream.feed(tokens[N_CTX - 1 :])
        assert stream.stats.pinned == N_CTX - 1
        assert_invariants(stream, tokens)


def test_a_reset_stream_is_a_new_one(
    model: Model, tokens: list[int], expected: Callable[..., Floats]
) -> None:
    with open_stream(model, SinkPolicy(N_KEEP, 1, "reanchor", 16)) as stream:
        stream.feed(tokens[::-1])
        next(stream.generate(5))
        stream.reset()
        assert stream.visible_tokens() == []
        assert stream.stats.index == 0
        assert_close(stream.score(tokens), expected(1, 16))


# -- failures -----------------------------------------------------------------------------------


def fail_once(
    monkeypatch: pytest.MonkeyPatch, context: NativeContext, name: str, nth: int, seq: int | None
) -> list[int]:
    """Let the ``nth`` call of a method for a sequence raise; return a list that then fills."""
    plain = getattr(context, name)
    calls = 0
    failures: list[int] = []

    def failing(tokens: Sequence[int], pos: int, where: object, rows: object) -> None:
        nonlocal calls
        calls += seq is None or where == seq
        if calls == nth and not failures:
            failures.append(len(tokens))
            raise DecodeError("injected", -3)
        plain(tokens, pos, where, rows)

    monkeypatch.setattr(context, name, failing)
    return failures


@pytest.mark.parametrize(
    ("name", "seq", "nth", "n_lanes", "size"),
    [
        *(
            (*failure, size)
            for size in (1, 40)
            for failure in (
                ("decode", MAIN, 1, 1),
                ("decode", MAIN, 30, 1),
                ("decode", MAIN, 70, 1),
                ("decode", SCRATCH, 1, 1),
                ("decode", SCRATCH, 3, 1),
                ("decode", SCRATCH, 2, 64),
            )
        ),
        ("decode_lanes", None, 1, 64, 40),
        ("decode_lanes", None, 4, 64, 40),
    ],
)
@pytest.mark.parametrize("n_discard", [1, 3])
def test_a_failed_decode_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
    model: Model,
    tokens: list[int],
    expected: Callable[..., Floats],
    size: int,
    n_discard: Discard,
    name: str,
    seq: int | None,
    nth: int,
    n_lanes: int,
) -> None:
    if size == 40 and nth == 70:
        nth = 5
    policy = SinkPolicy(N_KEEP, n_discard, "reanchor", 9)
    with open_stream(model, policy, n_lanes) as stream:
        failures = fail_once(monkeypatch, context_of(stream), name, nth, seq)
        taken, n_errors = 0, 0
        while taken < 200:
            try:
                stream.feed(tokens[taken : taken + size])
            except DecodeError:
                n_errors += 1
                assert taken <= stream.stats.index < taken + size
            taken = stream.stats.index
            if taken:
                assert_invariants(stream, tokens[:taken])
        assert len(failures) == n_errors == 1
        scores = stream.score(tokens[taken:])
        assert_invariants(stream, tokens)
    assert_close(scores, expected(n_discard, 9)[taken:])


def test_a_failed_generation_goes_on(
    monkeypatch: pytest.MonkeyPatch, model: Model, tiny_model: TinyModel
) -> None:
    with open_stream(model, SinkPolicy(N_KEEP, 1, "reanchor", 5)) as stream:
        stream.feed(PROMPT)
        fail_once(monkeypatch, context_of(stream), "decode", 75, MAIN)
        steps: list[Step] = []
        n_errors = 0
        while len(steps) < 120:
            try:
                for step in stream.generate(120 - len(steps), sampling=GREEDY, ignore_eos=True):
                    steps.append(step)
            except DecodeError:
                n_errors += 1
                assert stream.stats.index == len(PROMPT) + len(steps)
        assert n_errors == 1
        scores = stream.score(list(range(20, 60)))
    whole = [*PROMPT, *(step.token for step in steps), *range(20, 60)]
    reference = nll(stream_logits(tiny_model, whole, N_CTX, N_KEEP, 1, 5), whole)
    assert_close(scores, reference[-40:])


def test_after_a_failure_indices_are_right_in_a_window_of_two(
    monkeypatch: pytest.MonkeyPatch, model: Model, tokens: list[int]
) -> None:
    # The eviction leaves one token in the window, the decode fails, and `score` needs the logits
    # of that one token again.
    with open_stream(model, SinkPolicy(N_CTX - 2, 1, "reanchor", 16), n_lanes=1) as stream:
        stream.feed(tokens[:60])
        fail_once(monkeypatch, context_of(stream), "decode", 1, MAIN)
        with pytest.raises(DecodeError):
            stream.feed(tokens[60:61])
        assert np.isfinite(stream.score(tokens[60:100])).all()
        assert_invariants(stream, tokens[:100])
