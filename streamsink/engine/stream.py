"""The stream: what a person holds in hand. Text and tokens in, scores and steps out."""

from __future__ import annotations

import asyncio
import operator
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, MutableSet, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamsink import session
from streamsink.core.events import Event, Finish, Repinned, Restored, Stats, Step, Visible
from streamsink.core.ledger import Evicted
from streamsink.core.pinned import Pinned, PinnedSpan, check_window, pinned_ranges
from streamsink.core.policy import LARGEST, SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.core.snapshot import CacheKey, Conversation, Snapshot
from streamsink.engine.cache import REBASE_AT, Cache
from streamsink.engine.context import Backend, Logits, Sampler
from streamsink.engine.scoring import nll
from streamsink.engine.text import TextStream, open_bytes
from streamsink.engine.undo import Undo
from streamsink.errors import CacheError, ClosedError, SessionError, UsageError
from streamsink.system import checked
from streamsink.system.closing import Closing
from streamsink.system.interrupt import Door, Exclusive

Input: TypeAlias = str | Sequence[int]

MOST_TOKENS = 2**62
LONGEST_CHARACTER = 4
"""Bytes, and so tokens, that a character of UTF-8 can have."""


@dataclass(slots=True)
class _Meter:
    """Tokens, and the seconds that were spent on them."""

    n_tokens: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.n_tokens / self.seconds if self.seconds else 0.0

    def add(self, n_tokens: int, start: float) -> None:
        self.n_tokens += n_tokens
        self.seconds += time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a generation was asked for; see `Stream.generate`."""

    max_tokens: int | None
    sampling: Sampling
    ignore_eos: bool
    ends: frozenset[int]
    shows: frozenset[int]
    record: list[Step] | None


class Stream(Closing):
    """An endless stream through a finite context. Made by `streamsink.Model.stream`.

    A stream never remembers more than ``n_ctx`` tokens: what was evicted is forgotten.

    One call at a time: while one is under way, another on the same stream raises `BusyError`. A
    generation is under way while it makes a step, not between two of them.

    Parameters
    ----------
    backend : Backend
        An engine's context, owned by the stream from here on.
    policy : SinkPolicy
        What to keep, what to evict.
    n_ctx : int
        Tokens that a token can attend to, itself and the sink included.
    on_evict : callable, optional
        Called with every `Evicted` record, after cache and ledger have settled.
    on_event : callable, optional
        Called with every `Event`, likewise.
    rebase_at : int
        Position at which a growing stream is brought back to 0.
    siblings : mutable set of Stream, optional
        Where this stream and its forks enter themselves.

    Raises
    ------
    UsageError
        The policy does not fit ``n_ctx``.
    CapabilityError
        The model cannot stream, or not by the placement asked for.
    """

    def __init__(
        self,
        backend: Backend,
        policy: SinkPolicy,
        n_ctx: int,
        *,
        on_evict: Callable[[Evicted], object] | None = None,
        on_event: Callable[[Event], object] | None = None,
        rebase_at: int = REBASE_AT,
        siblings: MutableSet[Stream] | None = None,
    ) -> None:
        policy.check(n_ctx)
        self.n_ctx = n_ctx
        self._siblings = siblings
        self._on_evict = on_evict
        self._on_event = on_event
        self._news: deque[Event] = deque()
        self._tokenizer = backend.tokenizer
        self._policy = policy
        self._pending: list[int] = []
        self._pinned = Pinned()
        n_keep = policy.n_keep if isinstance(policy.n_keep, int) else 0
        report = self._news.append if on_evict or on_event else None
        self._door = Door()
        self._alone = Exclusive(self._door, before=self._check_open, after=self._tell)
        # The same for what changes nothing, and for a stream that is closed already.
        self._still = Exclusive(self._door)
        self._cache = Cache(
            backend,
            policy,
            n_ctx,
            max(0, n_keep),
            rebase_at=rebase_at,
            report=report,
            pause=self._alone.deliver,
        )
        self._feeding = _Meter()
        self._generating = _Meter()
        self._sampler: Sampler | None = None
        self.restored: Restored | None = None
        """How it came out of a session file, where it did."""
        self._closed = False
        if siblings is not None:
            siblings.add(self)

    # -- what the user holds in hand ------------------------------------------------------------

    @property
    def policy(self) -> SinkPolicy:
        """The policy in force. Assign another at any time; it acts from the next token on.

        A larger ``n_keep`` pins the oldest tokens that are still visible, a smaller one lets the
        sink's last tokens go first.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: SinkPolicy) -> None:
        with self._alone:
            self._adopt(policy)

    def change(self, **settings: Any) -> None:
        """Change some settings of the policy: ``stream.change(n_discard=8)``."""
        with self._alone:
            self._adopt(replace(self._policy, **settings))

    @property
    def pins(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of the spans that are pinned beside the prefix, by `pin`."""
        return tuple(span.tokens for span in self._pinned.spans)

    @property
    def pinned_ranges(self) -> tuple[tuple[int, int], ...]:
        """Index ranges of what stays for good, half-open: of the prefix, and of what `pin` keeps.

        A prefix that was swapped was never part of the stream and has none.
        """
        with self._still:
            return pinned_ranges(self._cache.ledger.pinned(), self._pinned)

    def pin_system(self, n_tokens: int) -> None:
        """Say how many tokens the system block has: what ``n_keep="system"`` pins."""
        n_tokens = checked.whole("keep", n_tokens, 0, LARGEST, "a number of tokens")
        with self._alone:
            pinned = replace(self._pinned, n_system=n_tokens)
            if self._policy.n_keep == "system" and not pinned.spans:
                pinned = replace(pinned, n_prefix=None)
            self._adopt(self._policy, pinned)

    def begin_turn(self) -> None:
        """Say that a turn begins with the next token: ``n_discard="turn"`` evicts up to here."""
        with self._alone:
            self._cache.begin_turn(self._cache.ledger.next_index + len(self._pending))

    def repin(self, text: Input, *, special: bool = False, exact: bool = False) -> Repinned:
        """Swap the pinned prefix for another, shorter or longer; window and pinned spans stay.

        The new prefix is evaluated once, right below the window, and ``n_keep`` becomes its length.
        Keys and values of the window still remember the old prefix. Tokens of the new one have
        indices below 0, for they were never part of the stream.

        Parameters
        ----------
        text : str or sequence of int
            Text gets the model's BOS in front; tokens are taken as they are.
        special : bool
            Read ``<|...|>`` in the text as control tokens.
        exact : bool
            Evaluate the window anew behind it, so that nothing of the old prefix is left.

        Returns
        -------
        Repinned
            What it took.

        Raises
        ------
        UsageError
            Nothing has been fed, or the prefix leaves no window; nothing has changed.
        DecodeError, CacheError
            llama.cpp failed; a prefix that is swapped already is evaluated before the stream goes
            on.
        """
        with self._alone:
            tokens = self._tokens(text, special)
            bos = self._tokenizer.bos
            if isinstance(text, str) and bos is not None and tokens[:1] != [bos]:
                tokens.insert(0, bos)
            pinned = replace(self._pinned, n_prefix=len(tokens), n_system=len(tokens))
            n_prefix = self._n_prefix
            policy = self._policy
            if policy.n_keep != "system":
                policy = replace(policy, n_keep=len(tokens))
            return self._splice(0, n_prefix, tokens, policy, pinned, exact=exact)

    def swap_system(self, text: Input, block: tuple[int, int], *, exact: bool = False) -> Repinned:
        """Swap the system block for another; what else is pinned stays, and so does the policy.

        Under a policy that pins fewer tokens than the new block has, the rest of it leaves like the
        tokens of a window; but where something is pinned behind it by `pin`, all of it stays.

        Parameters
        ----------
        text : str or sequence of int
            The new block, as for `repin`.
        block : (int, int)
            Index range of the old block, half-open.
        exact : bool
            As for `repin`.

        Raises
        ------
        UsageError, DecodeError, CacheError
            As for `repin`.
        """
        with self._alone:
            tokens = self._tokens(text, special=True)
            policy, pinned = self._policy, self._pinned
            ledger = self._cache.ledger
            n_tokens = ledger.n_leading(*block)
            n_prefix: int | None = None
            if pinned.spans or policy.n_keep == -1:
                n_tokens = min(n_tokens, self._n_prefix)
                n_prefix = self._n_prefix - n_tokens + len(tokens)
                self._check_splice(n_tokens, tokens)
                # What of the block stands in the window, behind what is pinned.
                rest = sum(len(ids) for _, ids in ledger.unpinned(*block))
                if rest:
                    self._cache.evict(rest)
            pinned = replace(pinned, n_prefix=n_prefix, n_system=len(tokens))
            return self._splice(0, n_tokens, tokens, policy, pinned, exact=exact)

    def pin(self, start: int, stop: int) -> Repinned:
        """Pin a span for good, beside the prefix: facts that must not be forgotten.

        The span is evaluated once more, as the end of the pinned prefix, and stays in the window
        too until it leaves there. The policy stays as it is; another ``n_keep`` releases the span.

        Parameters
        ----------
        start, stop : int
            Index range, half-open; of it is pinned what the model can still see and is not pinned
            already.

        Raises
        ------
        UsageError
            Nothing of it can be seen any more, or it leaves no window; nothing has changed.
        DecodeError, CacheError
            As for `repin`.
        """
        start, stop = _whole(start), _whole(stop)
        with self._alone:
            ledger, pinned = self._cache.ledger, self._pinned
            if stop > ledger.next_index > start - len(self._pending):
                self._advance(())
            parts = [part for part in ledger.unpinned(start, stop) if part[0] >= 0]
            if not parts:
                raise UsageError(f"nothing of {start} to {stop} is in the window: there is no more")
            span = PinnedSpan(
                tuple((index, index + len(tokens)) for index, tokens in parts),
                tuple(token for _, tokens in parts for token in tokens),
            )
            pinned = replace(pinned, n_prefix=self._n_prefix, spans=(*pinned.spans, span))
            return self._splice(ledger.n_pinned, 0, span.tokens, self._policy, pinned)

    def unpin(self) -> Repinned:
        """Release the span that was pinned last.

        Raises
        ------
        UsageError
            There is none.
        DecodeError, CacheError
            As for `repin`.
        """
        with self._alone:
            if not self._pinned.spans:
                raise UsageError("nothing is pinned beside the prefix")
            *spans, last = self._pinned.spans
            pinned = replace(self._pinned, spans=tuple(spans))
            n = len(last.tokens)
            at = self._cache.ledger.n_pinned - n
            return self._splice(at, n, (), self._policy, pinned)

    @property
    def _n_prefix(self) -> int:
        """Pinned tokens without the spans beside them."""
        return self._cache.ledger.n_pinned - self._pinned.n_spans

    def _splice(
        self,
        at: int,
        n: int,
        tokens: Sequence[int],
        policy: SinkPolicy,
        pinned: Pinned,
        *,
        exact: bool = False,
    ) -> Repinned:
        """Swap ``n`` of the oldest tokens, after the first ``at``, for others."""
        start = time.perf_counter()
        cache = self._cache
        policy.check(self.n_ctx)
        self._check_splice(n, tokens)
        self._advance(())
        n_evicted, index = cache.splice(at, n, tokens, exact=exact)
        self._policy, self._pinned = policy, pinned
        cache.adopt(policy, pinned.n_keep(policy, cache.ledger))
        n_evaluated = cache.bring_back()
        ms = (time.perf_counter() - start) * 1e3
        return Repinned(cache.ledger.n_pinned, n_evaluated, n_evicted, ms, index)

    def _check_splice(self, n: int, tokens: Sequence[int]) -> None:
        """Refuse to swap ``n`` of the oldest tokens for others where that cannot be."""
        if self._is_empty:
            raise UsageError("an empty stream has no prefix to swap: feed it first")
        check_window(max(0, self._cache.ledger.n_pinned - n) + len(tokens), self.n_ctx)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done within happens, or nothing of it.

        >>> with stream.transaction():
        ...     stream.feed(question)
        ...     stream.begin_turn()

        What ends the block, an error or Ctrl-C, puts the stream back to where it stood before.
        Tokens that came are taken out, and what was evicted for them comes back: from a copy of its
        cells where that was worth making, or else evaluated anew, and then it does not remember
        what was evicted earlier. Signals wait until the end of the block or between two decodes.
        Other threads are told that the stream is busy, and a generation goes on after the block.
        """
        if self._door.guest == threading.get_ident():  # within another one, it is a part of that
            yield
            return
        with self._alone, self._door.left_open():
            before, n_news = self._snapshot(), len(self._news)
            backend = self._cache.backend
            undo = Undo(
                backend.save,
                self._snapshot,
                self._feeding.rate,
                takes_back=backend.capabilities.takes_back,
            )
            self._cache.undo = undo
            try:
                yield
            except BaseException:
                self._cache.undo = None
                self._policy, self._pinned = before.policy, before.pinned
                self._pending = list(before.pending)
                self._cache.go_back(before, undo)
                self._cache.adopt(before.policy, before.n_keep)
                while len(self._news) > n_news:
                    self._news.pop()
                raise
            finally:
                self._cache.undo = None

    def feed(self, text: Input, *, special: bool = False) -> int:
        """Take in text or tokens of any length, evicting on the way.

        Parameters
        ----------
        text : str or sequence of int
            Text gets the model's BOS in front if the stream is empty; tokens are taken as they are.
        special : bool
            Read ``<|...|>`` in the text as control tokens.

        Returns
        -------
        int
            Tokens taken in.

        Raises
        ------
        UsageError
            A token that the vocabulary does not have, or a first prompt too long to be pinned.
        DecodeError, CacheError
            llama.cpp failed; the stream holds what was decoded before and goes on. ``stats.index``
            says how far it came.
        """
        with self._alone:
            tokens = self._tokens(text, special)
            self._begin(tokens)
            start = time.perf_counter()
            self._advance(tokens)
            self._feeding.add(len(tokens), start)
        return len(tokens)

    def rewind(self, index: int) -> None:
        """Go back to where the token of an index was yet to come; what came since is gone.

        Parameters
        ----------
        index : int
            An index of the window, or the stream's next.

        Raises
        ------
        UsageError
            It is not in the window: what was evicted before it does not come back.
        CacheError
            The model cannot take tokens back: a recurrent state holds them.
        """
        index = _whole(index)
        with self._alone:
            ledger = self._cache.ledger
            n_tokens = ledger.next_index + len(self._pending)
            first = ledger.next_index - ledger.n_newest
            if not first <= index <= n_tokens:
                raise UsageError(
                    f"the stream cannot go back to {index}: {first} to {n_tokens} are possible"
                )
            if index < ledger.next_index:
                self._cache.take_back(ledger.next_index - index)
            del self._pending[index - ledger.next_index :]
            self._cache.boundaries.cut(index)

    def score(self, text: Input, *, special: bool = False) -> NDArray[np.float64]:
        """Take in text or tokens like `feed`, and say how well the stream foresaw each token.

        Returns
        -------
        ndarray of float64, shape (n_tokens,)
            Negative log-likelihood in nat of each token given the stream before it; NaN for a
            first token that has nothing before it. A BOS that was put in front counts as a token.

        Raises
        ------
        UsageError, DecodeError, CacheError
            As for `feed`.
        """
        with self._alone:
            tokens = self._tokens(text, special)
            self._begin(tokens)
            scores = np.full(len(tokens), np.nan)
            if not tokens:
                return scores
            start = time.perf_counter()
            if self._cache.ledger.n_live or self._pending:
                scores[:1] = nll(self._ready_logits(), tokens[:1])
            self._cache.advance(tokens, scores)
            self._feeding.add(len(tokens), start)
        return scores

    def generate(
        self,
        max_tokens: int | None = 256,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
        *,
        ignore_eos: bool = False,
        ends: Collection[int] = (),
        shows: Collection[int] = (),
        record: list[Step] | None = None,
    ) -> Iterator[Step]:
        """Let the model go on, one `Step` a token.

        Every token yielded is part of the stream, the one that ended it included. Stop iterating
        whenever you like; feed, change the policy, go on.

        Parameters
        ----------
        max_tokens : int, optional
            Most tokens; ``None`` goes on until something else ends it. A stream never fills up, so
            this may be for ever.
        stop : sequence of str
            Strings that end the text.
        sampling : Sampling, optional
            How tokens are chosen.
        ignore_eos : bool
            Go on when the model ends its text.
        ends : collection of int
            Tokens that end the text beside those that the vocabulary marks so.
        shows : collection of int
            Control tokens that are part of the text, as the marks of a thought may be.
        record : list of Step, optional
            Receives every step together with its entry into the stream: whatever interrupts the
            caller, the list has what the stream has.

        Raises
        ------
        UsageError
            Nothing has been fed and the model has no BOS, or a grammar that cannot be read.
        DecodeError, CacheError
            llama.cpp failed; the stream holds all tokens yielded and goes on.
        """
        sampling = sampling or Sampling()
        if max_tokens is not None:
            max_tokens = checked.whole("max-tokens", max_tokens, 0, MOST_TOKENS)
        checked.truth("ignore-eos", ignore_eos)
        if ignore_eos and sampling.grammar:
            raise UsageError("a grammar ends where the text ends: drop ignore_eos or the grammar")
        asked = _Asked(max_tokens, sampling, ignore_eos, frozenset(ends), frozenset(shows), record)
        return self._generate(asked, TextStream(stop))

    async def agenerate(
        self,
        max_tokens: int | None = 256,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
        *,
        ignore_eos: bool = False,
    ) -> AsyncIterator[Step]:
        """`generate` for an event loop, which is free while llama.cpp works.

        Cancelled, the stream holds what was yielded: the step under way is waited for and taken
        back.
        """
        steps = self.generate(max_tokens, stop, sampling, ignore_eos=ignore_eos)
        while True:
            under_way = asyncio.ensure_future(asyncio.to_thread(next, steps, None))
            try:
                step = await asyncio.shield(under_way)
            except asyncio.CancelledError:
                # However often it is cancelled meanwhile: the step must not stay.
                while not under_way.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([under_way])
                late = None if under_way.exception() else under_way.result()
                if late:
                    self._unsay(late)
                raise
            if step is None:
                return
            yield step

    def fork(
        self,
        *,
        on_evict: Callable[[Evicted], object] | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> Stream:
        """Open a second stream that stands where this one stands, and goes on by itself.

        A prompt is evaluated once and used many times: the cells are copied, not computed. The
        policy is copied too; counters go on from where they are, and under the same `Sampling` with
        a seed both generate alike.

        Raises
        ------
        ModelError, MemoryBudgetError
            There is no room for another context.
        DecodeError, CacheError
            The cells cannot be copied; this stream goes on.
        """
        with self._alone:
            self._cache.settle()
            backend = self._cache.backend.fork()
            try:
                other = Stream(
                    backend,
                    self._policy,
                    self.n_ctx,
                    on_evict=on_evict,
                    on_event=on_event,
                    rebase_at=self._cache.rebase_at,
                    siblings=self._siblings,
                )
                other._take_over(self._snapshot(), self._policy)
                row = self._lasting_logits()
                if row is not None:
                    other._cache.put_logits(row)
            except BaseException:
                backend.close()
                raise
        return other

    def _lasting_logits(self) -> Logits | None:
        """The logits of the newest token, where they could not be computed again."""
        return None if self._pending else self._cache.lasting_logits()

    def save(self, path: str | os.PathLike[str], *, talk: Conversation | None = None) -> None:
        """Write the stream to a file, for `streamsink.Model.restore`.

        The file is whole at every moment: the old one, until the new one is on the disk.

        Parameters
        ----------
        path : path
            The file; whoever can read it can read the conversation, so it is its owner's alone.
        talk : Conversation, optional
            The conversation that goes with the stream; see `streamsink.Chat.save`.

        Raises
        ------
        SessionError
            The file cannot be written.
        DecodeError, CacheError
            What is missing in the cache could not be brought back.
        """
        start = time.perf_counter()
        with self._alone:
            self._cache.settle()
            backend, snapshot = self._cache.backend, self._snapshot()
            snapshot.check(self._tokenizer.n_tokens)
            try:
                cells = backend.save() if snapshot.n_live else None
            except CacheError:
                cells = None  # then the tokens are evaluated again
            row = self._lasting_logits()
        # Copies by now: another thread may use the stream, and Ctrl-C may end the writing.
        session.write(Path(path), backend.kind, snapshot, talk, cells, row)
        self._happened("save", snapshot.index, snapshot.n_live, start)

    def restore(
        self,
        snapshot: Snapshot,
        kind: CacheKey,
        cells: memoryview | None,
        policy: SinkPolicy | None = None,
        logits: Logits | None = None,
    ) -> Restored:
        """Go on where another stream stood; see `streamsink.Model.restore`.

        Where its cells do not fit, its visible tokens are evaluated again, as many as there is room
        for: they do not remember what was evicted before.

        Parameters
        ----------
        snapshot : Snapshot
            Where it stood.
        kind : CacheKey
            What its cells depend on.
        cells : memoryview, optional
            The cells.
        policy : SinkPolicy, optional
            Another policy to go on by.
        logits : ndarray of float32, shape (n_vocab,), optional
            What its newest token foresaw, of a model that could not compute it again.

        Raises
        ------
        SessionError
            It was a stream on another model, or cannot have been a stream; nothing has changed.
        UsageError, CapabilityError
            Its pinned prefix leaves no window in ``n_ctx``, or a policy does not fit, likewise.
        DecodeError, CacheError
            The visible tokens could not be evaluated.
        """
        start = time.perf_counter()
        with self._alone:
            mine = self._cache.backend.kind
            policy = policy or snapshot.policy
            policy.check(self.n_ctx)
            if kind.model != mine.model:
                raise SessionError(f"the saved stream is of another model: {kind.path}")
            n_tokens = self._tokenizer.n_tokens
            snapshot.check(n_tokens)
            if logits is not None and logits.shape != (n_tokens,):
                raise SessionError("the saved stream is damaged: its logits are of another model")
            check_window(snapshot.n_keep, self.n_ctx)
            if self._cache.undo:
                self._cache.undo.will_lose(snapshot.n_live)
            self._take_over(snapshot, policy)
            why = self._put_back(snapshot, kind.difference(mine), cells)
            n_evaluated = self._cache.evaluate() if why else 0
            if not why and logits is not None and not self._pending:
                self._cache.put_logits(logits)
            if policy != snapshot.policy:
                self._adopt(policy)
        self._happened("restore", snapshot.index, n_evaluated, start)
        self.restored = Restored(n_evaluated, why, (time.perf_counter() - start) * 1e3)
        return self.restored

    def _put_back(self, snapshot: Snapshot, difference: str, cells: memoryview | None) -> str:
        """Put cells into the cache; why they cannot be, or nothing."""
        if not snapshot.n_live:
            return ""
        if difference:
            return difference
        if cells is None:
            return "the file holds no cells"
        if snapshot.n_live > self.n_ctx:
            return f"there were {snapshot.n_live} of them, and n_ctx is {self.n_ctx}"
        try:
            self._cache.backend.load(cells, self._cache.ledger.last_end)
        except CacheError as error:
            return str(error)
        return ""

    def _snapshot(self) -> Snapshot:
        cache, ledger = self._cache, self._cache.ledger
        return Snapshot(
            self.n_ctx,
            self._policy,
            ledger.n_keep,
            ledger.next_index,
            ledger.pieces,
            tuple(self._pending),
            self._pinned,
            cache.boundaries.indices,
            replace(cache.counters),
        )

    def _take_over(self, snapshot: Snapshot, policy: SinkPolicy) -> None:
        self._cache.adopt(policy, snapshot.n_keep)
        self._cache.take_over(snapshot)
        self._drop_sampler()
        self._policy = snapshot.policy
        self._pending = list(snapshot.pending)
        self._pinned = snapshot.pinned

    def _happened(
        self, kind: Literal["save", "restore"], index: int, n_tokens: int, start: float
    ) -> None:
        if self._on_event:
            ms = (time.perf_counter() - start) * 1e3
            self._on_event(Event(kind, index, n_tokens, ms))

    def logits(self) -> Logits:
        """What the stream foresees: the logits of the next token.

        Returns
        -------
        ndarray of float32, shape (n_vocab,)
            A copy.

        Raises
        ------
        UsageError
            Nothing has been fed.
        """
        with self._alone:
            if self._is_empty:
                raise UsageError("nothing to go on from: feed a prompt first")
            row: Logits = self._ready_logits()[0].copy()
            return row

    @property
    def stats(self) -> Stats:
        """The stream in numbers."""
        with self._still:
            cache, ledger, counters = self._cache, self._cache.ledger, self._cache.counters
            return Stats(
                index=ledger.next_index + len(self._pending),
                sees=tuple((part.start, part.stop) for part in ledger.visible()),
                positions=(ledger.first_pos, ledger.next_pos),
                pinned=ledger.n_pinned,
                window=ledger.n_live - ledger.n_pinned,
                evicted=counters.evicted,
                evictions=counters.evictions,
                reanchors=counters.reanchors,
                shifts=counters.shifts,
                rebases=counters.rebases,
                gap=ledger.gap,
                slack=cache.choice.slack,
                placement=cache.choice.placement,
                why=cache.choice.why,
                feed_rate=self._feeding.rate,
                rate=self._generating.rate,
            )

    def visible(self) -> list[Visible]:
        """What the model can still see, oldest first; what lies between was forgotten.

        A token that was generated but not yet evaluated is evaluated first.
        """
        with self._alone:
            self._advance(())
            ledger = self._cache.ledger
            tokens = list(ledger.tokens())
            n_pinned = ledger.n_pinned
            parts: list[Visible] = []
            at = 0
            for part in ledger.visible():
                for cut, pinned in ((n_pinned - at, True), (len(part), False)):
                    here = part[: max(0, min(cut, len(part)))]
                    part = part[len(here) :]
                    if here:
                        ids = tuple(tokens[at : at + len(here)])
                        parts.append(Visible(here.start, here.stop, pinned, ids, self.text(ids)))
                        at += len(here)
            return parts

    def tokens_between(self, start: int, stop: int) -> list[int]:
        """Ids of the tokens of an index range that the model can still see, oldest first."""
        with self._still:
            ledger = self._cache.ledger
            first, last = (max(0, index - ledger.next_index) for index in (start, stop))
            return [*ledger.between(start, stop), *self._pending[first:last]]

    def visible_tokens(self) -> list[int]:
        """Ids of all tokens that the model can still see, oldest first."""
        with self._still:
            return self._live_tokens()

    def text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, control tokens included."""
        piece = self._tokenizer.token_to_piece
        return b"".join(piece(token, special=True) for token in tokens).decode("utf-8", "replace")

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text, no BOS added."""
        return self._tokenizer.tokenize(text, special=special)

    def tokenize_parts(
        self, parts: Sequence[tuple[str, bool]], *, after_text: bool = False
    ) -> list[int]:
        """Tokens of a text in parts: those of the whole of it, no BOS added.

        Parameters
        ----------
        parts : sequence of (str, bool)
            Texts, and whether ``<|...|>`` in them are control tokens.
        after_text : bool
            Whether it goes on from ordinary text.
        """
        return self._tokenizer.tokenize_parts(parts, after_text=after_text)

    @property
    def n_cells(self) -> int:
        """Cells of the cache: ``n_ctx`` and some to spare."""
        return self._cache.backend.n_cells

    @property
    def bos(self) -> int | None:
        """The token that opens a stream; ``None`` where the model expects none."""
        return self._tokenizer.bos

    def reset(self) -> None:
        """Forget everything and begin anew, under the same policy."""
        with self._alone:
            self._pending.clear()
            self._pinned = Pinned(n_system=self._pinned.n_system)
            self._drop_sampler()
            self._cache.clear()

    def close(self) -> None:
        """Free the context. Twice is fine."""
        with self._still:
            self._closed = True
            self._drop_sampler()
            self._cache.backend.close()

    # -- how it works ---------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this stream is closed: open another with model.stream()")

    def _tell(self) -> None:
        for event in _drained(self._news):
            if self._on_evict and event.kind == "evict":
                self._on_evict(Evicted(event.index, event.tokens))
            if self._on_event:
                self._on_event(event)

    def _adopt(self, policy: SinkPolicy, pinned: Pinned | None = None) -> None:
        if pinned is None:
            pinned = self._pinned
            if policy.n_keep != self._policy.n_keep:  # the user decides anew what is pinned
                pinned = replace(pinned, n_prefix=None, spans=())
        policy.check(self.n_ctx)
        n_keep = pinned.n_keep(policy, self._cache.ledger)
        check_window(n_keep, self.n_ctx)
        self._cache.adopt(policy, n_keep)
        self._policy, self._pinned = policy, pinned

    def _tokens(self, text: Input, special: bool) -> list[int]:
        if isinstance(text, str):
            tokens = self._tokenizer.tokenize(text, special=special)
            bos = self._tokenizer.bos
            if self._is_empty and bos is not None and tokens[:1] != [bos]:
                tokens.insert(0, bos)
            return tokens
        try:
            tokens = [operator.index(token) for token in text]
        except TypeError as error:
            raise UsageError(f"feed takes text or token ids: {error}") from None
        n_tokens = self._tokenizer.n_tokens
        for token in tokens:
            if not 0 <= token < n_tokens:
                raise UsageError(f"token {token} is not in the vocabulary of {n_tokens} tokens")
        return tokens

    def _begin(self, tokens: Sequence[int]) -> None:
        """Settle what the first prompt settles: the size of the pinned prefix."""
        if not self._is_empty or not tokens:
            return
        policy, pinned = self._policy, replace(self._pinned, n_prompt=len(tokens))
        if policy.n_keep == "system" and pinned.n_system is None:
            raise UsageError("--keep system needs a chat: give a number, or -1")
        n_keep = len(tokens) if policy.n_keep == -1 else pinned.n_keep(policy, self._cache.ledger)
        check_window(n_keep, self.n_ctx)
        self._cache.adopt(policy, n_keep)
        self._pinned = pinned

    def _live_tokens(self) -> list[int]:
        return [*self._cache.ledger.tokens(), *self._pending]

    @property
    def _is_empty(self) -> bool:
        ledger = self._cache.ledger
        return not (ledger.next_index or ledger.n_live or self._pending)

    def _advance(self, tokens: Sequence[int]) -> None:
        """Decode the pending tokens and these; what a failure leaves undone stays pending."""
        ledger = self._cache.ledger
        before = ledger.next_index
        try:
            self._cache.advance([*self._pending, *tokens])
        finally:
            del self._pending[: ledger.next_index - before]

    def _ready_logits(self) -> Logits:
        """Logits of the newest token, shape (1, n_vocab); a view, good until the next decode."""
        if not self._pending:
            self._pending += self._cache.make_logits()
        self._advance(())
        return self._cache.backend.logits()[-1:]

    def _generate(self, asked: _Asked, text: TextStream) -> Iterator[Step]:
        sampling, max_tokens, record = asked.sampling, asked.max_tokens, asked.record
        self._cache.backend.check_sampling(sampling)  # it may take seconds, and Ctrl-C acts there
        with self._alone:
            if self._is_empty:
                if self._tokenizer.bos is None:
                    raise UsageError("nothing to go on from: feed a prompt first")
                tokens = [self._tokenizer.bos]
                self._begin(tokens)
                self._advance(tokens)
            recent = self._live_tokens()[-sampling.repeat_last_n :] if sampling.penalizes else []
            sampler = self._cache.backend.sampler(sampling, recent)
            self._drop_sampler()
            self._sampler = sampler
            self._generating = _Meter()
            text.push(self._open_character())
        n = 0
        while max_tokens is None or n < max_tokens:
            step: Step | None = None
            try:
                with self._alone:
                    start = time.perf_counter()
                    if self._sampler is not sampler:
                        raise UsageError(
                            "another generation has begun on this stream: use that one"
                        )
                    n += 1
                    step = self._step(sampler, text, asked, last=n == max_tokens)
                    self._pending.append(step.token)
                    if record is not None:
                        record.append(step)
                    self._generating.add(1, start)
            except BaseException:
                # Ctrl-C or a callback, on the way out.
                if step:
                    self._unsay(step, record)
                raise
            yield step
            if step.finish:
                return

    def _step(self, sampler: Sampler, text: TextStream, asked: _Asked, *, last: bool) -> Step:
        """Choose the next token; it is not yet part of the stream."""
        self._ready_logits()
        index = self._cache.ledger.next_index
        token = self._cache.backend.sample(sampler, index)
        finish: Finish | None = None
        ends = token in asked.ends or self._tokenizer.is_eog(token)
        if ends and not asked.ignore_eos:
            finish = "eos"
        piece = (
            b"" if finish else self._tokenizer.token_to_piece(token, special=token in asked.shows)
        )
        if finish is None and sampler.stuck:
            finish = "grammar"
        if finish is None and last:
            finish = "length"
        # A character that has only begun is left to what may come next.
        fresh = text.push(piece, final=finish is not None, goes_on=finish == "length")
        if text.stopped:
            finish = "stop"
        return Step(token, index, fresh, finish)

    def _open_character(self) -> bytes:
        """Bytes at the end of the stream with which a character has only begun."""
        newest = [*islice(reversed(self._live_tokens()), LONGEST_CHARACTER)]
        pieces = [self._tokenizer.token_to_piece(token, special=True) for token in reversed(newest)]
        return open_bytes(b"".join(pieces))

    def _unsay(self, step: Step, record: list[Step] | None = None) -> None:
        """Take back a token that nobody will see: a stream holds what was yielded."""
        with self._still:
            if self._pending == [step.token] and self._cache.ledger.next_index == step.index:
                self._pending.clear()
                self._cache.boundaries.cut(step.index)
                if record and record[-1] is step:
                    record.pop()

    def _drop_sampler(self) -> None:
        if self._sampler:
            self._sampler.close()
            self._sampler = None


def _whole(index: object) -> int:
    """A place in the stream."""
    try:
        return operator.index(index)  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(f"{index!r} is no place in a stream: those are whole numbers") from None


def _drained(news: deque[Event]) -> Iterator[Event]:
    """What is in a queue, oldest first; another thread may take from it at the same time."""
    while news:
        try:
            yield news.popleft()
        except IndexError:
            return
