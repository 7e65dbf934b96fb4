"""The cache of one stream: the place where cells and ledger change, always both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamsink.core import placement
from streamsink.core.boundaries import Boundaries, Sentences
from streamsink.core.events import Event
from streamsink.core.lanes import Lanes
from streamsink.core.ledger import Evicted, Ledger, Missing, Span
from streamsink.core.policy import WHOLES, SinkPolicy, discard_size, next_chunk
from streamsink.core.snapshot import Counters, Snapshot
from streamsink.engine.context import MAIN, Backend, Logits
from streamsink.engine.scoring import nll
from streamsink.engine.undo import Undo
from streamsink.errors import CacheError, CapabilityError, DecodeError, TornError, UsageError

REBASE_AT = 65_536
"""Position at which a growing stream is brought back to 0. RoPE angles are 32-bit floats: started
here, the scores of SmolLM2-135M in F32 differ from those of a start at 0 by 0.0006 nat a token, at
1,048,576 by 0.01 (``scripts/positions``). With an f16 cache, rounding alone makes 0.06."""

REFUSED = -1
"""llama_decode's answer to a batch that it does not begin (llama.h)."""

LEAST_QUEUE = 4
"""Evictions for which lanes are worth their while: afterwards the cells must be put together."""


class Cache:
    """Takes tokens in, evicting on the way.

    Parameters
    ----------
    backend : Backend
        An engine's context.
    policy : SinkPolicy
        What to keep, what to evict; it has been checked against ``n_ctx``.
    n_ctx : int
        Tokens that a token can attend to, itself and the sink included.
    n_keep : int
        Tokens that the policy pins, as a number.
    rebase_at : int
        Position at which growing positions are brought back to 0.
    report : callable, optional
        Called with every `Event` before its call has ended: it may only take note.
    pause : callable
        Called between two decodes of a long input, when nothing is half done; it may raise.

    Attributes
    ----------
    ledger : Ledger
        Which token sits where.
    choice : placement.Choice
        Placement and slack in force.
    counters : Counters
        How often what has happened.
    boundaries : Boundaries
        Where evictions of whole turns or sentences may end.
    logits_ready : bool
        Whether the backend's last row of logits is that of the newest token.
    undo : Undo or None
        How to go back to where a transaction began, while one is under way.

    Raises
    ------
    CapabilityError
        The model cannot stream, or not by the placement asked for.
    """

    def __init__(
        self,
        backend: Backend,
        policy: SinkPolicy,
        n_ctx: int,
        n_keep: int,
        *,
        rebase_at: int,
        report: Callable[[Event], object] | None,
        pause: Callable[[], object],
    ) -> None:
        self.backend = backend
        self.n_ctx = n_ctx
        self.ledger = Ledger()
        self.counters = Counters()
        self.logits_ready = False
        self.boundaries = Boundaries()
        self.rebase_at = rebase_at
        self.undo: Undo | None = None
        self._sentences = Sentences(backend.tokenizer)
        self._cuts = False
        self._report = report
        self._pause = pause
        self._scattered = False
        self._lanes = Lanes(backend, self.ledger)
        self.adopt(policy, n_keep)

    def adopt(self, policy: SinkPolicy, n_keep: int) -> None:
        """Act by this policy from the next token on; refused, nothing has changed."""
        able = self.backend.capabilities
        self.choice = placement.choose(policy, able, n_keep, self.n_ctx)
        size = discard_size(policy, self.n_ctx, n_keep)
        if not able.takes_back and size >= self.n_ctx - n_keep:
            raise CapabilityError(
                f"an eviction of {size} tokens would empty the window of {self.n_ctx - n_keep}, "
                "and this model's recurrent state cannot give up its newest token: lower --discard "
                "or --keep, or raise --ctx"
            )
        self._policy = policy
        self.ledger.n_keep = n_keep

    def advance(self, tokens: Sequence[int], scores: NDArray[np.float64] | None = None) -> None:
        """Decode tokens, with every eviction that this takes.

        Parameters
        ----------
        tokens : sequence of int
            Any number of them.
        scores : ndarray of float64, shape (len(tokens),), optional
            Receives the negative log-likelihoods of all tokens but the first, in nat.

        Raises
        ------
        DecodeError, CacheError
            The ledger holds the tokens decoded before, and the cache too; call again to go on.
        """
        with self._changing():
            try:
                if len(tokens) == 1 and self._scattered:
                    self._compact()
                self._advance(tokens, scores)
            finally:
                self._lanes.drop()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """What ledger and cache no longer agree on after a failure is evaluated anew."""
        try:
            yield
        except TornError:
            self.ledger.missing = Missing.ALL
            raise
        except DecodeError as error:
            # llama.cpp refuses positions that do not follow the cells that are there.
            ledger = self.ledger
            torn = error.code == REFUSED and ledger.missing is Missing.NOTHING
            if torn and self.backend.end(MAIN) != ledger.last_end:
                ledger.missing = Missing.ALL
            raise

    def _advance(self, tokens: Sequence[int], scores: NDArray[np.float64] | None) -> None:
        ledger, backend = self.ledger, self.backend
        rows: Literal["last", "all"] = "last" if scores is None else "all"
        n_batch = backend.n_batch if scores is None else min(backend.n_batch, backend.n_rows)
        at = 0
        if self.undo:
            self.undo.begins(len(tokens))
        while at < len(tokens):
            if at:
                self._pause_if_possible()
            self.logits_ready = False
            self._settle()
            n_discard = self._n_discard()
            room = self.n_ctx - ledger.n_live
            waiting = len(tokens) - at
            chunk = next_chunk(
                waiting,
                room=room,
                n_window=ledger.n_live - ledger.n_pinned,
                n_discard=n_discard,
                gap=ledger.gap,
                slack=self.choice.slack,
                n_batch=n_batch,
                n_lanes=1 if room > 0 else self._n_lanes(waiting, n_discard),
                n_spare=backend.n_cells - self.n_ctx,
            )
            piece = tokens[at : at + chunk.n_tokens]
            if chunk.n_groups:
                if self.undo:
                    self.undo.will_lose(len(tokens) - at)
                self._evict(n_discard)
            if chunk.n_groups > 1:
                for gone in self._lanes.decode(piece, n_discard, rows):
                    self._count(gone)
                    self.counters.evictions += 1
                self._scattered = True
            else:
                self._lanes.drop()
                backend.decode(piece, ledger.next_pos, MAIN, rows)
                self._note_sentences(piece)
                ledger.append(piece)
            if scores is not None:
                targets = tokens[at + 1 : at + len(piece) + 1]
                scores[at + 1 : at + 1 + len(targets)] = nll(
                    backend.logits()[: len(targets)], targets
                )
            at += len(piece)
            self.logits_ready = True

    def _pause_if_possible(self) -> None:
        """Let signals act where nothing is half done, or where what is done can be undone."""
        if self.undo is None or self.undo.is_possible:
            self._pause()

    def take_back(self, n: int = 1) -> list[int]:
        """Take the newest tokens out of cells and ledger, so that they can be decoded again.

        Parameters
        ----------
        n : int
            How many.

        Returns
        -------
        list of int
            Their ids.

        Raises
        ------
        UsageError
            The window has fewer.
        CacheError
            They cannot be taken back: a recurrent state holds them.
        """
        ledger = self.ledger
        if n > ledger.n_newest:
            raise UsageError(
                f"{n} tokens cannot be taken back: {ledger.n_newest} are in the window"
            )
        with self._changing():
            self._lanes.drop()
            self.logits_ready = False
            if ledger.missing is not Missing.ALL:
                self.backend.remove(MAIN, ledger.next_pos - n, -1)
            taken = [ledger.pop() for _ in range(n)][::-1]
            self.boundaries.cut(ledger.next_index)
            # A small cache of a sliding window has put newer tokens where older ones were.
            spans = [Span(run.pos, run.end) for run in ledger.runs if run.tokens]
            if spans and not self.backend.is_whole(spans):
                ledger.missing = Missing.ALL
        return taken

    def begin_turn(self, index: int) -> None:
        """Note that a turn begins at an index, and forget those that have left the window."""
        self.boundaries.after(self.ledger.window_index)
        self.boundaries.add(index)

    def evict(self, n: int) -> None:
        """Take the oldest tokens out of the window; before the next decode the sink is seen to."""
        with self._changing():
            self._lanes.drop()
            self._repair()
            self._cuts = False
            self._take_out(n)

    def settle(self) -> None:
        """Bring the cells to where the ledger has them, and no others, to be given out.

        Raises
        ------
        DecodeError, CacheError
            What is missing could not be brought back.
        """
        with self._changing():
            self._lanes.drop()
            self._repair()

    def _repair(self) -> None:
        """Bring back what is missing; of all tokens the newest is decoded last."""
        if self.ledger.missing is not Missing.NOTHING:
            anew = self.ledger.missing is Missing.ALL
            self.logits_ready = False
            placement.repair(self.backend, self.ledger, self._pause_if_possible)
            self.logits_ready = anew and self.ledger.n_live > 0

    def make_logits(self) -> list[int]:
        """See to it that the logits of the newest token can be computed.

        Returns
        -------
        list of int
            The newest token, to be decoded again; nothing where its logits are there.

        Raises
        ------
        UsageError
            No token is left.
        DecodeError, CacheError
            What is missing could not be brought back.
        """
        if self.ledger.missing is Missing.ALL:
            self.settle()
        if self.logits_ready:
            return []
        if not self.ledger.n_live:
            raise UsageError("a failed decode left the window empty: feed before going on")
        if self.ledger.n_newest and self.backend.capabilities.takes_back:
            return self.take_back()
        # The newest token is of the head, or in a recurrent state: all is read anew.
        self.ledger.missing = Missing.ALL
        self.settle()
        return []

    def lasting_logits(self) -> Logits | None:
        """The newest token's logits, where they could not be computed again; a copy."""
        again = self.backend.capabilities.takes_back and self.ledger.n_newest > 0
        if again or not self.logits_ready:
            return None
        row: Logits = self.backend.logits()[-1].copy()
        return row

    def put_logits(self, row: Logits) -> None:
        """Take over the newest token's logits, shape (n_vocab,), with cells from elsewhere."""
        self.backend.put_logits(row)
        self.logits_ready = True

    def go_back(self, snapshot: Snapshot, undo: Undo) -> None:
        """Undo what a transaction has done since its beginning.

        Parameters
        ----------
        snapshot : Snapshot
            Where the stream stood then.
        undo : Undo
            What was kept of it. Where that does not suffice, the tokens that were visible then are
            evaluated anew before the stream goes on.
        """
        self.logits_ready = False
        if not undo.has_lost and self.ledger.missing is not Missing.ALL:
            try:
                n = self.ledger.next_index - snapshot.n_tokens
                if n:
                    self.take_back(n)
                self._restore_notes(snapshot)
                return
            except (CacheError, DecodeError):
                pass
        self.take_over(undo.kept or snapshot)
        self.ledger.missing = Missing.ALL
        if undo.cells is not None:
            with suppress(CacheError):
                self.backend.load(undo.cells, self.ledger.last_end)
                self.ledger.missing = Missing.NOTHING
        n = self.ledger.next_index - snapshot.n_tokens
        try:
            if n:
                self.take_back(n)
            self._restore_notes(snapshot)
        except CacheError:
            self.take_over(snapshot)
            self.ledger.missing = Missing.ALL

    def _restore_notes(self, snapshot: Snapshot) -> None:
        self.counters = replace(snapshot.counters)
        self.boundaries = Boundaries(snapshot.boundaries)
        self.ledger.n_keep = snapshot.n_keep

    def splice(self, at: int, n: int, tokens: Sequence[int], *, exact: bool) -> tuple[int, int]:
        """Swap ``n`` of the oldest tokens, after the first ``at``, for others.

        The tokens enter the ledger; `bring_back` evaluates them, right below the window.

        Parameters
        ----------
        at, n : int
            Where they stand, and how many there are; they are pinned.
        tokens : sequence of int
            Those that come; with what else is pinned, fewer than ``n_ctx``.
        exact : bool
            Evaluate the window anew too: its keys and values remember the old prefix.

        Returns
        -------
        int
            Tokens evicted to make room.
        int
            Index of the first token that came.

        Raises
        ------
        DecodeError, CacheError
            Nothing was swapped.
        """
        ledger, backend = self.ledger, self.backend
        self._lanes.drop()
        placement.repair(backend, ledger)
        self.logits_ready = False
        over = max(0, ledger.n_live - n + len(tokens) - self.n_ctx)
        n_keep, ledger.n_keep = ledger.n_keep, max(ledger.n_keep, at + n)
        try:
            self._cuts = False
            if over:
                self._take_out(over)
            if self.undo:
                self.undo.loses()
            index = ledger.splice(at, n, tokens)
        finally:
            ledger.n_keep = n_keep
        able, window = backend.capabilities, ledger.runs[-1]
        lift = max(0, -ledger.head_place())
        beside = able.reanchor.level == "exact" and not (lift and able.rotate.level != "exact")
        if exact or not beside or not window.tokens:
            ledger.missing = Missing.ALL
        else:
            ledger.missing = Missing.HEAD
            if lift:
                span = Span(window.pos, window.end)
                backend.shift(MAIN, span.start, span.stop, lift)
                ledger.move(span, lift)
        return over, index

    def bring_back(self) -> int:
        """Evaluate what `splice` has left out of the cache; return how many tokens.

        Raises
        ------
        DecodeError, CacheError
            It could not be evaluated; whatever comes next tries again.
        """
        start = time.perf_counter()
        ledger = self.ledger
        whole = ledger.missing is Missing.ALL
        n_evaluated = ledger.n_live - (0 if whole else len(ledger.runs[-1]))
        with self._changing():
            self._repair()
        self._moved("repin", n_evaluated, start)
        return n_evaluated

    def take_over(self, snapshot: Snapshot) -> None:
        """Go on from where another stream stood, with cells that are in the backend already."""
        self.ledger = Ledger.of(snapshot.pieces, snapshot.n_keep, snapshot.n_tokens)
        self.counters = replace(snapshot.counters)
        self.boundaries = Boundaries(snapshot.boundaries)
        self._lanes = Lanes(self.backend, self.ledger)
        self.logits_ready = False

    def evaluate(self) -> int:
        """Evaluate the visible tokens, whose cells are not in the backend, and no more than fit.

        Returns
        -------
        int
            How many they are.

        Raises
        ------
        DecodeError, CacheError
            They could not be evaluated; whatever comes next tries again.
        """
        over = self.ledger.n_live - self.n_ctx
        self.ledger.missing = Missing.ALL
        if over > 0:
            for gone in self.ledger.evict(over):
                self._count(gone)
            self.counters.evictions += 1
        self._repair()
        return self.ledger.n_live

    def clear(self) -> None:
        """Forget everything; the policy stays."""
        if self.undo:
            self.undo.loses()
        self.ledger.clear()
        self.boundaries.clear()
        self.counters = Counters()
        self.logits_ready = self._scattered = False
        # Should the cells stay, the next token clears them first.
        self.ledger.missing = Missing.ALL
        self.backend.clear()
        self._lanes.drop()
        self.ledger.missing = Missing.NOTHING

    def _compact(self) -> None:
        """Put scattered cells together, once: a failure is not to come back at every token."""
        self._lanes.drop()
        self._scattered = False
        placement.compact(self.backend, self.ledger)

    def _n_discard(self) -> int:
        """Tokens of the next eviction: a number, or as many as leave with what is whole."""
        ledger = self.ledger
        self._cuts = False
        size = discard_size(self._policy, self.n_ctx, ledger.n_pinned)
        if self._policy.n_discard not in WHOLES:
            return size
        end = self.boundaries.after(ledger.window_index)
        n_window = ledger.n_live - ledger.n_pinned
        n_whole = n_window if end is None else ledger.n_before(end) - ledger.n_pinned
        # A token must stay, for the stream to go on from.
        self._cuts = not 0 < n_whole < n_window
        return size if self._cuts else n_whole

    def _note_sentences(self, tokens: Sequence[int]) -> None:
        if self._policy.n_discard == "sentence":
            for index in self._sentences.ends(tokens, self.ledger.next_index):
                self.boundaries.add(index)

    def _n_lanes(self, waiting: int, n_discard: int) -> int:
        """Lanes worth asking for; the first question costs a probe."""
        if (
            self._policy.n_discard in WHOLES
            or waiting <= LEAST_QUEUE * n_discard
            or not self.ledger.n_pinned
            or self.choice.slack < n_discard
        ):
            return 1
        return self.backend.n_lanes

    def _settle(self) -> None:
        """Before a decode: see to what is missing, to large positions, to a sink far behind."""
        backend, ledger = self.backend, self.ledger
        if ledger.missing is not Missing.NOTHING:
            self._lanes.drop()
            self._repair()
        span = self.n_ctx + self.choice.slack + backend.n_batch
        if ledger.first_pos > 0 and ledger.next_pos > max(self.rebase_at, 2 * span):
            start = time.perf_counter()
            self._lanes.drop()
            placement.rebase(backend, ledger)
            self.counters.rebases += 1
            self._moved("rebase", ledger.n_live, start)
        self._bring_up()

    def _evict(self, n_discard: int) -> None:
        """Take the oldest tokens out of the window, and see to the sink."""
        self._take_out(n_discard)
        self._bring_up()

    def _take_out(self, n: int) -> None:
        """Take the oldest tokens out of the window."""
        if self.undo:
            self.undo.loses()
        for span in self.ledger.oldest(n):
            self.backend.remove(MAIN, span.start, span.stop)
            for gone in self.ledger.evict(span.stop - span.start):
                self._count(gone)
        self.counters.evictions += 1

    def _bring_up(self) -> None:
        """Close the gap where it is too large, or where no window token is left to go on from."""
        backend, ledger = self.backend, self.ledger
        if not ledger.gap or (ledger.gap <= self.choice.slack and ledger.runs[-1].tokens):
            return
        start = time.perf_counter()
        self._lanes.drop()
        if self.choice.placement == "rotate":
            placement.rotate(backend, ledger)
            self.counters.shifts += 1
            self._moved("rotate", len(ledger.runs[-1]), start)
        else:
            placement.reanchor(backend, ledger)
            self.counters.reanchors += 1
            self._moved("reanchor", ledger.n_live - len(ledger.runs[-1]), start)

    def _count(self, gone: Evicted) -> None:
        self.counters.evicted += len(gone.tokens)
        if self._report:
            tokens = gone.tokens
            self._report(Event("evict", gone.index, len(tokens), 0.0, tokens, self._cuts))

    def _moved(
        self, kind: Literal["reanchor", "rotate", "rebase", "repin"], n_tokens: int, start: float
    ) -> None:
        if self._report:
            ms = (time.perf_counter() - start) * 1e3
            self._report(Event(kind, self.ledger.next_index, n_tokens, ms))
