"""An existing ``llama_cpp.Llama``, past its context, by code that knows of no streamsink."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama, LlamaGrammar, LlamaRAMCache

import streamsink
from streamsink.core.policy import SinkPolicy
from streamsink.engine.stream import Stream
from streamsink.errors import CapabilityError, ClosedError, ModelError, UsageError
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.zoo import FAMILIES

N_CTX = 256  # llama.cpp goes by steps of 256
PROMPT = "Call me Ishmael. Some years ago"


def llama_of(path: Path, **given: Any) -> Llama:
    return Llama(str(path), n_ctx=N_CTX, verbose=False, **{"n_batch": 32, "n_threads": 1, **given})


@pytest.fixture
def llama(tiny_path: Path) -> Iterator[Llama]:
    opened = llama_of(tiny_path)
    yield opened
    opened.close()


GREEDY: dict[str, Any] = {"temperature": 0.0}


def endless(llama: Llama) -> dict[str, Any]:
    """Nothing but letters: no token ends the text, and random bytes make no half characters."""
    others = [t for t in range(llama.n_vocab()) if not llama.detokenize([t]).strip().isalnum()]
    return {"logit_bias": dict.fromkeys(others, -1e9), **GREEDY}


def letters(text: str) -> str:
    """What is no part of a character that random bytes happen to make."""
    return "".join(letter for letter in text if letter.isascii())


def said(answer: Any) -> str:
    return str(answer["choices"][0]["text"])


def test_within_the_context_nothing_changes(tiny_path: Path, llama: Llama) -> None:
    plain = llama_of(tiny_path)
    streamsink.attach(llama)
    for one in ("Call me", "Call me Ishmael.", "Some"):
        expected = plain.create_completion(one, max_tokens=12, **GREEDY)
        found = llama.create_completion(one, max_tokens=12, **GREEDY)
        assert said(found) == said(expected)
        assert found["usage"] == expected["usage"]
        assert found.keys() == expected.keys()
        assert found["choices"][0].keys() == expected["choices"][0].keys()


def answer(llama: Llama, tokens: list[int], n: int = 12) -> list[int]:
    """The most probable tokens after a prompt."""
    steps = llama.generate(tokens, temp=0.0)
    return [next(steps) for _ in range(n)]


def sizes_fed(stream: Stream) -> list[int]:
    """Fills with how many tokens each call feeds."""
    sizes: list[int] = []
    stream_feed = stream.feed

    def feed(tokens: Any, **given: Any) -> int:
        sizes.append(len(tokens))
        return stream_feed(tokens, **given)

    stream.feed = feed  # type: ignore[method-assign, assignment]
    return sizes


def some_tokens(seed: int, n: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(10, 250, n)]


def test_any_sequence_of_prompts_is_answered_as_by_a_plain_llama(
    tiny_path: Path, llama: Llama
) -> None:
    """Those that fit: again, edited, shortened, gone on with, after others, after a reset."""
    plain = llama_of(tiny_path)
    streamsink.attach(llama)
    draw = np.random.default_rng(5)
    prompt, given = some_tokens(6, 200), some_tokens(6, 1)
    for at in range(40):
        kind = draw.integers(6)
        if kind == 1:
            prompt = [*prompt[: draw.integers(1, len(prompt))], *some_tokens(at, 9)]
        elif kind == 2:
            prompt = prompt[: draw.integers(1, len(prompt) + 1)]
        elif kind == 3:
            prompt = [*prompt, *given, *some_tokens(at, 15)]
        elif kind == 4:
            prompt = some_tokens(at, 60)
        elif kind == 5:
            plain.reset()
            llama.reset()
        prompt = prompt[:230]
        n = int(draw.integers(1, 24))
        given = answer(llama, prompt, n)
        assert given == answer(plain, prompt, n), f"call {at}, of kind {kind}"
    plain.close()


@pytest.mark.parametrize("policy", [SinkPolicy(4, 1), SinkPolicy(4, "half"), SinkPolicy(0, 16)])
def test_a_prompt_that_fits_is_not_answered_from_what_was_left_of_it(
    tiny_path: Path, llama: Llama, policy: SinkPolicy
) -> None:
    """After an answer that has evicted some of it, though the rest is in the window."""
    plain = llama_of(tiny_path)
    stream = streamsink.attach(llama, policy)
    prompt = some_tokens(7, 200)
    edited = [*prompt[:190], *some_tokens(8, 12)]
    for second in (prompt, edited, prompt[:180], [*prompt, *some_tokens(9, 40)]):
        for n in (60, 100, 140):
            answer(llama, prompt, n)
            assert stream.stats.evicted
            assert answer(llama, second) == answer(plain, second)
            assert not stream.stats.evicted
            assert stream.stats.sees == ((0, len(second) + 11),)
    plain.close()


POLICIES = {
    "one": SinkPolicy(4, 1),
    "several": SinkPolicy(4, 16),
    "half": SinkPolicy(8, "half"),
    "no sink": SinkPolicy(0, 7),
    "sentence": SinkPolicy(4, "sentence"),
    "whole prompt": SinkPolicy(-1, 3),
}


@pytest.mark.parametrize("name", POLICIES)
def test_what_can_be_seen_of_a_prompt_does_not_depend_on_what_was_before(
    tiny_path: Path, llama: Llama, name: str
) -> None:
    """Of any prompt, also of one that does not fit: what a stream that has read it alone sees."""
    policy = POLICIES[name]
    stream = streamsink.attach(llama, policy)
    draw = np.random.default_rng(len(name))
    prompt = some_tokens(10, 90)
    with Model(Weights(tiny_path)) as model:
        for at in range(16):
            given = answer(llama, prompt, int(draw.integers(1, 90)))
            kind = draw.integers(4)
            if kind == 0:
                prompt = [*prompt, *given, *some_tokens(at, 30)]
            elif kind == 1:
                cut = max(1, len(prompt) - int(draw.integers(1, 60)))
                prompt = [*prompt[:cut], *some_tokens(at, int(draw.integers(1, 90)))]
            elif kind == 2:
                prompt = prompt[: int(draw.integers(40, len(prompt) + 1))]
            else:
                prompt = [*prompt, *given[: len(given) // 2], *some_tokens(at, 60)]
            if len(prompt) > 3 * N_CTX:
                prompt = some_tokens(at, 100)
            next(llama.generate(prompt, temp=0.0))
            # The prompt that a conversation began with is pinned, with which later ones begin.
            n_first = stream.stats.pinned if policy.n_keep == -1 else len(prompt)
            with model.stream(policy, N_CTX, n_batch=32, threads=1) as fresh:
                fresh.feed(prompt[:n_first])
                fresh.feed(prompt[n_first:])
                assert stream.stats.sees == fresh.stats.sees, f"call {at}, of kind {kind}"


def test_a_template_may_write_otherwise_before_an_answer_that_is_awaited(llama: Llama) -> None:
    """As Qwen3's does: ``<think></think>`` before the answer, and not in the history."""
    stream = streamsink.attach(llama, SinkPolicy(4, 1))
    n_fed = sizes_fed(stream)
    history, opening = some_tokens(20, 40), some_tokens(21, 6)
    for turn in range(30):
        n_fed.clear()
        given = answer(llama, [*history, *opening], 20)
        if turn:
            assert n_fed[0] < 70
        history += [*given, *some_tokens(turn, 25)]
    assert stream.stats.evicted > 3 * N_CTX


