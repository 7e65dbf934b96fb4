"""For those who have a ``llama_cpp.Llama`` already: the same object, without an end.

``llama.create_completion`` and ``create_chat_completion`` give each call the whole text so far.
What of it the stream holds already is not evaluated again, as `Llama` itself does it, but here that
goes on after the oldest tokens have left the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np
from llama_cpp import Llama
from numpy.typing import NDArray

from streamsink.cache_types import CACHE_TYPES
from streamsink.errors import CacheError, UsageError
from streamsink.header import read_header
from streamsink.ledger import Evicted
from streamsink.native.context import NativeContext
from streamsink.native.weights import Weights
from streamsink.policy import SinkPolicy
from streamsink.records import Event
from streamsink.settings import ROPE_SCALINGS, CacheSettings
from streamsink.stream import Stream
from streamsink.trial import tried

ENDLESS = 2**31 - 1
"""What an attached object takes for the size of its context."""

_FLASH = {-1: None, 0: False, 1: True}  # llama.h: enum llama_flash_attn_type


def attach(
    llama: Llama,
    policy: SinkPolicy | None = None,
    *,
    on_evict: Callable[[Evicted], object] | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> Stream:
    """Make completions on an existing object endless: same calls, same answers, no end at n_ctx.

    From here on a prompt may be of any length, and ``max_tokens=None`` goes on until the model
    ends. The object's cache, of one sequence, is streamed in by rotation; what it held is dropped.

    Parameters
    ----------
    llama : Llama
        The object. It stays yours: close it as before.
    policy : SinkPolicy, optional
        What to keep and what to evict; ``n_keep`` a number, or -1 for the whole first prompt.
    on_evict, on_event : callable, optional
        See `Stream`.

    Returns
    -------
    Stream
        The stream within, to look at (`Stream.stats`, `Stream.visible`) and to change
        (`Stream.policy`, `Stream.repin`) between two calls.

    Raises
    ------
    UsageError
        The object embeds texts, sees pictures, guesses ahead or has a cache of its own; or the
        policy does not fit.
    CapabilityError
        Rotation would be wrong on this model: open it by `streamsink.Model`, which can re-anchor.
    """
    policy = policy or SinkPolicy()
    _check(llama, policy)
    path = Path(llama.model_path)
    weights = Weights.borrowed(
        llama.model,
        path,
        tried(read_header(path)),
        offloads=llama.model_params.n_gpu_layers != 0 and native.llama_supports_gpu_offload(),
    )
    params = llama.context_params
    backend = NativeContext(
        weights,
        llama.n_ctx(),
        _settings(llama),
        swa_full=bool(getattr(params, "swa_full", True)),
        borrowed=llama.ctx,
    )
    try:
        stream = Stream(backend, policy, llama.n_ctx(), on_evict=on_evict, on_event=on_event)
        stream.reset()
    except BaseException:
        backend.close()
        raise
    kind = type(llama)
    llama.__class__ = type(kind.__name__, (_Endless, kind), {"__module__": kind.__module__})
    llama._streamsink = stream
    llama._n_ctx = ENDLESS
    llama.n_tokens = 0
    llama.scores = np.zeros_like(llama.scores)  # of a prompt none are entered
    return stream


class _Endless(Llama):  # type: ignore[misc]
    """What is otherwise on an attached object; it comes before the object's own class."""

    _streamsink: Stream
    input_ids: NDArray[np.intc]
    scores: NDArray[np.single]

    def reset(self) -> None:
        self._streamsink.reset()
        self.n_tokens = 0

    def eval(self, tokens: Sequence[int]) -> None:
        tokens = list(tokens)
        self._streamsink.feed(tokens)
        self._note(tokens)

    def generate(self, tokens: Sequence[int], *args: Any, **given: Any) -> Iterator[int]:
        call = inspect.signature(super().generate).bind(tokens, *args, **given)
        call.apply_defaults()
        asked = call.arguments
        wanted = inspect.signature(self._init_sampler).parameters
        sampler = self._init_sampler(**{name: asked[name] for name in wanted if name in asked})
        self._sampler = sampler
        self._go_to(list(tokens), afresh=asked["reset"])
        stopping = asked["stopping_criteria"]
        while True:
            token = sampler.sample(self._ctx, -1)
            if self._logits_all:
                self._note_scores()
            if stopping and stopping(self._input_ids, self._streamsink.logits()):
                return
            more = yield token
            self.eval([token, *(more or ())])

    def _go_to(self, tokens: list[int], *, afresh: bool) -> None:
        """Have the stream hold these tokens, of which it may hold the first already."""
        if self._streamsink.stats.index != self.n_tokens:
            self.reset()  # fed from elsewhere, or a decode has failed
        held = _n_alike(self._input_ids, tokens) if afresh else self.n_tokens
        if held < self.n_tokens:
            try:
                self._streamsink.rewind(held)
                self.n_tokens = held
            except (UsageError, CacheError):  # evicted since, or in a recurrent state
                self.reset()
                held = 0
        rest = tokens[held:] if afresh else tokens
        if rest:
            self.eval(rest)
        else:
            self._streamsink.logits()

    def _note(self, tokens: Sequence[int]) -> None:
        """Enter tokens into what the object knows of them: all, the evicted ones included."""
        n = self.n_tokens + len(tokens)
        if n > len(self.input_ids):
            self.input_ids = np.concatenate([self._input_ids, np.zeros(n, np.intc)])
        self.input_ids[self.n_tokens : n] = tokens
        self.n_tokens = n

    @property
    def _scores(self) -> NDArray[np.single]:
        rows: NDArray[np.single] = self.scores[: self.n_tokens]
        return rows

    def _note_scores(self) -> None:
        """Enter the logits of the newest token, where `Llama` looks for them."""
        if self.n_tokens > len(self.scores):
            more = np.zeros((2 * self.n_tokens, self._n_vocab), np.single)
            more[: len(self.scores)] = self.scores
            self.scores = more
        self.scores[self.n_tokens - 1] = self._streamsink.logits()

    def _create_completion(self, *args: Any, **given: Any) -> Any:
        if given.get("logprobs") is not None and given.get("echo"):
            raise ValueError("logprobs of an echoed prompt are not kept in an endless completion")
        return super()._create_completion(*args, **given)

    def set_cache(self, cache: Any) -> None:
        if cache is not None:
            raise UsageError("an attached Llama has no cache beside its stream: fork the stream")

    def save_state(self) -> Any:
        raise UsageError("the state of an attached Llama is its stream's: stream.save(FILE)")

    def load_state(self, state: Any) -> None:
        raise UsageError("the state of an attached Llama is its stream's: Model.restore(FILE)")

    def close(self) -> None:
        self._streamsink.close()
        super().close()


