"""A text in parts has the tokens of the whole text, and no control tokens by what people type."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import llama_cpp.llama_cpp as llama
import pytest

from streamsink.chat.template import ChatTemplate
from streamsink.llama.tokenizer import NativeTokenizer
from tests.tiny_gguf import byte_alphabet

Kind = gguf.TokenType

LETTERS = "abcesu"
"""What words are made of; ``</s>`` and ``<|u|>`` can be spelled with them too."""


@dataclass
class Words:
    """A vocabulary for a file."""

    model: str
    tokens: list[str]
    kinds: list[gguf.TokenType]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    name: str = "tiny"
    pre: str = "qwen2"
    flags: dict[str, bool] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name(self.name)
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre if self.model == "gpt2" else "default")
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for key, token in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
        for key, flag in self.flags.items():
            writer.add_bool(f"tokenizer.ggml.{key}", flag)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def pieces() -> list[str]:
    """Every letter, every pair of them, and some threes: much that merges in many ways."""
    rng = random.Random(4)
    letters = [*LETTERS, "▁", "<", ">", "|", "/", "\n"]
    pairs = [a + b for a in letters for b in letters]
    threes = sorted({"".join(rng.choices(letters, k=3)) for _ in range(200)} | {"</s", "<|u"})
    return [*letters, *pairs, *threes]


def sentencepiece(*, space_prefix: bool, name: str = "tiny") -> Words:
    named = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|u|>", "<|e|>", "ab ", "\n\n"]
    kinds = [Kind.UNKNOWN, *[Kind.CONTROL] * 3, *[Kind.USER_DEFINED] * 4]
    if not name.startswith("phi"):
        kinds[4] = Kind.CONTROL
    named += [f"<0x{byte:02X}>" for byte in range(256)]
    kinds += [Kind.BYTE] * 256
    common = [piece for piece in pieces() if piece not in named]
    return Words(
        "llama",
        [*named, *common],
        [*kinds, *[Kind.NORMAL] * len(common)],
        scores=[0.0] * len(named) + [-float(at * 7 % len(common)) for at in range(len(common))],
        name=name,
        flags={"add_space_prefix": space_prefix},
        ids={"bos": 1, "eos": 2, "unknown": 0},
    )


def byte_pairs(pre: str = "qwen2") -> Words:
    named = ["<s>", "</s>", "<|u|>", "<mask>", "<unk>", "ab "]
    kinds = [Kind.CONTROL] * 4 + [Kind.UNKNOWN, Kind.USER_DEFINED]
    merges = [f"{a} {b}" for a in (*LETTERS, "Ġ", "<", "|") for b in (*LETTERS, "|", ">", "Ġ")]
    merges += ["</ s", "</s >", "< /", "<| u", "<|u |>", "| >"]
    common = [*byte_alphabet(), *dict.fromkeys(merge.replace(" ", "") for merge in merges)]
    common = [token for token in common if token not in named]
    return Words(
        "gpt2",
        [*named, *common],
        [*kinds, *[Kind.NORMAL] * len(common)],
        merges=merges,
        pre=pre,
        ids={"bos": 0, "eos": 1},
    )


def unigrams() -> Words:
    named = ["<pad>", "</s>", "<unk>", "<|u|>", "ab "]
    kinds = [Kind.CONTROL, Kind.CONTROL, Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED]
    common = [piece for piece in pieces() if "\n" not in piece]
    return Words(
        "t5",
        [*named, *common],
        [*kinds, *[Kind.NORMAL] * len(common)],
        scores=[0.0] * len(named) + [-1.0 - at * 7 % 50 for at in range(len(common))],
        flags={"add_space_prefix": True},
        ids={"eos": 1, "unknown": 2, "padding": 0},
    )


def word_pieces() -> Words:
    named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|u|>"]
    kinds = [Kind.CONTROL] * 6
    common = [*LETTERS, *(f"▁{piece}" for piece in (*LETTERS, "<", ">", "|", "/", "ab", "[", "]"))]
    return Words(
        "bert",
        [*named, *common],
        [*kinds, *[Kind.NORMAL] * len(common)],
        ids={"bos": 2, "cls": 2, "seperator": 3, "padding": 0, "unknown": 1, "mask": 4},
    )


VOCABULARIES = {
    "spm": sentencepiece(space_prefix=True),
    "spm, no prefix": sentencepiece(space_prefix=False),
    "spm, phi-3": sentencepiece(space_prefix=True, name="phi-3 tiny"),
    "bpe": byte_pairs(),
    "bpe, jina": byte_pairs("jina-v2-de"),  # its <mask> takes the spaces before it away
    "ugm": unigrams(),
    "wpm": word_pieces(),
}


@pytest.fixture(scope="module", params=VOCABULARIES)
def words(request: pytest.FixtureRequest) -> Words:
    return VOCABULARIES[request.param]


@pytest.fixture(scope="module")
def vocabulary(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeTokenizer]:
    path = words.write(tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf")
    options = llama.llama_model_default_params()
    options.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), options)
    assert model
    yield NativeTokenizer(model)
    llama.llama_model_free(model)


def drawn(rng: random.Random, controls: Sequence[str]) -> list[tuple[str, bool]]:
    """Parts of a text: what a template writes with control tokens, what people write without."""
    parts = []
    for _ in range(rng.randint(1, 6)):
        special = rng.random() < 0.5
        text = "".join(rng.choice([*LETTERS, " ", "  ", "\n", "ab ", "é"]) for _ in range(6))
        if special:
            text = rng.choice(["", *controls]) + text + rng.choice(["", *controls])
        parts.append((text[rng.randint(0, 6) :], special))
    return parts


def controls_of(words: Words) -> list[str]:
    marked = (Kind.CONTROL, Kind.USER_DEFINED)
    return [t for t, kind in zip(words.tokens, words.kinds, strict=True) if kind in marked]


def test_parts_have_the_tokens_of_the_whole(words: Words, vocabulary: NativeTokenizer) -> None:
    rng = random.Random(1)
    for _ in range(500):
        parts = drawn(rng, controls_of(words))
        whole = "".join(text for text, _ in parts)
        assert vocabulary.tokenize_parts(parts) == vocabulary.tokenize(whole, special=True), parts


def test_words_hold_no_control_tokens(words: Words, vocabulary: NativeTokenizer) -> None:
    """Neither alone, nor where the template's text ends what they begin."""
    controls = {
        token
        for token in range(vocabulary.n_tokens)
        if llama.llama_vocab_get_attr(vocabulary.handle, token) & llama.LLAMA_TOKEN_ATTR_CONTROL
    }
    unknown = words.ids.get("unknown")
    for text in (t for t in controls_of(words) if "<" in t or "[" in t):
        half = len(text) // 2
        for parts in (
            [(text, False)],
            [(f"a{text}b", False)],
            [("b", True), (f" {text}{text} \n{text}", False)],
            [("b", True), (text[:half], False), (text[half:], True)],
            [(text[:half], True), (text[half:], False), (text[:half], True)],
        ):
            found = vocabulary.tokenize_parts(parts)
            assert not controls & {token for token in found if token != unknown}, (parts, found)


