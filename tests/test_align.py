"""A stream holds the history that its owner has edited, and evaluates what is new of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from streamsink.core.events import Event
from streamsink.core.policy import Placement, SinkPolicy
from streamsink.engine.stream import Stream
from streamsink.errors import DecodeError, UsageError
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.fake_backend import FakeBackend
from tests.reference import Floats, Step, replay_logits
from tests.reference_families import ARCHITECTURES
from tests.tiny_gguf import TinyModel
from tests.zoo import FAMILIES, N_VOCAB

N_CTX, N_KEEP = 64, 6
RNG = np.random.default_rng(31)
TOKENS = [int(t) for t in RNG.integers(4, 290, 2000)]
NEW = [int(t) for t in RNG.integers(4, 290, 500)]
CLOSE = 1e-4


class Plain:
    """What a stream should see, as a list, and what each token that came has seen."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.steps: list[Step] = []
        self.live: list[int] = []

    def feed(self, tokens: Sequence[int]) -> None:
        """Each token sees the pinned ones and the newest others, as neighbours."""
        for token in tokens:
            if len(self.live) == N_CTX:
                del self.live[N_KEEP]
            self.live.append(len(self.tokens))
            self.tokens.append(token)
            self.steps.append(Step(np.array(self.live), np.arange(len(self.live))))

    def take_out(self, start: int, stop: int) -> None:
        """Take visible tokens out."""
        del self.live[start:stop]

    def see_anew(self) -> None:
        """The newest token is decoded again: the one that foresaw has been taken out."""
        self.feed([self.tokens[self.live.pop()]])

    def logits(self, model: TinyModel) -> Floats:
        return np.asarray(replay_logits(model, self.tokens, self.steps)[-1])

    @property
    def visible(self) -> list[int]:
        return [self.tokens[index] for index in self.live]


def opened(model: Model, placement: Placement = "rotate", slack: int = 0) -> Stream:
    return model.stream(SinkPolicy(N_KEEP, 1, placement, slack), N_CTX, "f32", "f32", n_batch=64)


@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
@pytest.mark.parametrize("n_fed", [40, N_CTX, 170])
def test_any_edit_is_what_a_transformer_makes_of_it(
    tiny_model: TinyModel, model: Model, placement: Placement, n_fed: int
) -> None:
    """Parts are taken out, the end is changed: in 32-bit floats as the paper's algorithm."""
    draw = np.random.default_rng(n_fed)
    unseen = iter(NEW * 2)
    with opened(model, placement) as stream:
        plain, history = Plain(), TOKENS[:n_fed]
        stream.feed(history)
        plain.feed(history)
        for _ in range(6):
            n = len(plain.live) - N_KEEP
            at = len(history) - n  # where in the history the window begins
            a, b = sorted(int(one) for one in draw.integers(8, max(9, n - 16), 2))
            c = min(b + 10, n)
            cut = n - int(draw.integers(0, 4)) if c < n - 4 else n
            tail = list(islice(unseen, int(draw.integers(0, 20))))
            history = [*history[: at + a], *history[at + b : at + cut], *tail]
            done = stream.align(history)
            plain.take_out(N_KEEP + cut, N_KEEP + n)
            plain.take_out(N_KEEP + a, N_KEEP + b)
            plain.feed(tail)
            if not tail and (cut < n or a < b):
                plain.see_anew()
            assert stream.visible_tokens() == plain.visible
            assert stream.stats.index == len(history)
            assert (done.n_new, done.n_again) == (len(tail), 0)
            assert done.n_taken_out == b - a + n - cut
            assert np.abs(stream.logits() - plain.logits(tiny_model)).max() < CLOSE
            more = list(islice(unseen, 15))
            history += more
            stream.feed(more)
            plain.feed(more)
            assert stream.visible_tokens() == plain.visible
            assert np.abs(stream.logits() - plain.logits(tiny_model)).max() < CLOSE


def logits(stream: Stream) -> Floats:
    return np.asarray(stream.logits(), np.float64)


