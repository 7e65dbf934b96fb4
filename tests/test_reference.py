"""The NumPy reference against llama.cpp itself, driven by hand through its C interface.

Two independent programs agree here, so each vouches for the other; streamsink has no part in it.
"""

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import llama_cpp.llama_cpp as lc
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.reference import (
    Step,
    dense_logits,
    nll,
    replay_logits,
    schedule,
    stream_logits,
)
from tests.tiny_gguf import BOS, EOS, IM_END, IM_START, SPECIALS, TinyModel

N_CELLS = 256
"""Cells of the llama.cpp cache: more than `N_CTX`, so that only our own evictions bound it."""
N_CTX, N_KEEP = 48, 4
TOLERANCE = 1e-4
"""Largest difference allowed in any logit (their standard deviation is 2).

llama.cpp computes in float32, the reference in float64. The most seen here, on x86-64 with
llama-cpp-python 0.3.36, was 2.8e-5; over other seeds of model and stream it was 4.6e-5.
"""


def _drop_line(level: int, text: bytes, user_data: int | None) -> None:
    """Take a line of llama.cpp's log and say nothing."""


_SILENCE: Any = lc.llama_log_callback(_drop_line)
"""Module-level, because llama.cpp keeps the bare pointer."""


class Engine:
    """A context of llama.cpp with an exact cache: K and V in float32, no flash attention."""

    def __init__(self, path: Path) -> None:
        lc.llama_log_set(_SILENCE, ctypes.c_void_p(0))
        lc.llama_backend_init()
        model_params = lc.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model: Any = lc.llama_model_load_from_file(str(path).encode(), model_params)
        assert self.model
        params = lc.llama_context_default_params()
        params.n_ctx = N_CELLS
        params.n_batch = params.n_ubatch = N_CELLS
        params.n_seq_max = 2  # 0 is the stream, 1 the scratch sequence of a re-anchor
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = lc.GGML_TYPE_F32
        params.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context: Any = lc.llama_init_from_model(self.model, params)
        assert self.context
        self.memory: Any = lc.llama_get_memory(self.context)
        self.vocab: Any = lc.llama_model_get_vocab(self.model)
        self.batch = lc.llama_batch_init(N_CELLS, 0, 1)

    def close(self) -> None:
        """Free what llama.cpp holds."""
        lc.llama_batch_free(self.batch)
        lc.llama_free(self.context)
        lc.llama_model_free(self.model)

    def decode(self, tokens: Sequence[int], start: int, sequence: int = 0) -> NDArray[np.float32]:
        """Evaluate `tokens` at positions from `start` on; their logits, (len(tokens), n_vocab)."""
        b = self.batch
        b.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            b.token[i], b.pos[i], b.logits[i] = token, start + i, 1
            b.n_seq_id[i], b.seq_id[i][0] = 1, sequence
        assert lc.llama_decode(self.context, b) == 0
        shape = (len(tokens), lc.llama_vocab_n_tokens(self.vocab))
        return np.array(np.ctypeslib.as_array(lc.llama_get_logits(self.context), shape=shape))

    def clear(self) -> None:
        """Empty the cache."""
        lc.llama_memory_clear(self.memory, True)

    def remove(self, start: int, stop: int, sequence: int = 0) -> None:
        """Drop the cells of the positions in [start, stop)."""
        assert lc.llama_memory_seq_rm(self.memory, sequence, start, stop)


def rotated(engine: Engine, tokens: Sequence[int], n_discard: int) -> NDArray[np.float32]:
    """Stream by context shift: drop the oldest of the window, move the rest down to the sink."""
    engine.clear()
    rows = []
    n_live = 0
    for token in tokens:
        if n_live == N_CTX:
            engine.remove(N_KEEP, N_KEEP + n_discard)
            # The keys are turned at the next decode.
            lc.llama_memory_seq_add(engine.memory, 0, N_KEEP + n_discard, N_CTX, -n_discard)
            n_live -= n_discard
        rows.append(engine.decode([token], n_live)[0])
        n_live += 1
    return np.array(rows)


def reanchored(
    engine: Engine, tokens: Sequence[int], n_discard: int, slack: int
) -> NDArray[np.float32]:
    """Stream by re-anchoring: the window stays, the sink is decoded anew just below it."""
    engine.clear()
    rows = []
    sink = tokens[:N_KEEP]
    oldest = N_KEEP  # index and position of the oldest window token: the window never moves
    gap = 0
    for index, token in enumerate(tokens):
        if N_KEEP + index - oldest == N_CTX:
            engine.remove(oldest, oldest + n_discard)
            oldest += n_discard
            gap += n_discard
            if gap > slack:
                gap = 0
                engine.decode(sink, oldest - N_KEEP, sequence=1)
                # The old sink's positions may overlap the new one's: drop the old before the copy.
                engine.remove(0, oldest)
                lc.llama_memory_seq_cp(engine.memory, 1, 0, -1, -1)
                engine.remove(-1, -1, sequence=1)
        rows.append(engine.decode([token], index)[0])
    return np.array(rows)


