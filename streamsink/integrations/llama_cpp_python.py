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

from streamsink.core.events import Event, Evicted
from streamsink.core.matching import common
from streamsink.core.policy import SinkPolicy
from streamsink.engine.stream import Stream
from streamsink.errors import CacheError, UsageError
from streamsink.gguf.cache_types import CACHE_TYPES
from streamsink.gguf.preflight import preflight
from streamsink.gguf.reader import read_header
from streamsink.gguf.settings import ROPE_SCALINGS, CacheSettings
from streamsink.integrations.logprobs import Chosen, Newest, told
from streamsink.llama.context import NativeContext
from streamsink.llama.weights import Weights

ENDLESS = 2**31 - 1
"""What an attached object takes for the size of its context."""

SEAM = 16
"""Tokens of a prompt's end that the next prompt may have otherwise: what a template writes before
an answer is not always what it writes before one that was given, and a tokenizer joins the two."""

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

    What of a prompt is in the cache already is not evaluated again, as long as the model then sees
    what it would see had all of it been: the whole of a prompt that fits, whatever was said in
    between. A longer one goes on where nothing but the last answer is read in anew, which is how a
    conversation grows, and old messages that it leaves out are taken out of the cache; one that was
    edited further back, or has become shorter, is evaluated from the beginning.

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
        preflight(read_header(path)),
        offloads=llama.model_params.n_gpu_layers != 0 and native.llama_supports_gpu_offload(),
    )
    params = llama.context_params
    context = NativeContext(
        weights,
        llama.n_ctx(),
        _settings(llama),
        swa_full=bool(getattr(params, "swa_full", True)),
        borrowed=llama.ctx,
    )

    def note(evicted: Evicted) -> None:
        llama._last_evicted = max(evicted.index, llama._last_evicted or 0)
        if on_evict:
            on_evict(evicted)

    try:
        stream = Stream(context, policy, llama.n_ctx(), on_evict=note, on_event=on_event)
        stream.reset()
    except BaseException:
        context.close()
        raise
    llama._last_evicted, llama._n_prompt, llama._chosen = None, 0, None
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
    _n_prompt: int
    _last_evicted: int | None
    _chosen: list[Chosen] | None
    _n_top: int
    input_ids: NDArray[np.intc]
    scores: NDArray[np.single]

    def reset(self) -> None:
        self._streamsink.reset()
        self.n_tokens = 0
        self._n_prompt = 0
        self._last_evicted = None

    def eval(self, tokens: Sequence[int]) -> None:
        tokens = list(tokens)
        self._n_prompt = self.n_tokens + len(tokens)
        self._take_in(tokens)

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
            if self._chosen is not None:
                self._chosen.append(Chosen.of(token, self._streamsink.logits(), self._n_top))
            elif self._logits_all:
                # Where `Llama` looks for it, but that the places are used again and again.
                at = (self.n_tokens - 1) % len(self.scores)
                self.scores[at] = self._streamsink.logits()
            if stopping and stopping(self._input_ids, self._streamsink.logits()):
                return
            more = yield token
            self._take_in([token, *(more or ())])

    def _go_to(self, tokens: list[int], *, afresh: bool) -> None:
        """Have the stream hold these tokens, of which it may hold the first already."""
        held = _n_alike(self._input_ids, tokens) if afresh else self.n_tokens
        # Fed from elsewhere, or a decode has failed.
        is_other = self._streamsink.stats.index != self.n_tokens
        if is_other or (held < self.n_tokens and not self._go_back(held, len(tokens))):
            left = self._leave_out(tokens) if afresh and not is_other else 0
            held = left or self._begin_anew(tokens[:held] if afresh else [])
        rest = tokens[held:] if afresh else tokens
        if rest:
            self.eval(rest)
        else:
            self._n_prompt = self.n_tokens
            self._streamsink.logits()

    def _begin_anew(self, held: list[int]) -> int:
        """Forget everything; return how many tokens of the prompt are read in again already.

        They are those that were pinned as the whole first prompt, if they are among the ``held``,
        with which this prompt begins.
        """
        stream = self._streamsink
        n_pinned = stream.stats.pinned if stream.policy.n_keep == -1 else 0
        self.reset()
        if not 0 < n_pinned <= len(held):
            return 0
        self.eval(held[:n_pinned])
        return n_pinned

    def _go_back(self, held: int, n_prompt: int) -> bool:
        """Take back what comes after the first tokens, if it may then go on with a prompt.

        Whoever goes back does not get back what was evicted since. What left last leaves a stream
        that has taken in more than `_full` tokens. So from there on the same is visible as if all
        had been evaluated, and so it has to be: at the place where the stream goes on, and then
        nothing differs at all; or else at the prompt's end, where only the last answer is read in
        anew, which is how a conversation grows.

        Parameters
        ----------
        held : int
            Tokens that the stream and the prompt have in common.
        n_prompt : int
            Tokens of the prompt.
        """
        is_answer = held >= self._n_prompt - SEAM
        if held <= self._full and not (is_answer and n_prompt > self._full):
            return False
        try:
            self._streamsink.rewind(held)
        except (UsageError, CacheError):  # not in the window, or in a recurrent state
            return False
        self.n_tokens = held
        return True

    @property
    def _full(self) -> int:
        """Tokens up to which all could be seen that cannot be seen any more; below 0: all can."""
        if self._last_evicted is None:
            return -1
        return self._last_evicted + self._streamsink.n_ctx - self._streamsink.stats.pinned

    def _leave_out(self, tokens: list[int]) -> int:
        """Take out of the cache what a prompt leaves out of the one before, if that is all.

        So a client goes on that drops old messages: the rest of them and the last answer follow.

        Returns
        -------
        int
            Tokens of the prompt that the stream holds then; 0 where that was not all.
        """
        stream, gone = self._streamsink, (self._last_evicted or 0) + 1
        if stream.stats.sees[0][0] < 0:  # the user has swapped the prefix
            return 0
        n = n_gone = 0
        for passage in common(self._input_ids, np.asarray(tokens, np.intc)):
            if passage.new != n:
                return 0
            n += passage.n
            n_gone += max(0, min(passage.n, gone - passage.old))
            if passage.old + passage.n >= self._n_prompt - SEAM:
                break
        else:
            return 0
        if len(tokens) < n_gone + stream.n_ctx - stream.stats.pinned:
            return 0  # it would see what has been forgotten
        stream.align(tokens[:n])
        self._last_evicted = stream.stats.sees[-1][0] - 1
        self.n_tokens = 0
        self._enter(tokens[:n])
        return n

    def _take_in(self, tokens: Sequence[int]) -> None:
        """Feed tokens and enter them into what the object knows of: all, the evicted included."""
        self._streamsink.feed(tokens)
        self._enter(tokens)

    def _enter(self, tokens: Sequence[int]) -> None:
        n = self.n_tokens + len(tokens)
        if n > len(self.input_ids):
            self.input_ids = np.concatenate([self._input_ids, np.zeros(n, np.intc)])
        self.input_ids[self.n_tokens : n] = tokens
        self.n_tokens = n

    @property
    def _scores(self) -> Newest:
        return Newest(self.scores, self.n_tokens)

    def _create_completion(self, *args: Any, **given: Any) -> Any:
        n_top = given.get("logprobs")
        if n_top is not None and given.get("echo"):
            raise ValueError("logprobs of an echoed prompt are not kept in an endless completion")
        if n_top is None or given.get("stream") or not self._logits_all:
            return super()._create_completion(*args, **given)
        return self._with_logprobs(n_top, *args, **given)

    def _with_logprobs(self, n_top: int, *args: Any, **given: Any) -> Iterator[Any]:
        """A whole completion and its logprobs, taken down as it goes: `Llama` would do it after."""
        self._n_top, self._chosen = n_top, []
        try:
            answer = next(super()._create_completion(*args, **{**given, "logprobs": None}))
            choices = self._chosen
        finally:
            self._chosen = None
        prompt = given["prompt"]
        answer["choices"][0]["logprobs"] = told(choices, self, n_before=len(prompt))
        yield answer

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
        threads=int(params.n_threads),
        threads_batch=int(params.n_threads_batch),
        flash_attn=_FLASH.get(int(getattr(params, "flash_attn_type", 0))),
        rope_scaling=ROPE_SCALINGS[scaling] if stretched else None,
        rope_scale=1 / scale if stretched else 1.0,
    )