def test_a_history_that_has_grown_costs_what_is_new(model: Model) -> None:
    with opened(model) as stream, opened(model) as plain:
        stream.feed(TOKENS[:300])
        plain.feed(TOKENS[:310])
        done = stream.align(TOKENS[:310])
        assert (done.n_kept, done.n_taken_out, done.n_new, done.n_again) == (N_CTX, 0, 10, 0)
        assert done.n_forgotten == 300 - N_CTX
        assert stream.stats.sees == plain.stats.sees
        assert np.array_equal(stream.logits(), plain.logits())
        again = stream.align(TOKENS[:310])
        assert (again.n_kept, again.n_new, again.why) == (N_CTX, 0, "")
        assert np.array_equal(stream.logits(), plain.logits())


def test_what_is_forgotten_is_not_fed_again(model: Model) -> None:
    """Dropped, edited or not: what stands before something forgotten is forgotten."""
    with opened(model) as stream:
        history = TOKENS[:300]
        stream.feed(history)
        sees = stream.visible_tokens()
        history = [*history[:20], *history[60:]]  # dropped
        done = stream.align(history)
        assert (done.n_new, done.n_taken_out, done.n_forgotten) == (0, 0, 260 - N_CTX)
        history = [*history[:40], *NEW[:9], *history[50:]]  # edited
        done = stream.align(history)
        assert (done.n_new, done.n_taken_out, done.n_forgotten) == (0, 0, 259 - N_CTX)
        assert stream.visible_tokens() == sees
        assert stream.stats.index == len(history)
        history = history[:N_KEEP] + history[-30:]  # all that was forgotten, and some more
        done = stream.align(history)
        assert (done.n_kept, done.n_new, done.n_forgotten) == (N_KEEP + 30, 0, 0)
        assert stream.visible_tokens() == history


def test_something_new_before_all_that_is_seen_is_read(model: Model) -> None:
    """A summary in the place of old messages, though it quotes what was forgotten."""
    with opened(model) as stream, opened(model) as fresh:
        stream.feed(TOKENS[:300])
        summary = [*NEW[:7], *TOKENS[100:109], *NEW[7:12]]
        history = [*TOKENS[:N_KEEP], *summary, *TOKENS[280:300]]
        done = stream.align(history)
        fresh.feed(history)
        assert (done.n_kept, done.n_new, done.n_forgotten) == (N_KEEP, len(history) - N_KEEP, 0)
        assert stream.visible_tokens() == history
        assert np.abs(logits(stream) - logits(fresh)).max() < CLOSE


def test_what_is_quoted_in_the_end_is_read(model: Model) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:300])
        history = [*TOKENS[:280], *TOKENS[20:60]]
        done = stream.align(history)
        assert (done.n_new, done.n_again) == (40, 0)
        assert stream.visible_tokens()[-40:] == TOKENS[20:60]


def test_a_place_that_nobody_sees_any_more(model: Model) -> None:
    """Back to long ago: nothing is left to go on from, and all that can be seen is read."""
    with opened(model) as stream, opened(model) as fresh:
        stream.feed(TOKENS[:300])
        done = stream.align([*TOKENS[:40], *NEW[:5]])
        fresh.feed([*TOKENS[:40], *NEW[:5]])
        assert (done.n_kept, done.n_new, done.n_again) == (N_KEEP, 5, 34)
        assert done.why
        assert stream.stats.sees == fresh.stats.sees
        assert np.abs(logits(stream) - logits(fresh)).max() < CLOSE


@pytest.mark.parametrize("n_fed", [40, 300])
def test_exact_leaves_no_trace(model: Model, n_fed: int) -> None:
    with opened(model) as stream, opened(model) as other:
        stream.feed(TOKENS[:n_fed])
        other.feed(TOKENS[:n_fed])
        a, b, c = n_fed - 25, n_fed - 15, n_fed
        done = stream.align([*TOKENS[:a], *TOKENS[b:c]], exact=True)
        assert (done.n_again, done.n_new, done.why) == (15, 0, "as asked")
        other.rewind(a)
        other.feed(TOKENS[b:c])
        assert stream.visible_tokens() == other.visible_tokens()
        assert np.abs(logits(stream) - logits(other)).max() < CLOSE