def random_stream(n: int, seed: int = 1) -> list[int]:
    """BOS and `n - 1` ordinary tokens."""
    rng = np.random.default_rng(seed)
    n_vocab = TinyModel.create().config.n_vocab
    return [0, *rng.integers(len(SPECIALS), n_vocab, n - 1).tolist()]


def largest_difference(a: NDArray[Any], b: NDArray[Any], label: str) -> float:
    """Largest absolute difference, printed too (``pytest -s``)."""
    difference = float(np.abs(a - b).max())
    print(f"\n{label}: largest difference in a logit {difference:.1e}", end="")
    return difference


@pytest.fixture(scope="module")
def model() -> TinyModel:
    """The model of most tests."""
    return TinyModel.create(seed=0)


@pytest.fixture(scope="module")
def engine(model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """llama.cpp on `model`."""
    engine = Engine(model.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))
    yield engine
    engine.close()


def test_same_seed_same_file(tmp_path: Path) -> None:
    first, again, other = (
        TinyModel.create(seed=seed).write(tmp_path / name).read_bytes()
        for seed, name in ((3, "a.gguf"), (3, "b.gguf"), (4, "c.gguf"))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tied_output": True},
        {"n_layer": 4, "n_embd": 96, "n_head": 6, "n_head_kv": 2, "rope_freq_base": 500000.0},
        {"rope_scaling": "linear", "rope_factor": 4.0},
        {"rope_scaling": "yarn", "rope_factor": 4.0},
    ],
    ids=["plain", "tied", "other sizes", "linear", "yarn"],
)
def test_dense_is_llama_cpp(config: dict[str, Any], tmp_path: Path) -> None:
    model = TinyModel.create(seed=5, **config)
    engine = Engine(model.write(tmp_path / "tiny.gguf"))
    tokens = random_stream(200)
    measured = engine.decode(tokens, 0)
    engine.close()
    assert largest_difference(measured, dense_logits(model, tokens), f"dense {config}") < TOLERANCE


@pytest.mark.parametrize(("n_discard", "n_tokens"), [(1, 400), (3, 1000), ("half", 1200)])
def test_rotate_is_reference(
    model: TinyModel, engine: Engine, n_discard: int | Literal["half"], n_tokens: int
) -> None:
    # Over 300 evictions of 1 and of 3 tokens: a key is turned up to 44 times before it leaves.
    # Of a half, 53 suffice: no key is turned more than once.
    tokens = random_stream(n_tokens)
    expected = stream_logits(model, tokens, N_CTX, N_KEEP, n_discard)
    d = (N_CTX - N_KEEP) // 2 if n_discard == "half" else n_discard
    measured = rotated(engine, tokens, d)
    assert largest_difference(measured, expected, f"rotate {n_discard}") < TOLERANCE


@pytest.mark.parametrize(
    ("n_discard", "slack"), [(1, 0), (3, 0), (22, 0), (1, 16), (3, 16), (22, 64)]
)
def test_reanchor_is_reference(
    model: TinyModel, engine: Engine, n_discard: int, slack: int
) -> None:
    tokens = random_stream(400)
    expected = stream_logits(model, tokens, N_CTX, N_KEEP, n_discard, slack)
    measured = reanchored(engine, tokens, n_discard, slack)
    label = f"reanchor {n_discard}, slack {slack}"
    assert largest_difference(measured, expected, label) < TOLERANCE


def test_yarn_survives_reanchor_but_not_rotate(tmp_path: Path) -> None:
    # llama.cpp shifts keys by the same RoPE call that placed them (`build_rope_shift` in
    # src/llama-kv-cache.cpp), which under YaRN also multiplies them by its attention gain, again
    # at every shift.
    model = TinyModel.create(seed=0, rope_scaling="yarn", rope_factor=4.0)
    engine = Engine(model.write(tmp_path / "tiny.gguf"))
    tokens = random_stream(150)
    expected = stream_logits(model, tokens, N_CTX, N_KEEP)
    by_reanchor = reanchored(engine, tokens, n_discard=1, slack=0)
    by_rotate = rotated(engine, tokens, n_discard=1)
    engine.close()
    assert largest_difference(by_reanchor, expected, "YaRN, reanchor") < TOLERANCE
    assert largest_difference(by_rotate, expected, "YaRN, rotate") > 1


def test_stream_is_dense_until_full(model: TinyModel) -> None:
    tokens = random_stream(N_CTX + 1)
    stream = stream_logits(model, tokens, N_CTX, N_KEEP)
    dense = dense_logits(model, tokens)
    np.testing.assert_allclose(stream[:N_CTX], dense[:N_CTX], atol=1e-11)
    assert np.abs(stream[N_CTX] - dense[N_CTX]).max() > 100 * TOLERANCE