def test_it_goes_on_past_the_context_as_a_stream_does(tiny_path: Path, llama: Llama) -> None:
    with pytest.raises(ValueError, match="exceed context window"):
        llama.create_completion(PROMPT * 10, **GREEDY)
    policy = SinkPolicy(4, 1, "rotate", 16)
    stream = streamsink.attach(llama, policy)
    tokens = llama.tokenize(PROMPT.encode())
    given = endless(llama)
    answer = llama.create_completion(tokens, max_tokens=600, **given)
    assert answer["usage"]["completion_tokens"] == 600
    assert answer["choices"][0]["finish_reason"] == "length"
    assert stream.stats.shifts > 10
    assert stream.stats.pinned + stream.stats.window <= N_CTX
    with (
        Model(Weights(tiny_path)) as model,
        model.stream(policy, N_CTX, n_batch=32, threads=1) as other,
    ):
        other.feed(tokens)
        allowed = np.setdiff1d(np.arange(llama.n_vocab()), list(given["logit_bias"]))
        for token in llama.input_ids[len(tokens) : llama.n_tokens].tolist():
            row = other.logits()
            assert row[token] > row[allowed].max() - 1e-3
            other.feed([token])
        assert other.stats.sees == stream.stats.sees
    # The last token of a completion is not evaluated.
    assert stream.stats.index == len(tokens) + 599