@pytest.mark.parametrize("n_keep", [-1, N_KEEP, N_CTX - 1])
def test_where_nothing_was_evicted_a_prefix_is_as_any_other_part(model: Model, n_keep: int) -> None:
    """What stands before the change stays, though it is pinned."""
    policy = SinkPolicy(n_keep, 1, "rotate", 0)
    with model.stream(policy, N_CTX, "f32", "f32") as stream:
        stream.feed(TOKENS[:40])
        for history in ([*TOKENS[:30], *NEW[:5]], TOKENS[:20], TOKENS[:3], [*TOKENS[:3], *NEW[:9]]):
            n_alike = 3 if len(history) in (3, 12) else min(30, len(history))
            done = stream.align(history)
            assert (done.n_kept, done.n_new) == (n_alike, len(history) - n_alike)
            with model.stream(policy, N_CTX, "f32", "f32") as fresh:
                fresh.feed(history)
                assert stream.visible_tokens() == history
                assert np.abs(logits(stream) - logits(fresh)).max() < CLOSE


def test_back_to_the_pinned_prefix(model: Model) -> None:
    with opened(model) as stream, opened(model) as fresh:
        stream.feed(TOKENS[:300])
        done = stream.align(TOKENS[:N_KEEP])
        fresh.feed(TOKENS[:N_KEEP])
        assert (done.n_kept, done.n_new, stream.stats.index) == (N_KEEP, 0, N_KEEP)
        assert np.abs(logits(stream) - logits(fresh)).max() < CLOSE


@pytest.mark.parametrize("n_fed", [40, 300])
@pytest.mark.parametrize("n_new", [0, 3, 14])
def test_a_prefix_that_changed_is_swapped(model: Model, n_fed: int, n_new: int) -> None:
    """As by `repin`, at whatever length the history gives it."""
    new = NEW[:n_new]
    with opened(model) as stream, opened(model) as other:
        for one in (stream, other):
            one.policy = SinkPolicy(-1, 1, "rotate", 0)
            one.feed(TOKENS[:N_KEEP])
            one.feed(TOKENS[N_KEEP:n_fed])
        history = [*new, *TOKENS[N_KEEP:n_fed]]
        done = stream.align(history)
        other.repin(new)
        assert stream.visible_tokens() == other.visible_tokens()
        assert done.n_new == n_new
        assert stream.stats.pinned == n_new
        assert np.abs(logits(stream) - logits(other)).max() < CLOSE
        rest = TOKENS[n_fed : n_fed + 90]
        assert np.abs(stream.score(rest) - other.score(rest)).max() < 10 * CLOSE
        assert stream.visible_tokens() == other.visible_tokens()
        history += rest
        assert stream.align(history).n_new == 0  # it is known as the history's by now


def test_a_prefix_and_a_hole_at_once(model: Model) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:300])
        history = [*NEW[:N_KEEP], *TOKENS[N_KEEP:270], *TOKENS[280:300], *NEW[50:53]]
        done = stream.align(history)
        assert stream.visible_tokens() == history[:N_KEEP] + history[N_KEEP - N_CTX + 10 - 3 :]
        assert (done.n_new, done.n_taken_out) == (N_KEEP + 3, N_KEEP + 10)
        shown = stream.align(history, exact=True)
        assert shown.n_new == shown.n_again == 0


def test_pins_stay(model: Model) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:100])
        stream.pin(60, 70)
        stream.feed(TOKENS[100:200])
        history = [*TOKENS[:150], *TOKENS[162:200], *NEW[:4]]
        done = stream.align(history)
        assert done.n_new == 4
        assert stream.pins == (tuple(TOKENS[60:70]),)
        visible = stream.visible_tokens()
        assert visible[: N_KEEP + 10] == TOKENS[:N_KEEP] + TOKENS[60:70]
        assert visible[N_KEEP + 10 :] == history[N_KEEP + 10 - len(visible) :]