def test_reference_notices_every_slip(model: TinyModel) -> None:
    """A sink out of place by one, a window short by its oldest or shifted by one: all show."""
    tokens = random_stream(150)
    steps = list(schedule(len(tokens), N_CTX, N_KEEP))
    right = replay_logits(model, tokens, steps)
    window = np.arange(N_CTX) >= N_KEEP

    def altered(step: Step, slip: str) -> Step:
        if len(step.live) < N_CTX or step.live[N_KEEP] == N_KEEP:
            return step  # nothing evicted yet
        if slip == "gap":
            return Step(step.live, step.positions + window)
        if slip == "short":
            keep = np.arange(N_CTX) != N_KEEP
            return Step(step.live[keep], step.positions[keep])
        stale = step.live - window  # one token late: what was just evicted still in, ...
        stale[-1] = step.live[-1]  # ... the token before this one not yet
        return Step(stale, step.positions)

    for slip in ("gap", "short", "late"):
        wrong = replay_logits(model, tokens, [altered(step, slip) for step in steps])
        change = np.abs(wrong - right).max(axis=1)
        assert not change[:N_CTX].any()
        print(f"\n{slip}: least and median change {change[N_CTX:].min():.1e}", end=" ")
        print(f"{np.median(change[N_CTX:]):.1e}", end="")
        assert change[N_CTX:].min() > 100 * TOLERANCE


def test_schedule_by_hand() -> None:
    steps = list(schedule(9, n_ctx=5, n_keep=2, n_discard=2, slack=3))
    assert [step.live.tolist() for step in steps[4:]] == [
        [0, 1, 2, 3, 4],  # full
        [0, 1, 4, 5],
        [0, 1, 4, 5, 6],
        [0, 1, 6, 7],
        [0, 1, 6, 7, 8],
    ]
    assert [step.positions.tolist() for step in steps[4:]] == [
        [0, 1, 2, 3, 4],
        [0, 1, 4, 5],  # a gap of 2, within the slack
        [0, 1, 4, 5, 6],
        [0, 1, 2, 3],  # 4 is above it: closed
        [0, 1, 2, 3, 4],
    ]
    assert [len(step.live) for step in schedule(6, n_ctx=3, n_keep=0, n_discard=99)] == [
        1, 2, 3, 1, 2, 3,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="n_keep"):
        next(schedule(1, n_ctx=4, n_keep=4))
    with pytest.raises(ValueError, match="n_discard"):
        next(schedule(1, n_ctx=4, n_keep=1, n_discard=0))


def test_nll() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [1.0, 1.0, 1.0]])) + 7.0
    values = nll(logits, [2, 1, 2])
    assert np.isnan(values[0])
    np.testing.assert_allclose(values[1:], -np.log([0.25, 0.7]))


@pytest.mark.parametrize(
    "text",
    [
        "the king and\n  the sea . ok ?",
        "Grüße, 你好, naïve 🦙👩‍👩‍👧 \u0000\t¶",
        "".join(map(chr, range(1, 512))),
    ],
)
def test_tokenizer_round_trip(engine: Engine, text: str) -> None:
    raw = text.encode()
    tokens = tokenize(engine, raw, special=False)
    assert tokens[0] == 0  # add_bos
    assert b"".join(piece(engine, token) for token in tokens[1:]) == raw
    if text.startswith("the king"):
        assert len(tokens) < len(raw)  # merges are used


def test_special_tokens(engine: Engine) -> None:
    text = f"{BOS}{IM_START}{IM_END}{EOS}".encode()
    assert tokenize(engine, text, special=True)[1:] == [0, 2, 3, 1]
    assert [bool(lc.llama_vocab_is_eog(engine.vocab, token)) for token in (0, 1, 2, 3, 4)] == [
        False, True, False, True, False,
    ]  # fmt: skip
    assert lc.llama_vocab_eot(engine.vocab) == SPECIALS.index(IM_END)
    template = lc.llama_model_chat_template(engine.model, None)
    assert template
    assert template.startswith(b"{% for message in messages %}")


def tokenize(engine: Engine, text: bytes, *, special: bool) -> list[int]:
    """Token ids of `text`, with BOS where the model asks for it."""
    room = len(text) + 8
    ids = (lc.llama_token * room)()
    n = lc.llama_tokenize(engine.vocab, text, len(text), ids, room, True, special)
    assert n > 0
    return list(ids[:n])


def piece(engine: Engine, token: int) -> bytes:
    """The bytes that `token` stands for."""
    room = ctypes.create_string_buffer(64)
    n = lc.llama_token_to_piece(engine.vocab, token, room, 64, 0, False)
    return room.raw[:n]