@pytest.mark.parametrize("words", ["spm, phi-3"], indirect=True)
def test_marks_that_a_converter_took_for_words(words: Words, vocabulary: NativeTokenizer) -> None:
    mark = words.tokens.index("<|u|>")
    assert mark in vocabulary.tokenize("a<|u|>b")  # llama.cpp finds it in any text
    assert mark not in vocabulary.tokenize_parts([("a<|u|>b", False)])
    assert mark in vocabulary.tokenize_parts([("<|u|>", True), ("a<|u|>b", False)])
    found = vocabulary.tokenize_parts([("a<|u|> <|u|><|u|>b", False)])
    spelled = b"".join(vocabulary.token_to_piece(token, special=True) for token in found)
    assert spelled == b" a<|u|> <|u|><|u|>b"  # no space where a mark was, and none eaten


@pytest.mark.parametrize("words", [name for name in VOCABULARIES if name != "wpm"], indirect=True)
def test_a_text_that_goes_on_has_no_space_before_it(
    words: Words, vocabulary: NativeTokenizer
) -> None:
    """Its tokens are those that it has behind a letter which does not merge with it."""
    rng = random.Random(2)
    for _ in range(300):
        text = "".join(rng.choice([*LETTERS, " "]) for _ in range(rng.randint(1, 6)))
        if "ab " in text:
            continue  # a token that is found before any other, and behind which a text begins anew
        found = vocabulary.tokenize_parts([(text, False)], after_text=True)
        spelled = b"".join(
            vocabulary.token_to_piece(token, special=True) for token in found
        ).decode()
        assert spelled == (text if words.model != "t5" else " ".join(text.split(" "))), text


def test_named_tokens(words: Words, vocabulary: NativeTokenizer) -> None:
    found = {name: words.tokens[token] for name, token in vocabulary.named_tokens.items()}
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
        if key in words.ids:
            assert found[name] == words.tokens[words.ids[key]]
    if words.kinds[0] == Kind.UNKNOWN:
        assert found["unk_token"] == "<unk>"


# As Llama-2's: spaces of its own around words, and control tokens that nothing separates.
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {% if loop.index0 == 1 %}"
    "<<SYS>>\n{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} </s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("words", ["spm", "spm, no prefix", "spm, phi-3", "ugm"], indirect=True)
def test_a_conversation_has_the_tokens_of_its_text(
    words: Words, vocabulary: NativeTokenizer
) -> None:
    template = ChatTemplate(INST, {})
    for system, user, after in (("", "abc a", "sue"), ("be sae", " </ s ", "é\n")):
        opened = [part for half in template.opening(system, user) for part in half]
        goes_on = [part for half in template.next_turn(after, system=system) for part in half]
        answer = " beau."
        whole = "".join(text for text, _ in (*opened, (answer, False), *goes_on))
        tokens = [
            *vocabulary.tokenize_parts(opened),
            *vocabulary.tokenize_parts([(answer, False)], after_text=True),
            *vocabulary.tokenize_parts(goes_on, after_text=True),
        ]
        assert tokens == vocabulary.tokenize(whole, special=True)
        shown = b"".join(
            vocabulary.token_to_piece(token, special=True) for token in tokens
        ).decode()
        if words.model == "llama":
            assert f"[INST] {after} [/INST]" in shown