def test_prompts_longer_than_the_context(llama: Llama) -> None:
    stream = streamsink.attach(llama, SinkPolicy(4, "half"))
    answer = llama.create_completion(PROMPT * 60, max_tokens=5, **endless(llama))
    assert answer["usage"]["prompt_tokens"] > 5 * N_CTX
    assert answer["usage"]["completion_tokens"] == 5
    assert stream.stats.evicted > 4 * N_CTX


def test_a_conversation_is_evaluated_once(llama: Llama) -> None:
    """Each call brings the whole of it; only what is new is decoded."""
    stream = streamsink.attach(llama, SinkPolicy(4, 1))
    messages = [{"role": "system", "content": "Be kind."}]
    n_decoded = sizes_fed(stream)
    for turn in range(60):
        messages.append({"role": "user", "content": f"Question {turn}, please?"})
        n_decoded.clear()
        answer = llama.create_chat_completion(messages, max_tokens=8, **GREEDY)
        message = answer["choices"][0]["message"]
        assert message["role"] == "assistant"
        messages.append({"role": "assistant", "content": message["content"] or ""})
        if turn and message["content"] and "\ufffd" not in message["content"]:
            assert n_decoded[0] < 90
    assert answer["usage"]["prompt_tokens"] > 4 * N_CTX
    assert stream.stats.evicted > 3 * N_CTX


