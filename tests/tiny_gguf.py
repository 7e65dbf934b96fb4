"""A seeded tiny GGUF model of architecture ``llama``, for tests that need a real file.

The weights are random but not small: attention is far from uniform and logits are spread, so that a
wrong mask or a wrong position changes the logits by far more than rounding does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

BOS, EOS, IM_START, IM_END = "<s>", "</s>", "<|im_start|>", "<|im_end|>"
SPECIALS = (BOS, EOS, IM_START, IM_END)
"""Control tokens; they take the ids 0 to 3."""

# fmt: off
MERGES = [
    "Ġ t", "h e", "i n", "Ġ a", "r e", "o n", "e r", "Ġt he", "Ġ s", "a t",
    "e n", "n d", "Ġ w", "o r", "Ġ o", "e s", "i s", "Ġ c", "i t", "o u",
    "in g", "Ġ f", "e d", "Ġ b", "Ġa nd", "a l", "Ġ m", "a r", "Ġ p", "Ġo f",
    "Ġ in", "l l", "Ġt o", "Ġ h", "Ġ d", "a n", "a s", "o m", "l e", "Ġ n",
]
# fmt: on
"""BPE merges, best first; each adds one token. ``Ġ`` is how byte-level BPE spells a space."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_alphabet() -> list[str]:
    """The printable character by which byte-level BPE spells each byte 0..255.

    Printable Latin-1 bytes spell themselves, the others take the code points from 256 on, in order
    (GPT-2's ``bytes_to_unicode``; llama.cpp: ``unicode_byte_to_utf8`` in ``src/unicode.cpp``).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [
        chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)
    ]


def vocabulary() -> list[str]:
    """All token texts by id: the specials, the 256 bytes, then one token per merge."""
    return [*SPECIALS, *byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES)]


@dataclass(frozen=True)
class TinyConfig:
    """Sizes and options of a tiny model.

    Attributes
    ----------
    context_length
        Trained context in tokens, *after* any RoPE scaling; YaRN's original context is
        ``context_length / rope_factor``.
    rope_scaling, rope_factor
        As llama.cpp reads ``llama.rope.scaling.*`` (``llama_model::load_hparams`` and the
        constructor of ``llama_context``).
    attention_gain
        Standard deviation of an un-rotated q or k entry; a score then has about its square.
    logit_gain
        Standard deviation of a logit, roughly.
    """

    n_layer: int = 3
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 128
    context_length: int = 4096
    rms_eps: float = 1e-5
    rope_freq_base: float = 10000.0
    rope_scaling: Literal["none", "linear", "yarn"] = "none"
    rope_factor: float = 1.0
    tied_output: bool = False
    add_bos: bool = True
    attention_gain: float = 1.5
    logit_gain: float = 2.0

    @property
    def head_dim(self) -> int:
        """Entries of one attention head."""
        return self.n_embd // self.n_head

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(SPECIALS) + 256 + len(MERGES)

    @property
    def original_context_length(self) -> int:
        """The context before RoPE scaling, in tokens."""
        return int(self.context_length / self.rope_factor)


@dataclass(frozen=True)
class TinyModel:
    """Weights and options of a tiny model, before they are a file.

    Attributes
    ----------
    config
        The options.
    weights
        Float32 arrays by GGUF tensor name. A matrix is (outputs, inputs), the embedding
        (n_vocab, n_embd). The rows of ``attn_q`` and ``attn_k`` are in GGUF's order for arch
        ``llama``: the two numbers that RoPE rotates together are neighbours.
    """

    config: TinyConfig
    weights: dict[str, NDArray[np.float32]]

    @classmethod
    def create(cls, seed: int = 0, **config: Any) -> "TinyModel":
        """Draw a model; the same seed and options (those of `TinyConfig`) give the same file."""
        c = TinyConfig(**config)
        rng = np.random.default_rng(seed)

        def matrix(n_out: int, n_in: int, gain: float = 1.0) -> NDArray[np.float32]:
            """A matrix that turns entries of unit variance into entries of variance gain²."""
            draw = rng.normal(0.0, gain / np.sqrt(n_in), (n_out, n_in))
            return draw.astype(np.float32)

        def norm() -> NDArray[np.float32]:
            """Norm weights near 1, but none equal to 1, so that leaving them out shows."""
            return rng.uniform(0.7, 1.3, c.n_embd).astype(np.float32)

        # Tied, the embedding is the output matrix too, and its size then sets the logits' spread.
        embedding_gain = c.logit_gain if c.tied_output else float(np.sqrt(c.n_embd))
        w = {"token_embd.weight": matrix(c.n_vocab, c.n_embd, embedding_gain)}
        for i in range(c.n_layer):
            kv = c.n_head_kv * c.head_dim
            w[f"blk.{i}.attn_norm.weight"] = norm()
            w[f"blk.{i}.attn_q.weight"] = matrix(c.n_embd, c.n_embd, c.attention_gain)
            w[f"blk.{i}.attn_k.weight"] = matrix(kv, c.n_embd, c.attention_gain)
            w[f"blk.{i}.attn_v.weight"] = matrix(kv, c.n_embd)
            w[f"blk.{i}.attn_output.weight"] = matrix(c.n_embd, c.n_embd)
            w[f"blk.{i}.ffn_norm.weight"] = norm()
            w[f"blk.{i}.ffn_gate.weight"] = matrix(c.n_ff, c.n_embd)
            w[f"blk.{i}.ffn_up.weight"] = matrix(c.n_ff, c.n_embd)
            w[f"blk.{i}.ffn_down.weight"] = matrix(c.n_embd, c.n_ff)
        w["output_norm.weight"] = norm()
        if not c.tied_output:
            w["output.weight"] = matrix(c.n_vocab, c.n_embd, c.logit_gain)
        return cls(c, w)

    def write(self, path: Path) -> Path:
        """Write the model as GGUF and return `path`."""
        c = self.config
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name("streamsink tiny test model")
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_vocab_size(c.n_vocab)
        writer.add_context_length(c.context_length)
        writer.add_block_count(c.n_layer)
        writer.add_embedding_length(c.n_embd)
        writer.add_feed_forward_length(c.n_ff)
        writer.add_head_count(c.n_head)
        writer.add_head_count_kv(c.n_head_kv)
        writer.add_layer_norm_rms_eps(c.rms_eps)
        writer.add_rope_dimension_count(c.head_dim)
        writer.add_rope_freq_base(c.rope_freq_base)
        if c.rope_scaling != "none":
            writer.add_rope_scaling_type(gguf.RopeScalingType(c.rope_scaling))
            writer.add_rope_scaling_factor(c.rope_factor)
            writer.add_rope_scaling_orig_ctx_len(c.original_context_length)
        self._write_tokenizer(writer)
        for name, array in self.weights.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _write_tokenizer(self, writer: gguf.GGUFWriter) -> None:
        """Describe the byte-level BPE tokenizer and the chat template."""
        tokens = vocabulary()
        normal = [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIALS))
        writer.add_tokenizer_model("gpt2")
        # "qwen2" leaves spaces alone when detokenizing; "gpt-2" drops the one before a full stop
        # (`clean_spaces` in llama.cpp's src/llama-vocab.cpp), and text would not come back whole.
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIALS) + normal)
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(SPECIALS.index(BOS))
        writer.add_eos_token_id(SPECIALS.index(EOS))
        writer.add_eot_token_id(SPECIALS.index(IM_END))
        writer.add_add_bos_token(self.config.add_bos)
        writer.add_chat_template(CHATML)
