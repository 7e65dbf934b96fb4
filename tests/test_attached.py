"""An existing ``llama_cpp.Llama``, past its context, by code that knows of no streamsink."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama, LlamaGrammar, LlamaRAMCache

import streamsink
from streamsink.errors import CapabilityError, ClosedError, UsageError
from streamsink.model import Model
from streamsink.native.weights import Weights
from streamsink.policy import SinkPolicy
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
    n_decoded: list[int] = []
    stream_feed = stream.feed

    def feed(tokens: Any, **given: Any) -> int:
        n_decoded.append(len(tokens))
        return stream_feed(tokens, **given)

    stream.feed = feed  # type: ignore[method-assign, assignment]
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
    plain.close()
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


def test_closing_it_closes_the_stream(tiny_path: Path) -> None:
    llama = llama_of(tiny_path)
    stream = streamsink.attach(llama)
    llama.create_completion(PROMPT, max_tokens=3)
    llama.close()
    llama.close()
    with pytest.raises(ClosedError):
        stream.feed([1, 2])