def _n_alike(held: NDArray[np.intc], tokens: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginnings."""
    n = min(len(held), len(tokens))
    differ = np.flatnonzero(held[:n] != np.asarray(tokens[:n], np.intc))
    return int(differ[0]) if differ.size else n


def _check(llama: Llama, policy: SinkPolicy) -> None:
    """Refuse what cannot be made endless."""
    if isinstance(llama, _Endless):
        raise UsageError("this Llama is attached already")
    refused = {
        "it embeds texts (embedding=True)": bool(llama.context_params.embeddings),
        "it guesses ahead (draft_model)": llama.draft_model is not None,
        "it has a cache of its own (set_cache)": llama.cache is not None,
        "it sees pictures (chat_handler)": hasattr(llama.chat_handler, "clip_model_path"),
    }
    for why, holds in refused.items():
        if holds:
            raise UsageError(f"this Llama cannot be attached: {why}")
    if policy.n_keep == "system" or policy.n_discard == "turn":
        raise UsageError("an attached Llama knows no turns: give numbers, half or sentence")


def _settings(llama: Llama) -> CacheSettings:
    """The settings that its context was made with."""
    params = llama.context_params
    names = {kind.number: name for name, kind in CACHE_TYPES.items()}
    scaling, scale = int(params.rope_scaling_type), float(params.rope_freq_scale)
    stretched = 0 < scale < 1 and 0 <= scaling < len(ROPE_SCALINGS)
    return CacheSettings(
        names.get(int(params.type_k), "f16"),
        names.get(int(params.type_v), "f16"),
        n_batch=min(int(params.n_batch), int(params.n_ubatch)),
        n_lanes=1,
        flash_attn=_FLASH.get(int(getattr(params, "flash_attn_type", 0))),
        rope_scaling=ROPE_SCALINGS[scaling] if stretched else None,
        rope_scale=1 / scale if stretched else 1.0,
    )
