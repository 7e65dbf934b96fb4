"""A loaded model file: weights, metadata, and what streaming may do to its cache."""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import llama_cpp.llama_cpp as llama

from streamsink.errors import ClosedError, ModelError
from streamsink.gguf.fingerprint import Fingerprint
from streamsink.gguf.header import Header
from streamsink.gguf.preflight import UNMEASURED, Measured
from streamsink.gguf.reader import read_header, tensor_names
from streamsink.llama.library import hearing
from streamsink.llama.loading import Loading, Progress
from streamsink.llama.params import model_params
from streamsink.llama.read_traits import TOLD, read_traits
from streamsink.llama.tokenizer import NativeTokenizer
from streamsink.system.cores import Load
from streamsink.system.interrupt import deferred


class Weights:
    """A GGUF file in memory, shared by all its streams.

    Parameters
    ----------
    path : Path
        The file, or the first of a split one.
    n_gpu_layers : int, optional
        Layers to put on the GPU; ``None`` means all where llama.cpp was built for one.
    header : Header, optional
        Its header, where it was read already.
    measured : Measured, optional
        What a trial found.
    progress : callable, optional
        Told how much is in memory, from 0 to 1; what it raises ends the loading.

    Attributes
    ----------
    tokenizer : NativeTokenizer
        Tokens and text of the model.
    traits : Traits
        What the model is like.
    measured : Measured
        What a trial found.
    n_bytes : int
        Size of the weights.
    load : Load
        How busy the machine is, looked at when the file began to be loaded: a stream's first decode
        gives way too.
    fingerprint : str
        What tells the model from any other; see `streamsink.gguf.fingerprint`.

    Raises
    ------
    UsageError
        There is no such file.
    ModelError
        llama.cpp cannot read it; its last error line is part of the message. Or the file was
        replaced meanwhile.
    """

    def __init__(
        self,
        path: Path,
        n_gpu_layers: int | None = None,
        *,
        header: Header | None = None,
        measured: Measured = UNMEASURED,
        progress: Progress | None = None,
    ) -> None:
        self.path = path
        self.measured = measured
        self.load = Load.begun()
        self._header = header = header or read_header(path)
        self._free: Callable[[], object]
        fingerprint = Fingerprint.of(header)
        names = tensor_names(header)
        params = model_params(n_gpu_layers)
        self.offloads = params.n_gpu_layers > 0
        with deferred() as signals, hearing(TOLD) as said:
            loading = Loading(progress, signals.deliver)
            params.progress_callback = loading.callback
            handle = llama.llama_model_load_from_file(os.fsencode(path), params)
            if handle:
                self._free = weakref.finalize(self, llama.llama_model_free, handle)
        if not handle:
            loading.check()
            raise ModelError(f"llama.cpp cannot load {path}: {said.reason or 'no reason given'}")
        try:
            loading.check()  # it came with the last step
            fingerprint.require_unchanged()  # llama.cpp opened it by its name
            self._hold(handle, names, said.lines)
        except BaseException:
            self._free()
            raise
        self.fingerprint = fingerprint.digest

    @classmethod
    def borrowed(
        cls, handle: llama.llama_model_p, path: Path, measured: Measured, *, offloads: bool
    ) -> Weights:
        """Weights that somebody else has loaded, and will free after this object's last use.

        Parameters
        ----------
        handle : ctypes pointer
            The ``llama_model *``.
        path : Path
            Its file.
        measured : Measured
            What a trial found.
        offloads : bool
            Whether layers are on a GPU.

        Raises
        ------
        ModelError
            The file is of another model by now.
        """
        weights = object.__new__(cls)
        weights.path, weights.measured, weights.offloads = path, measured, offloads
        weights.load = Load.begun()
        weights._header = header = read_header(path)
        _require_alike(handle, header)
        weights.fingerprint = Fingerprint.of(header).digest
        weights._free = lambda: None
        weights._hold(handle, tensor_names(weights._header), ())
        return weights

    def _hold(
        self, handle: llama.llama_model_p, names: Collection[str], lines: Sequence[str]
    ) -> None:
        self._handle: llama.llama_model_p | None = handle
        self.n_bytes = int(llama.llama_model_size(handle))
        self.tokenizer = NativeTokenizer(handle)
        # Asked once: a context with YaRN by option changes the answers (llama_init_from_model).
        self.traits = read_traits(handle, self.tokenizer, self._header, names, lines)

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

    def close(self) -> None:
        """Free the weights. Twice is fine."""
        self._handle = None
        self.tokenizer.close()
        self._free()


def _require_alike(handle: llama.llama_model_p, header: Header) -> None:
    """Refuse a header that is not of the model that was loaded, as far as a header tells.

    Raises
    ------
    ModelError
        It says something else.
    """
    n_params = sum(
        math.prod(tensor.shape)
        for part in (header, *map(read_header, header.parts()[1:]))
        for tensor in part.tensors.values()
    )
    alike = n_params == int(llama.llama_model_n_params(handle)) and all(
        _told(handle, key, len(value.encode())) == value
        for key, value in header.metadata.items()
        if isinstance(value, str) and "\0" not in key + value
    )
    if not alike:
        raise ModelError(
            f"{header.path} is another model by now than the one that was loaded: load it again"
        )


def _told(handle: llama.llama_model_p, key: str, n_bytes: int) -> str:
    """What a loaded model's file said under a key, as far as it is this long."""
    text = ctypes.create_string_buffer(n_bytes + 2)
    llama.llama_model_meta_val_str(handle, key.encode(), text, len(text))
    return text.value.decode("utf-8", "replace")
