"""The front door: a model by name or path, and streams on it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsink import session
from streamsink.core.events import Event, Evicted
from streamsink.core.policy import SinkPolicy
from streamsink.engine.engine import Engine
from streamsink.engine.stream import Stream
from streamsink.gguf.layout import MOST_STREAMS, LayoutName
from streamsink.gguf.preflight import preflight
from streamsink.gguf.reader import read_header
from streamsink.gguf.settings import MOST_BATCH, CacheSettings, Threads
from streamsink.registry.files import resolve
from streamsink.system.checked import whole
from streamsink.system.closing import Closing

if TYPE_CHECKING:
    from streamsink.gguf.traits import Traits
    from streamsink.llama.loading import Progress
    from streamsink.llama.weights import Weights

N_CTX = 2048
"""Context of a stream that was not told another, bounded by the trained one."""


class Model(Closing):
    """A GGUF model, loaded once for any number of streams. Made by `Model.open`."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._closed = False

    def __repr__(self) -> str:
        """What it is, in one line; names out of the file cannot steer a terminal."""
        if self._closed:
            return f"<Model {self.path.name!r}, closed>"
        about = self.description if self.description.isprintable() else ascii(self.description)
        return f"<Model {self.path.name!r}: {about}, trained on {self.n_ctx_train:,} tokens>"

    @classmethod
    def open(
        cls,
        name_or_path: str | os.PathLike[str] = "",
        n_gpu_layers: int | None = None,
        *,
        progress: Progress | None = None,
    ) -> Model:
        """Load a model.

        A file that was never loaded before is tried in another process first
        (`streamsink.gguf.preflight`): llama.cpp answers some damaged files with an abort.

        Parameters
        ----------
        name_or_path : str or path, default ""
            A name of the registry (``streamsink models``) or a ``.gguf`` file; empty means the
            default model.
        n_gpu_layers : int, optional
            Layers to put on the GPU; ``None`` means all where llama.cpp was built for one.
        progress : callable, optional
            Told how much of the weights is in memory, from 0 to 1; what it raises ends the loading.

        Raises
        ------
        UsageError
            No such name or file.
        ModelError
            The file cannot be loaded.
        """
        from streamsink.llama.weights import Weights

        header = read_header(Path(resolve(os.fspath(name_or_path))))
        measured = preflight(header)
        return cls(
            Weights(header.path, n_gpu_layers, header=header, measured=measured, progress=progress)
        )

    @property
    def path(self) -> Path:
        """The file."""
        return self._weights.path

    @property
    def description(self) -> str:
        """Family, size and quantisation in llama.cpp's words."""
        return self._weights.traits.description

    @property
    def traits(self) -> Traits:
        """What the model is like."""
        return self._weights.traits

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained on."""
        return self._weights.traits.n_ctx_train

    def n_ctx_within(self, settings: CacheSettings) -> int:
        """Tokens of context that the model is good for under these settings' RoPE scaling."""
        return self._weights.traits.n_ctx_within(settings)

    @property
    def bos(self) -> int | None:
        """The token that opens a stream; ``None`` where the model expects none."""
        return self._weights.tokenizer.bos

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary."""
        return self._weights.tokenizer.n_tokens

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text, no BOS added; ``special`` reads ``<|...|>`` as control tokens."""
        return self._weights.tokenizer.tokenize(text, special=special)

    @property
    def chat_template(self) -> str:
        """The Jinja chat template of the file; '' where there is none."""
        return self._weights.traits.chat_template

    @property
    def special_texts(self) -> dict[str, str]:
        """Texts of special tokens by the names that chat templates have for them.

        BOS and EOS are '' where there is none, others are left out.
        """
        return self._weights.tokenizer.special_texts

    def cell_bytes(self, cache_type_k: str = "f16", cache_type_v: str = "f16") -> float:
        """Bytes that one token takes in a cache of these types (all layers; an upper estimate)."""
        return self._weights.traits.cell_bytes(cache_type_k, cache_type_v)

    def device_bytes(self) -> int | None:
        """Bytes in use on all GPUs together, by whatever process; None without a GPU."""
        from streamsink.llama import devices

        return devices.used_bytes()

    def stream(
        self,
        policy: SinkPolicy | None = None,
        n_ctx: int | None = None,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        *,
        n_batch: int = 512,
        n_lanes: int = 64,
        threads: Threads = "auto",
        threads_batch: Threads = None,
        flash_attn: bool | None = None,
        rope_scaling: str | None = None,
        rope_scale: float = 1.0,
        on_evict: Callable[[Evicted], object] | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> Stream:
        """Open a stream with a cache of its own.

        Parameters
        ----------
        policy : SinkPolicy, optional
            What to keep and what to evict; ``SinkPolicy()`` by default.
        n_ctx : int, optional
            Tokens that a token can attend to, itself and the sink included.
        cache_type_k, cache_type_v, n_batch, n_lanes, threads, threads_batch, flash_attn,
        rope_scaling, rope_scale
            See `CacheSettings`.
        on_evict, on_event : callable, optional
            See `Stream`.

        Raises
        ------
        UsageError
            Settings out of range or that exclude one another.
        CapabilityError
            The model cannot stream, or not by the placement asked for.
        MemoryBudgetError
            The context does not fit into memory.
        """
        policy = policy or SinkPolicy()
        if n_ctx is None:
            n_ctx = min(N_CTX, self.n_ctx_train)
        policy.check(n_ctx)
        n_ctx = int(n_ctx)  # NumPy's is no int to ctypes
        settings = CacheSettings(
            cache_type_k, cache_type_v, n_batch, n_lanes, threads, threads_batch, flash_attn,
            rope_scaling, rope_scale,
        )  # fmt: skip
        from streamsink.llama.context import NativeContext

        swa_full = policy.placement == "rotate"
        backend = NativeContext(self._weights, n_ctx, settings, swa_full=swa_full)
        try:
            return Stream(
                backend,
                policy,
                n_ctx,
                on_evict=on_evict,
                on_event=on_event,
                siblings=self._streams,
            )
        except Exception:
            backend.close()
            raise

    def engine(
        self,
        n_streams: int = 4,
        n_ctx: int | None = None,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        *,
        layout: LayoutName = "auto",
        chunk: int | None = None,
        n_batch: int = 512,
        n_lanes: int = 64,
        threads: Threads = "auto",
        threads_batch: Threads = None,
        flash_attn: bool | None = None,
        rope_scaling: str | None = None,
        rope_scale: float = 1.0,
    ) -> Engine:
        """Open an engine: streams that decode together, each with a sink and a window of its own.

        The weights are read once for a token of every stream, where streams by themselves read them
        once for each.

        Parameters
        ----------
        n_streams : int, default 4
            Streams whose cells are at hand. There may be more: they take turns.
        n_ctx : int, optional
            Tokens that a token can attend to, in each stream.
        layout : {"auto", "pools", "unified", "separate"}, default "auto"
            A pool of cells for each, one pool for all, or a context for each
            (`streamsink.gguf.layout`); ``auto`` takes what is exact and fastest, and `Engine.why`
            says why.
        chunk : int, optional
            Most tokens of prompts in one step while other streams generate; by default these keep
            a quarter of their pace.
        cache_type_k, cache_type_v, n_batch, n_lanes, threads, threads_batch, flash_attn,
        rope_scaling, rope_scale
            See `CacheSettings`.

        Raises
        ------
        UsageError
            Settings out of range, or a layout that is wrong on this model.
        MemoryBudgetError
            The contexts do not fit into memory.
        """
        n_streams = whole("n_streams", n_streams, 1, MOST_STREAMS)
        if chunk is not None:
            chunk = whole("chunk", chunk, 1, MOST_BATCH)
        if n_ctx is None:
            n_ctx = min(N_CTX, self.n_ctx_train)
        SinkPolicy(n_keep=0).check(n_ctx)
        settings = CacheSettings(
            cache_type_k, cache_type_v, n_batch, n_lanes, threads, threads_batch, flash_attn,
            rope_scaling, rope_scale,
        )  # fmt: skip
        from streamsink.llama.slots import NativeHosts

        hosts = NativeHosts(self._weights, int(n_ctx), settings, n_streams, layout)
        try:
            engine = Engine(hosts, int(n_ctx), chunk=chunk)
        except BaseException:
            hosts.close()
            raise
        self._engines.add(engine)
        return engine

    def restore(
        self,
        path: str | os.PathLike[str],
        policy: SinkPolicy | None = None,
        n_ctx: int | None = None,
        *,
        on_evict: Callable[[Evicted], object] | None = None,
        on_event: Callable[[Event], object] | None = None,
        **settings: Any,
    ) -> Stream:
        """Open a stream that goes on where a saved one stood; `Stream.restored` tells how.

        The next logits are those of the stream that was never stopped. Under settings that its
        cells do not fit, or a smaller ``n_ctx``, its visible tokens are evaluated again instead.

        Parameters
        ----------
        path : path
            A file that `Stream.save` wrote.
        policy, n_ctx, settings
            As for `stream`; what is not given is as it was.
        on_evict, on_event : callable, optional
            See `Stream`.

        Raises
        ------
        SessionError
            There is no such file, or it is torn, damaged, of another version or another model.
        UsageError, CapabilityError, MemoryBudgetError, DecodeError, CacheError
            As for `stream`, and for evaluating the tokens.
        """
        with session.SessionFile(Path(path)) as file:
            kind, snapshot = file.session.kind, file.session.stream
            before = {
                name: getattr(kind, name)
                for name in ("cache_type_k", "cache_type_v", "rope_scaling", "rope_scale")
            }
            with ThreadPoolExecutor(1) as beside:  # disk and checksum, while memory is taken
                reading = beside.submit(lambda: (file.cells(), file.logits()))
                stream = self.stream(
                    policy or snapshot.policy,
                    snapshot.n_ctx if n_ctx is None else n_ctx,
                    **{**before, **settings},
                    on_evict=on_evict,
                    on_event=on_event,
                )
        try:
            cells, logits = reading.result()
            stream.restore(snapshot, kind, cells, policy, logits)
        except BaseException:
            stream.close()
            raise
        return stream

    def close(self) -> None:
        """Close all streams, and free the weights. Twice is fine."""
        self._closed = True
        for engine in list(self._engines):
            engine.close()
        # A context that outlives its model takes the process with it; and another thread may open
        # or fork one meanwhile.
        while self._streams:
            with suppress(RuntimeError):
                for stream in list(self._streams):
                    stream.close()
                    self._streams.discard(stream)
        self._weights.close()