def test_released_tokens_stay_where_nothing_changes(model: Model) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:100])
        stream.change(n_keep=2)
        assert stream.align(TOKENS[:100]).n_taken_out == 0
        done = stream.align([*TOKENS[:3], *TOKENS[5:100]])
        assert done.n_taken_out == N_KEEP - 2
        assert stream.visible_tokens() == TOKENS[:2] + TOKENS[100 - N_CTX + N_KEEP : 100]


def test_another_history_altogether_begins_anew(model: Model) -> None:
    with opened(model) as stream, opened(model) as fresh:
        stream.feed(TOKENS[:100])
        for history in (NEW[:80], NEW[:3], TOKENS[:4]):
            stream.align(history)
            fresh.reset()
            fresh.feed(history)
            assert stream.stats.sees == fresh.stats.sees
            assert np.array_equal(stream.logits(), fresh.logits())
        done = stream.align([])
        assert (stream.stats.index, done.n_taken_out) == (0, 4)
        assert stream.align(TOKENS[:9]).n_new == 9


def test_text_is_a_history_too(model: Model) -> None:
    with opened(model) as stream:
        stream.feed("Call me Ishmael. Some years ago, never mind how long precisely.")
        done = stream.align("Call me Ishmael. Some years ago, never mind.")
        assert done.n_kept > 10
        assert stream.visible()[-1].text.endswith("never mind.")


def test_it_is_told(model: Model) -> None:
    events: list[Event] = []
    with model.stream(SinkPolicy(4, 1), N_CTX, on_event=events.append) as stream:
        stream.feed(TOKENS[:40])
        stream.align([*TOKENS[:10], *TOKENS[20:40]])
        assert [(event.kind, event.n_tokens) for event in events] == [("align", 10)]
    with opened(model) as stream:
        stream.feed(TOKENS[:40])
        for wrong in (["x"], [9999], [-1]):
            with pytest.raises(UsageError):
                stream.align(wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            stream.align(TOKENS[:20], n_prefix=21)
        assert stream.visible_tokens() == TOKENS[:40]


def test_places_move_with_their_tokens(model: Model) -> None:
    """Where turns begin, and what a later eviction takes, is by the new history."""
    with model.stream(SinkPolicy(4, "turn"), N_CTX, "f32", "f32") as stream:
        for start in range(0, 60, 12):
            stream.begin_turn()
            stream.feed(TOKENS[start : start + 12])
        stream.align([*TOKENS[:24], *TOKENS[36:60]])
        assert stream._controller.state.boundaries[-3:] == (12, 24, 36)
        stream.begin_turn()
        stream.feed(NEW[: N_CTX - 48 + 1])
        assert stream.stats.sees == ((0, 4), (12, 65))


def test_saved_and_restored_it_knows_what_it_has_forgotten(model: Model, tmp_path: Path) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:300])
        stream.save(tmp_path / "one.session")
        fork = stream.fork()
    with fork, model.restore(tmp_path / "one.session") as stream:
        for one in (fork, stream):
            done = one.align([*TOKENS[:50], *NEW[:5], *TOKENS[60:300], *NEW[5:8]])
            assert (done.n_new, done.n_forgotten) == (3, 295 - N_CTX)


