"""A loaded model file: weights, metadata, and what streaming may do to its cache."""

from __future__ import annotations

import ctypes
import os
import weakref
from pathlib import Path

import llama_cpp.llama_cpp as llama

from streamsink.backend import EXACT, Capabilities, Verdict
from streamsink.cache_types import CACHE_TYPES
from streamsink.errors import ClosedError, ModelError, UsageError
from streamsink.native import amx
from streamsink.native.library import forget_errors, last_error
from streamsink.native.vocabulary import NativeVocabulary
from streamsink.settings import CacheSettings

ALL_LAYERS = 999

# llama.h: enum llama_rope_type; M-RoPE variants carry several positions a token.
ROPE_NONE = -1
ROPE_M = (8, 24, 40)
# A quantised K is shifted by way of a Hadamard matrix, which llama.cpp makes for heads of so many
# dimensions only; without one the shift takes the process with it (llama-kv-cache.cpp:
# build_rope_shift; https://github.com/ggml-org/llama.cpp/pull/25636).
HADAMARD = 64
# Position enters by a learned table (src/models/*.cpp: build_inp_pos with pos_embd), not by RoPE
# or ALiBi, so no shift of positions leaves a key right.
LEARNED_POSITIONS = ("gpt2", "starcoder")


class Weights:
    """A GGUF file in memory, shared by all its streams.

    Parameters
    ----------
    path : Path
        The file, or the first of a split one.
    n_gpu_layers : int, optional
        Layers to put on the GPU; ``None`` means all where llama.cpp was built for one.

    Attributes
    ----------
    vocabulary : NativeVocabulary
        Tokens and text of the model.
    n_ctx_train : int
        Tokens of context that the model was trained on.

    Raises
    ------
    UsageError
        There is no such file.
    ModelError
        llama.cpp cannot read it; its last error line is part of the message.
    """

    def __init__(self, path: Path, n_gpu_layers: int | None = None) -> None:
        self.path = path
        _check_magic(path)
        params = llama.llama_model_default_params()
        self.offloads = bool(llama.llama_supports_gpu_offload()) and n_gpu_layers != 0
        params.n_gpu_layers = (
            (ALL_LAYERS if n_gpu_layers is None or n_gpu_layers < 0 else n_gpu_layers)
            if self.offloads
            else 0
        )
        if amx.is_broken():
            params.use_extra_bufts = False
        forget_errors()
        handle = llama.llama_model_load_from_file(str(path).encode(), params)
        if not handle:
            raise ModelError(f"llama.cpp cannot load {path}: {last_error() or 'no reason given'}")
        self._handle: llama.llama_model_p | None = handle
        self._free = weakref.finalize(self, llama.llama_model_free, handle)
        self.vocabulary = NativeVocabulary(handle)
        # Asked once: a context with YaRN by option changes the answer (llama_init_from_model).
        self.n_ctx_train = int(llama.llama_model_n_ctx_train(handle))

    @property
    def handle(self) -> llama.llama_model_p:
        """The ``llama_model *``.

        Raises
        ------
        ClosedError
            After `close`.
        """
        if self._handle is None:
            raise ClosedError("this model is closed: open it again with Model.open()")
        return self._handle

    def metadata(self, key: str) -> str:
        """A scalar of the GGUF header as text; '' where there is none."""
        room = 256
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = int(llama.llama_model_meta_val_str(self.handle, key.encode(), buffer, room))
            if n < 0:
                return ""
            if n < room:
                return buffer.raw[:n].decode("utf-8", "replace")
            room = n + 1

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return self.metadata("general.architecture")

    @property
    def chat_template(self) -> str:
        """The Jinja chat template of the file; '' where there is none."""
        text = llama.llama_model_chat_template(self.handle, None)
        return text.decode("utf-8", "replace") if text else ""

    @property
    def description(self) -> str:
        """Family, size and quantisation in llama.cpp's words."""
        buffer = ctypes.create_string_buffer(256)
        llama.llama_model_desc(self.handle, buffer, 256)
        return buffer.value.decode("utf-8", "replace")

    @property
    def n_swa(self) -> int:
        """Width of the sliding window that some layers have; 0 without."""
        return int(llama.llama_model_n_swa(self.handle))

    @property
    def n_head(self) -> int:
        """Attention heads of the first layer."""
        return int(llama.llama_model_n_head(self.handle))

    @property
    def n_key(self) -> int:
        """Dimensions of a key of one head."""
        return self._head_size("key")

    def _head_size(self, part: str) -> int:
        given = self.metadata(f"{self.architecture}.attention.{part}_length")
        n_embd = int(llama.llama_model_n_embd(self.handle))
        return int(given) if given else n_embd // max(1, self.n_head)

    def cell_bytes(self, type_k: str, type_v: str) -> float:
        """Bytes that one token takes in a cache of these types (all layers; an upper estimate)."""
        handle = self.handle
        n_head_kv = int(llama.llama_model_n_head_kv(handle))
        n_key, n_value = self.n_key, self._head_size("value")
        elements = int(llama.llama_model_n_layer(handle)) * n_head_kv
        key, value = CACHE_TYPES[type_k], CACHE_TYPES[type_v]
        return elements * (n_key * key.element_bytes + n_value * value.element_bytes)

    def n_ctx_within(self, settings: CacheSettings) -> int:
        """Tokens of context that the model is good for under these settings' RoPE scaling."""
        if settings.rope_scaling is None:
            return self.n_ctx_train
        key = f"{self.architecture}.rope.scaling.original_context_length"
        unscaled = int(self.metadata(key) or self.n_ctx_train)
        return int(unscaled * settings.rope_scale)

    def capabilities(self, settings: CacheSettings, *, swa_full: bool) -> Capabilities:
        """What streaming may do to a cache of this model under these settings."""
        hybrid = llama.llama_model_is_hybrid(self.handle)
        return Capabilities(
            n_ctx_train=self.n_ctx_within(settings),
            rotate=self._rotate(settings, swa_full),
            reanchor=(
                Verdict("impossible", "its recurrent state cannot be evaluated beside the stream")
                if hybrid
                else EXACT
            ),
            no_stream=self._no_stream(),
        )

    def _rotate(self, settings: CacheSettings, swa_full: bool) -> Verdict:
        type_k = settings.cache_type_k
        scaling = settings.rope_scaling or self.metadata(f"{self.architecture}.rope.scaling.type")
        if int(llama.llama_model_rope_type(self.handle)) in ROPE_M:
            return Verdict("impossible", "llama.cpp cannot shift M-RoPE positions")
        if CACHE_TYPES[type_k].quantised and (
            self.n_key % HADAMARD or "LLAMA_ATTN_ROT_DISABLE" in os.environ
        ):
            why = f"llama.cpp cannot shift {type_k} keys of {self.n_key} dimensions"
            return Verdict("impossible", why)
        if self.n_swa and not swa_full:
            why = "a sliding-window cache that holds the window only cannot be shifted"
            return Verdict("impossible", why)
        if scaling in ("yarn", "longrope"):
            why = f"llama.cpp's K-shift multiplies {scaling} keys by their gain at every shift"
            return Verdict("approximate", why)
        if type_k.startswith(("q4", "q5", "iq4")):
            return Verdict("approximate", f"{type_k} keys would be quantised anew at every shift")
        return EXACT

    def _no_stream(self) -> str:
        handle = self.handle
        if llama.llama_model_has_encoder(handle) or not llama.llama_model_has_decoder(handle):
            return "it has an encoder; streams need a decoder-only model"
        if llama.llama_model_is_recurrent(handle):
            return "it is recurrent and has no window to manage"
        if self.architecture in LEARNED_POSITIONS:
            return "its positions are learned one by one and end with the trained context"
        return ""

    def close(self) -> None:
        """Free the weights. Twice is fine."""
        self._handle = None
        self.vocabulary.close()
        self._free()


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot read {path}: {reason}; give a model name or a .gguf file"
        ) from None
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'")
