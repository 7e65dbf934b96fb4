"""The tokens of a conversation are those of its whole text, whatever the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama
import pytest

from streamsink.chat.chat import Chat
from streamsink.chat.template import ChatTemplate
from streamsink.core.policy import SinkPolicy
from streamsink.engine.stream import Stream
from streamsink.llama.tokenizer import NativeTokenizer
from tests import fake_backend
from tests.test_chat import Scripted
from tests.test_tokenize_parts import Words, byte_pairs, sentencepiece, unigrams

TEMPLATES = {
    "llama2": (
        "{% for m in messages %}"
        "{% if m.role == 'user' %}<s>[INST] {% if loop.first and system %}{% endif %}"
        "{{ m.content | trim }} [/INST]{% elif m.role == 'assistant' %} {{ m.content | trim }} </s>"
        "{% else %}<<SYS>>\n{{ m.content }}\n<</SYS>>\n\n{% endif %}{% endfor %}"
    ),
    "phi3": (
        "{% for m in messages %}<|{{ m.role[0] }}|>\n{{ m.content }}<|e|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|a|>\n{% endif %}"
    ),
    "plain": (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    ),
}
TALK = [
    ("Hello there", "abc us"),
    (" space before", "cab\nsub"),
    ("and after ", "ace"),
    ("\n", "b"),
    ("ab ab", "beus"),
]


@pytest.fixture(params=[
    pytest.param(sentencepiece(space_prefix=True), id="spm"),
    pytest.param(sentencepiece(space_prefix=True, name="phi-3"), id="spm, phi-3"),
    pytest.param(sentencepiece(space_prefix=False), id="spm, no prefix"),
    pytest.param(byte_pairs(), id="bpe"),
    pytest.param(unigrams(), id="ugm"),
])  # fmt: skip
def vocabulary(request: Any, tmp_path: Path) -> Iterator[NativeTokenizer]:
    words: Words = request.param
    params = llama.llama_model_default_params()
    params.vocab_only = True
    path = words.write(tmp_path / "words.gguf")
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    assert model
    yield NativeTokenizer(model)
    llama.llama_model_free(model)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_tokens_of_the_whole(
    vocabulary: NativeTokenizer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_backend, "N_VOCAB", vocabulary.n_tokens)
    backend = Scripted(4000)
    backend.tokenizer = vocabulary  # type: ignore[assignment]
    stream = Stream(backend, SinkPolicy("system"), 4000)
    template = ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    chat = Chat(stream, template, "" if name == "llama2" else "Be kind.")
    messages = [] if name == "llama2" else [{"role": "system", "content": "Be kind."}]
    for question, answer in TALK:
        messages.append({"role": "user", "content": question})
        whole = vocabulary.tokenize(template.render(messages, True), special=True)
        spaced = f" {answer}" if name == "llama2" else answer
        drawn = vocabulary.tokenize_parts([(spaced, False)], after_text=True)
        backend.script = iter(drawn)
        list(chat.say(question, len(drawn)))
        tokens = stream.visible_tokens()
        bos = vocabulary.bos
        if bos is not None and whole[:1] != [bos]:
            whole.insert(0, bos)
        # The answers were drawn, and stay as they were; all else is as in the whole text.
        assert vocabulary_text(vocabulary, tokens[: -len(drawn)]) == vocabulary_text(
            vocabulary, whole
        )
        if len(messages) <= 2:
            assert tokens[: -len(drawn)] == whole
        messages.append({"role": "assistant", "content": answer})


def vocabulary_text(vocabulary: NativeTokenizer, tokens: list[int]) -> bytes:
    return b"".join(vocabulary.token_to_piece(token, special=True) for token in tokens)