# -- where the cells cannot be had ----------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, one in FAMILIES.items() if not one.refusal])
def test_other_families(name: str, tmp_path: Path) -> None:
    """A hole is what an eviction leaves that is closed by rotation, or all behind it is read."""
    path = FAMILIES[name].write(tmp_path / "model.gguf")
    tokens = [int(t) for t in RNG.integers(4, N_VOCAB, 100)]
    n_ctx = 30
    with Model(Weights(path)) as model:
        stream = model.stream(SinkPolicy(4, 8), n_ctx, "f32", "f32", threads=1)
        able = stream._context.capabilities
        with stream:
            stream.feed(tokens[:30])
            history = [*tokens[:14], *tokens[22:31]]
            done = stream.align(history)
            assert stream.visible_tokens() == history
            rotates = able.rotate.level == "exact" and able.takes_back
            if rotates and not done.n_again:
                policy = SinkPolicy(14, 8, "rotate", 0)
                other = model.stream(policy, n_ctx, "f32", "f32", threads=1)
                other.feed(tokens[:31])
            else:
                assert done.why
                other = model.stream(SinkPolicy(4, 8), n_ctx, "f32", "f32", threads=1)
                other.feed(history)
            with other:
                assert other.visible_tokens() == history
                limit = 5e-3 if name in ARCHITECTURES else CLOSE
                assert np.abs(logits(stream) - logits(other)).max() < limit
            done = stream.align(history[:-4])
            assert stream.visible_tokens() == history[:-4]
            stream.feed(tokens[50:90])
            assert stream.visible_tokens()[-5:] == tokens[85:90]


# -- all or nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
def test_a_failure_changes_nothing(placement: Placement) -> None:
    policy = SinkPolicy(4, 1, placement, 3)
    text = [int(t) for t in np.random.default_rng(3).integers(0, 250, 100)]
    histories = [
        [*text[:30], *text[40:60], *text[90:]],
        [*text[:9], *text[15:30], *text[90:]],
        [*text[90:94], *text[4:60], *text[70:]],
        text[20:90],
    ]
    n_failed = 0
    for history in histories:
        for at in range(12):
            backend = FakeBackend(36, n_batch=8)
            with Stream(backend, policy, 32) as stream:
                stream.feed(text[:60])
                before, ids = stream.stats, stream.visible_tokens()
                backend.fail_at = {backend.n_decodes + at}
                try:
                    stream.align(history)
                except DecodeError:
                    n_failed += 1
                    assert stream.visible_tokens() == ids
                    assert stream.stats.sees == before.sees
                    assert stream.stats.index == before.index
                    stream.align(history)
                assert stream.stats.index == len(history)
                assert stream.visible_tokens() == history[:4] + history[4 - 32 :][-28:]
    assert n_failed > 12


def test_what_has_only_grown_is_undone_to_the_last_bit() -> None:
    """Nothing has left: the tokens that came are taken out again."""
    text = [int(t) for t in np.random.default_rng(3).integers(0, 250, 100)]
    backend = FakeBackend(36, n_batch=8)
    with Stream(backend, SinkPolicy(4, 8, "reanchor", 3), 32) as stream:
        stream.feed(text[:45])
        n = 32 - len(stream.visible_tokens())
        assert n > 1
        before = logits(stream)
        backend.fail_at = {backend.n_decodes}
        with pytest.raises(DecodeError):
            stream.align(text[: 45 + n])
        assert np.array_equal(logits(stream), before)
        backend.fail_at = {backend.n_decodes + 1}
        edited = [*text[:10], *text[12 : 45 + n]]  # numbered anew, and then it fails
        with pytest.raises(DecodeError):
            stream.align([*edited, *text[60:75]])
        assert stream.stats.index == 45


def test_for_an_event_loop(model: Model) -> None:
    async def both(one: Stream, other: Stream) -> None:
        await asyncio.gather(
            one.aalign([*TOKENS[:50], *NEW[:20]]), other.aalign([*TOKENS[:40], *TOKENS[50:60]])
        )

    with model.engine(2, N_CTX, "f32", "f32") as engine:
        one, other = engine.stream(), engine.stream()
        for each in (one, other):
            each.feed(TOKENS[:60])
        asyncio.run(both(one, other))
        assert one.visible_tokens()[-20:] == NEW[:20]
        assert other.visible_tokens() == [*TOKENS[:40], *TOKENS[50:60]]