def test_streamed_answers(llama: Llama) -> None:
    streamsink.attach(llama)
    whole = llama.create_completion(PROMPT, max_tokens=400, **GREEDY)
    pieces = list(llama.create_completion(PROMPT, max_tokens=400, stream=True, **GREEDY))
    assert letters("".join(map(said, pieces))) == letters(said(whole))
    assert pieces[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    chunks = list(
        llama.create_chat_completion(
            [{"role": "user", "content": "Hi"}], max_tokens=100, stream=True, **GREEDY
        )
    )
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("length", "stop")


def test_unlimited_tokens_go_on_until_somebody_stops(llama: Llama) -> None:
    stream = streamsink.attach(llama)
    answer = llama.create_completion(PROMPT, max_tokens=None, stream=True, **endless(llama))
    for _, piece in zip(range(400), answer, strict=False):
        assert piece["choices"][0]["finish_reason"] is None
    assert stream.stats.index > 400


def test_the_callers_own_sampling_is_heard(llama: Llama) -> None:
    streamsink.attach(llama)
    seen: list[tuple[int, ...]] = []

    def only_a(ids: Any, scores: Any) -> Any:
        seen.append(tuple(ids))
        scores[:] = -1e9
        scores[ord("a") + 3] = 0
        return scores

    def enough(ids: Any, logits: Any) -> bool:
        assert np.isfinite(logits).all()
        return len(ids) >= 400

    from llama_cpp import LogitsProcessorList, StoppingCriteriaList

    given: dict[str, Any] = {
        "logits_processor": LogitsProcessorList([only_a]),
        "stopping_criteria": StoppingCriteriaList([enough]),
    }
    answer = llama.create_completion("Hello", max_tokens=1000, **given)
    assert len(set(said(answer))) == 1
    assert len(seen[-1]) == 400
    assert seen[-1][:5] == seen[0][:5]
    grammar = LlamaGrammar.from_string('root ::= "yes " root', verbose=False)
    answer = llama.create_completion("Hello", max_tokens=300, grammar=grammar, **GREEDY)
    assert set(said(answer).split()) <= {"yes", "ye", "y"}
    hot = {"max_tokens": 100, "seed": 5, "temperature": 1.5, "repeat_penalty": 1.3}
    assert said(llama.create_completion("Hello", **hot)) == said(
        llama.create_completion("Hello", **hot)
    )


def test_logprobs_are_those_of_the_stream(tiny_path: Path) -> None:
    plain, llama = (llama_of(tiny_path, logits_all=True) for _ in range(2))
    streamsink.attach(llama)
    given = {"max_tokens": 10, "logprobs": 3, **GREEDY}
    expected = plain.create_completion(PROMPT, **given)["choices"][0]["logprobs"]
    found = llama.create_completion(PROMPT, **given)["choices"][0]["logprobs"]
    assert found["tokens"] == expected["tokens"]
    assert np.allclose(found["token_logprobs"], expected["token_logprobs"], atol=1e-3)
    longer = llama.create_completion(
        PROMPT, **{**given, "max_tokens": 400, "stop": [], **endless(llama)}
    )
    assert len(longer["choices"][0]["logprobs"]["tokens"]) == 400
    with pytest.raises(ValueError, match="echoed prompt"):
        llama.create_completion(PROMPT, echo=True, **given)
    # Of a token of its own each; the same of pieces, and of a chat.
    for kind in ({}, {"stop": ["e", "qu"]}, {"stream": True}):
        ours, theirs = (
            one.create_completion(PROMPT, **{**given, "max_tokens": 40, **kind})
            for one in (llama, plain)
        )
        pairs = zip(ours, theirs, strict=True) if "stream" in kind else [(ours, theirs)]
        for our, their in pairs:
            close_alike(our["choices"][0]["logprobs"], their["choices"][0]["logprobs"])
    asked = [{"role": "user", "content": "Hi"}]
    ours, theirs = (
        one.create_chat_completion(
            asked, logprobs=True, top_logprobs=2, max_tokens=12, temperature=0.0
        )["choices"][0]["logprobs"]["content"]
        for one in (llama, plain)
    )
    assert [one["token"] for one in ours] == [one["token"] for one in theirs]
    plain.close()
    llama.close()


def close_alike(found: Any, expected: Any) -> None:
    """The same words, and nearly the same numbers."""
    if found is None or expected is None:
        assert found is expected
        return
    assert found["tokens"] == expected["tokens"]
    assert found["text_offset"] == expected["text_offset"]
    assert np.allclose(found["token_logprobs"], expected["token_logprobs"], atol=1e-3)
    for ours, theirs in zip(found["top_logprobs"], expected["top_logprobs"], strict=True):
        assert list(ours) == list(theirs)
        assert np.allclose(list(ours.values()), list(theirs.values()), atol=1e-3)


def test_logits_take_no_more_room_however_long_it_goes_on(tiny_path: Path) -> None:
    llama = llama_of(tiny_path, logits_all=True)
    n_bytes = llama.scores.nbytes
    streamsink.attach(llama)
    n = N_CTX + 50
    given = {"max_tokens": n, **endless(llama)}
    llama.create_completion(PROMPT, **given)
    assert llama.scores.nbytes == n_bytes
    whole = llama.create_completion(PROMPT, logprobs=2, **given)["choices"][0]["logprobs"]
    assert len(whole["tokens"]) == n
    pieces = list(llama.create_completion(PROMPT, logprobs=2, stream=True, **given))
    assert llama.scores.nbytes == n_bytes
    told = [piece["choices"][0]["logprobs"] for piece in pieces[:-1]]
    assert len(told) == n
    told_in_pieces = [one["token_logprobs"][0] for one in told]
    assert np.allclose(told_in_pieces, whole["token_logprobs"], atol=1e-3)
    with pytest.raises(IndexError, match="are not kept"):
        llama._scores[0, :]
    llama.close()


def test_going_back_within_the_window_evaluates_little(llama: Llama) -> None:
    stream = streamsink.attach(llama)
    tokens = list(range(10, 50))
    llama.eval(tokens)
    before = stream.logits()
    next(llama.generate([*tokens[:30], 7, 8, 9], temp=0))
    assert stream.visible_tokens() == [*tokens[:30], 7, 8, 9]
    next(llama.generate(tokens, temp=0))
    assert np.abs(stream.logits() - before).max() < 1e-3
    llama.reset()
    assert stream.stats.index == 0


def test_a_stream_that_was_fed_from_elsewhere_begins_anew(llama: Llama) -> None:
    stream = streamsink.attach(llama)
    expected = said(llama.create_completion("Call me", max_tokens=9, **GREEDY))
    stream.feed([9, 8, 7])
    assert said(llama.create_completion("Call me", max_tokens=9, **GREEDY)) == expected
    assert stream.stats.index == len(llama.tokenize(b"Call me")) + 8


def test_the_policy_may_change_meanwhile(llama: Llama) -> None:
    stream = streamsink.attach(llama, SinkPolicy(4, 1))
    llama.create_completion(PROMPT * 15, max_tokens=4)
    stream.change(n_keep=8, n_discard="half")
    stream.repin(list(range(20, 30)))
    llama.create_completion(PROMPT * 16, max_tokens=4)
    assert stream.stats.pinned == 10


@pytest.mark.parametrize(
    ("name", "why"), [("llama-yarn", "YaRN"), ("qwen2vl", "M-RoPE"), ("mamba", "recurrent")]
)
def test_refused_where_rotation_would_be_wrong(name: str, why: str, tmp_path: Path) -> None:
    path = FAMILIES[name].write(tmp_path / f"{name}.gguf")
    llama = llama_of(path)
    with pytest.raises(CapabilityError, match=rf"(?i){why}"):
        streamsink.attach(llama)
    assert type(llama) is Llama
    assert said(llama.create_completion([5, 6, 7], max_tokens=3)) is not None
    llama.close()


def test_what_cannot_be_attached(tiny_path: Path, llama: Llama) -> None:
    with pytest.raises(UsageError, match="knows no turns"):
        streamsink.attach(llama, SinkPolicy("system"))
    embedding = llama_of(tiny_path, embedding=True)
    with pytest.raises(UsageError, match="embeds texts"):
        streamsink.attach(embedding)
    embedding.close()
    llama.set_cache(LlamaRAMCache())
    with pytest.raises(UsageError, match="set_cache"):
        streamsink.attach(llama)
    llama.set_cache(None)
    streamsink.attach(llama)
    with pytest.raises(UsageError, match="attached already"):
        streamsink.attach(llama)
    with pytest.raises(UsageError, match=r"stream\.save"):
        llama.save_state()
    with pytest.raises(UsageError, match="no cache"):
        llama.set_cache(LlamaRAMCache())


def test_the_first_prompt_stays_pinned_whatever_happens(llama: Llama) -> None:
    """A conversation that was interrupted, or edited, may be longer than what can be pinned."""
    stream = streamsink.attach(llama, SinkPolicy(-1, 1))
    first = some_tokens(40, 50)
    answer(llama, first, 5)
    longer = [*first, *some_tokens(41, 300)]
    answer(llama, longer, 5)
    stream.feed([9])  # from elsewhere
    answer(llama, longer, 5)
    assert stream.stats.pinned == 50
    answer(llama, [*longer[:200], *some_tokens(42, 200)], 5)
    assert stream.stats.sees[0] == (0, 50)
    answer(llama, some_tokens(43, 70), 5)
    stream.feed(some_tokens(44, 300))
    assert stream.stats.pinned == 70


def test_a_long_prompt_that_was_edited_is_read_anew(tiny_path: Path, llama: Llama) -> None:
    """Though at its end the same would be visible: what is there would have seen less."""
    policy = SinkPolicy(4, 1)
    stream = streamsink.attach(llama, policy)
    prompt = some_tokens(30, 400)
    answer(llama, prompt, 8)
    edited = [*prompt[:170], *some_tokens(31, 240)]
    next(llama.generate(edited, temp=0.0))
    with (
        Model(Weights(tiny_path)) as model,
        model.stream(policy, N_CTX, n_batch=32, threads=1) as fresh,
    ):
        fresh.feed(edited)
        assert np.abs(stream.logits() - fresh.logits()).max() < 1e-2


@pytest.mark.parametrize("n_left_out", [40, 180, 300])
def test_a_conversation_goes_on_that_drops_old_messages(llama: Llama, n_left_out: int) -> None:
    """Forgotten or not: only what is new is decoded."""
    stream = streamsink.attach(llama, SinkPolicy(4, 1))
    prompt = some_tokens(50, 500)
    given = answer(llama, prompt, 20)
    n_fed = sizes_fed(stream)
    dropped = [*prompt[:10], *prompt[10 + n_left_out :], *given, *some_tokens(51, 130)]
    given = answer(llama, dropped, 20)
    assert n_fed[0] == 130 + 1  # what was chosen last was not decoded
    assert llama.input_ids[: llama.n_tokens].tolist() == [*dropped, *given[:-1]]
    assert stream.visible_tokens()[-100:] == [*dropped, *given[:-1]][-100:]
    n_fed.clear()
    answer(llama, [*dropped, *given, *some_tokens(52, 15)], 5)
    assert n_fed[0] == 16


def test_a_file_that_is_another_model_by_now(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_path.read_bytes())
    llama = llama_of(path)
    FAMILIES["qwen2"].write(tmp_path / "other.gguf").replace(path)
    with pytest.raises(ModelError, match="another model by now"):
        streamsink.attach(llama)
    assert type(llama) is Llama
    llama.close()


def test_closing_it_closes_the_stream(tiny_path: Path) -> None:
    llama = llama_of(tiny_path)
    stream = streamsink.attach(llama)
    llama.create_completion(PROMPT, max_tokens=3)
    llama.close()
    llama.close()
    with pytest.raises(ClosedError):
        stream.feed([1, 2])
