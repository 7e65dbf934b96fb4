"""A stream elsewhere: forked beside itself, saved to a file, restored from one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from streamsink import session
from streamsink.core.events import Event, Evicted, Restored
from streamsink.core.pinned import check_window
from streamsink.core.policy import SinkPolicy
from streamsink.core.snapshot import CacheKey, Snapshot
from streamsink.engine.base import Base
from streamsink.engine.context import Logits
from streamsink.engine.task import AskPlace, Task, call, quick
from streamsink.errors import CacheError, SessionError
from streamsink.session.conversation import Conversation

S = TypeVar("S", bound="Saving")


@dataclass(frozen=True, slots=True)
class Capture:
    """A stream at one moment; nothing in it changes any more.

    Attributes
    ----------
    cache_key : CacheKey
        What the cells depend on.
    stream : Snapshot
        Where it stood.
    conversation : Conversation or None
        The conversation on it.
    cells : memoryview or None
        A copy of its cells, if one could be had.
    logits : ndarray of float32, shape (n_vocab,), or None
        What its newest token foresaw, of a model that could not compute it again.
    """

    cache_key: CacheKey
    stream: Snapshot
    conversation: Conversation | None
    cells: memoryview | None
    logits: Logits | None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a session file; see `Saving.save`.

        Raises
        ------
        SessionError
            The file cannot be written.
        """
        session.write(
            Path(path), self.cache_key, self.stream, self.conversation, self.cells, self.logits
        )


class Saving(Base):
    """Streams that begin where another one stands."""

    @call
    def fork(
        self: S,
        *,
        on_evict: Callable[[Evicted], object] | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> Task[S]:
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
        yield from self._driver.settle()
        context = self._context.fork()
        try:
            other = type(self)(
                context,
                self.policy,
                self.n_ctx,
                on_evict=on_evict,
                on_event=on_event,
                rebase_at=self._controller.rebase_at,
                siblings=self._siblings,
                runner=self._runner.joined_by(context),
            )
            other._controller.resume(self._controller.snapshot(), with_cells=True)
            row = self._driver.lasting_logits()
            if row is not None:
                other._driver.put_logits(row)
        except BaseException:
            context.close()
            raise
        return other

    def save(
        self, path: str | os.PathLike[str], *, conversation: Conversation | None = None
    ) -> None:
        """Write the stream to a file, for `streamsink.Model.restore`.

        The file is whole at every moment: the old one, until the new one is on the disk.

        Parameters
        ----------
        path : path
            The file; whoever can read it can read the conversation, so it is its owner's alone.
        conversation : Conversation, optional
            The conversation that goes with the stream; see `streamsink.Chat.save`.

        Raises
        ------
        SessionError
            The file cannot be written.
        DecodeError, CacheError
            What is missing in the cache could not be brought back.
        """
        start = time.perf_counter()
        captured = self.capture(conversation=conversation)
        # A copy by now: another thread may use the stream, and Ctrl-C may end the writing.
        captured.write(path)
        stream = captured.stream
        self._happened("save", stream.index, stream.n_live, start)

    @call
    def capture(self, *, conversation: Conversation | None = None) -> Task[Capture]:
        """Where the stream stands, with a copy of its cells: to be written while it goes on.

        Parameters
        ----------
        conversation : Conversation, optional
            As for `save`.

        Raises
        ------
        DecodeError, CacheError
            As for `save`.
        """
        yield from self._driver.settle()
        snapshot = self._controller.snapshot()
        snapshot.check(self._tokenizer.n_tokens)
        try:
            cells = self._context.save() if snapshot.n_live else None
        except CacheError:
            cells = None  # then the tokens are evaluated again
        row = self._driver.lasting_logits()
        return Capture(self._context.cache_key, snapshot, conversation, cells, row)

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
        n_evaluated, why = self._restore(snapshot, kind, cells, policy, logits)
        self._happened("restore", snapshot.index, n_evaluated, start)
        self.restored = Restored(n_evaluated, why, (time.perf_counter() - start) * 1e3)
        return self.restored

    @call
    def _restore(
        self,
        snapshot: Snapshot,
        kind: CacheKey,
        cells: memoryview | None,
        policy: SinkPolicy | None,
        logits: Logits | None,
    ) -> Task[tuple[int, str]]:
        """Go on there; how many tokens had to be evaluated, and why."""
        controller, driver = self._controller, self._driver
        mine = self._context.cache_key
        policy = policy or snapshot.policy
        policy.check(self.n_ctx)
        if kind.model != mine.model:
            raise SessionError(f"the saved stream is of another model: {kind.path}")
        n_tokens = self._tokenizer.n_tokens
        snapshot.check(n_tokens)
        if logits is not None and logits.shape != (n_tokens,):
            raise SessionError("the saved stream is damaged: its logits are of another model")
        check_window(snapshot.n_keep + snapshot.pinned.n_held, self.n_ctx)
        if driver.undo:
            driver.undo.will_lose(snapshot.n_live)
        controller.resume(snapshot, with_cells=False, policy=policy)
        self._drop_sampler()
        yield AskPlace(self._context)
        why = self._put_back(snapshot, kind.difference(mine), cells)
        if not why:
            controller.resume(snapshot, with_cells=True, policy=policy)
        n_evaluated = (yield from driver.evaluate()) if why else 0
        if not why and logits is not None and not snapshot.pending:
            driver.put_logits(logits)
        if policy != snapshot.policy:
            self._adopt(policy)
        return n_evaluated, why

    @quick
    def _begin_as(self, captured: Capture) -> None:
        """Stand where another stream of the same engine has begun, under the own policy."""
        snapshot, policy = captured.stream, self.policy
        slot: Any = self._context
        if captured.cells is not None:
            slot.put(captured.cells, snapshot.ledger.last_end)
        self._controller.resume(snapshot, with_cells=captured.cells is not None, policy=policy)
        self._adopt(policy, snapshot.pinned)
        if captured.logits is not None:
            self._driver.put_logits(captured.logits)

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
            self._context.load(cells, snapshot.ledger.last_end)
        except CacheError as error:
            return str(error)
        return ""

    def _happened(
        self, kind: Literal["save", "restore"], index: int, n_tokens: int, start: float
    ) -> None:
        if self._on_event:
            ms = (time.perf_counter() - start) * 1e3
            self._on_event(Event(kind, index, n_tokens, ms))
