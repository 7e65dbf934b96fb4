"""A loaded model file: weights, metadata, and what streaming may do to its cache."""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path

import llama_cpp.llama_cpp as llama

from streamsink.backend import Capabilities
from streamsink.cache_types import CACHE_TYPES
from streamsink.errors import ClosedError, ModelError, UsageError
from streamsink.native.library import forget_errors, last_error
from streamsink.native.vocabulary import NativeVocabulary

ALL_LAYERS = 999

# llama.h: enum llama_rope_type; M-RoPE variants carry several positions a token.
ROPE_NONE = -1
ROPE_M = (8, 24, 40)
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
        forget_errors()
        handle = llama.llama_model_load_from_file(str(path).encode(), params)
        if not handle:
            raise ModelError(f"llama.cpp cannot load {path}: {last_error() or 'no reason given'}")
        self._handle: llama.llama_model_p | None = handle
        self._free = weakref.finalize(self, llama.llama_model_free, handle)
        self.vocabulary = NativeVocabulary(handle)

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
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained on."""
        return int(llama.llama_model_n_ctx_train(self.handle))

    @property
    def n_swa(self) -> int:
        """Width of the sliding window that some layers have; 0 without."""
        return int(llama.llama_model_n_swa(self.handle))

    @property
    def n_head(self) -> int:
        """Attention heads of the first layer."""
        return int(llama.llama_model_n_head(self.handle))

    def cell_bytes(self, type_k: str, type_v: str) -> float:
        """Bytes that one token takes in a cache of these types (all layers; an upper estimate)."""
        arch, handle = self.architecture, self.handle
        n_head_kv = int(llama.llama_model_n_head_kv(handle))
        default = int(llama.llama_model_n_embd(handle)) // max(1, self.n_head)
        n_key = int(self.metadata(f"{arch}.attention.key_length") or default)
        n_value = int(self.metadata(f"{arch}.attention.value_length") or default)
        elements = int(llama.llama_model_n_layer(handle)) * n_head_kv
        key, value = CACHE_TYPES[type_k], CACHE_TYPES[type_v]
        return elements * (n_key * key.element_bytes + n_value * value.element_bytes)

    def capabilities(self, type_k: str, *, swa_full: bool) -> Capabilities:
        """What streaming may do to a cache of this model with keys of this type."""
        return Capabilities(
            n_ctx_train=self.n_ctx_train,
            no_rotate=self._no_rotate(type_k, swa_full),
            no_reanchor=(
                "its recurrent state cannot be evaluated beside the stream"
                if llama.llama_model_is_hybrid(self.handle)
                else ""
            ),
            no_stream=self._no_stream(),
        )

    def _no_rotate(self, type_k: str, swa_full: bool) -> str:
        rope = int(llama.llama_model_rope_type(self.handle))
        scaling = self.metadata(f"{self.architecture}.rope.scaling.type")
        if rope in ROPE_M:
            return "llama.cpp cannot shift M-RoPE positions"
        if scaling in ("yarn", "longrope"):
            return f"llama.cpp's K-shift multiplies {scaling} keys by their gain at every shift"
        if type_k.startswith(("q4", "q5", "iq4")):
            return f"{type_k} keys would be quantised anew at every shift"
        if self.n_swa and not swa_full:
            return "a sliding-window cache that holds the window only cannot be shifted"
        return ""

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
