"""What every call on a stream goes through: one caller at a time, and what is told afterwards."""

from __future__ import annotations

import asyncio
import operator
import time
from collections import deque
from collections.abc import Callable, Iterator, MutableSet, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from streamsink.core.controller import Controller
from streamsink.core.events import Event, Evicted, Restored
from streamsink.core.pinned import Pinned, check_window
from streamsink.core.planner import Planner
from streamsink.core.policy import SinkPolicy
from streamsink.engine.context import Context, Sampler
from streamsink.engine.driver import Driver
from streamsink.engine.sentences import Sentences
from streamsink.engine.task import Alone, MakeRunner, T, Task, call, quick
from streamsink.errors import ClosedError, UsageError, setting
from streamsink.system.closing import Closing
from streamsink.system.interrupt import Door, Exclusive

Input: TypeAlias = str | Sequence[int]

REBASE_AT = 65_536
"""Position at which a growing stream is brought back to 0. RoPE angles are 32-bit floats: started
here, the scores of SmolLM2-135M in F32 differ from those of a start at 0 by 0.0006 nat a token, at
1,048,576 by 0.01 (``scripts/positions``). With an f16 cache, rounding alone makes 0.06."""


@dataclass(slots=True)
class Meter:
    """Tokens, and the seconds that were spent on them."""

    n_tokens: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens a second; 0 before the first."""
        return self.n_tokens / self.seconds if self.seconds else 0.0

    def add(self, n_tokens: int, start: float) -> None:
        """Add tokens that took from ``start`` until now, by `time.perf_counter`."""
        self.n_tokens += n_tokens
        self.seconds += time.perf_counter() - start


class Base(Closing):
    """A stream without its calls; see `streamsink.engine.stream.Stream`."""

    def __init__(
        self,
        context: Context,
        policy: SinkPolicy,
        n_ctx: int,
        *,
        on_evict: Callable[[Evicted], object] | None = None,
        on_event: Callable[[Event], object] | None = None,
        rebase_at: int = REBASE_AT,
        siblings: MutableSet[Any] | None = None,
        runner: MakeRunner = Alone,
    ) -> None:
        policy.check(n_ctx)
        self.n_ctx = n_ctx
        self._siblings = siblings
        self._on_evict = on_evict
        self._on_event = on_event
        self._news: deque[Event] = deque()
        self._context = context
        self._tokenizer = context.tokenizer
        self._door = Door()
        self._alone = Exclusive(self._door, after=self._tell)
        # The same for what changes nothing, and for a stream that is closed already.
        self._still = Exclusive(self._door)
        ends_sentence = Sentences(context.tokenizer).ends_with
        self._controller = Controller(
            Planner(context.capabilities, n_ctx, rebase_at, ends_sentence),
            policy,
            self._news.append if on_evict or on_event else None,
        )
        self._driver = Driver(context, self._controller)
        self._runner = runner(self._driver, self._alone.deliver)
        self._driver.pause = self._runner.pause
        self._feeding = Meter()
        self._generating = Meter()
        self._sampler: Sampler | None = None
        self.restored: Restored | None = None
        """How it came out of a session file, where it did."""
        self._closed = False
        if siblings is not None:
            siblings.add(self)

    def __repr__(self) -> str:
        """How it stands, in one line; from any thread at any time."""
        if self._closed:
            return "<Stream, closed>"
        state = self._controller.state
        ledger = state.ledger
        return (
            f"<Stream: {ledger.n_live:,} of {self.n_ctx:,} tokens: {state.n_pinned:,} pinned + "
            f"{ledger.n_live - state.n_pinned:,} recent, {state.counters.evicted:,} forgotten>"
        )

    @property
    def policy(self) -> SinkPolicy:
        """The policy in force. Assign another at any time; it acts from the next token on.

        A larger ``n_keep`` pins the oldest tokens that are still visible, a smaller one lets the
        sink's last tokens go first.
        """
        return self._controller.state.policy

    @policy.setter
    def policy(self, policy: SinkPolicy) -> None:
        self._set_policy(policy)

    @quick
    def change(self, /, **settings: Any) -> None:
        """Change some settings of the policy: ``stream.change(n_discard=8)``."""
        self._adopt(replace(self.policy, **settings))

    @property
    def n_cells(self) -> int:
        """Cells of the cache: ``n_ctx`` and some to spare."""
        return self._context.n_cells

    @property
    def bos(self) -> int | None:
        """The token that opens a stream; ``None`` where the model expects none."""
        return self._tokenizer.bos

    @call
    def reset(self) -> Task[None]:
        """Forget everything and begin anew, under the same policy."""
        self._drop_sampler()
        yield from self._driver.clear()

    def close(self) -> None:
        """Free the context. Twice is fine."""
        with self._still:
            self._closed = True
            self._runner.leave(self._free)

    def _free(self) -> None:
        self._drop_sampler()
        self._context.close()

    # -- for the calls --------------------------------------------------------------------------

    def _do(self, task: Task[T]) -> T:
        with self._alone:
            return self._runner.run(self._opened_by(task))

    async def _ado(self, task: Task[T]) -> T:
        """`_do` for an event loop. Cancelled, it waits for what is under way, and then says so."""
        try:
            with self._door.taken():
                under_way = asyncio.ensure_future(self._runner.arun(self._opened_by(task)))
                try:
                    return await asyncio.shield(under_way)
                except asyncio.CancelledError:
                    self._runner.cancel()
                    # However often it is cancelled meanwhile.
                    while not under_way.done():
                        with suppress(asyncio.CancelledError):
                            await asyncio.wait([under_way])
                    under_way.exception()  # which nobody will ask for
                    raise
        finally:
            self._tell()

    def _opened_by(self, task: Task[T]) -> Task[T]:
        if self._closed:
            raise ClosedError("this stream is closed: open another with model.stream()")
        if self._controller.in_doubt():  # the call before was cut off
            self._driver.clear_doubt()
        return (yield from task)

    @quick
    def _set_policy(self, policy: SinkPolicy) -> None:
        self._adopt(policy)

    def _tell(self) -> None:
        if not self._news:
            return
        for event in _drained(self._news):
            if self._on_evict and event.kind == "evict":
                self._on_evict(Evicted(event.index, event.tokens))
            if self._on_event:
                self._on_event(event)

    def _adopt(self, policy: SinkPolicy, pinned: Pinned | None = None) -> None:
        controller = self._controller
        if pinned is None:
            pinned = controller.state.pinned
            if policy.n_keep != self.policy.n_keep:  # the user decides anew what is pinned
                pinned = replace(pinned, n_prefix=None, spans=(), held=())
        policy.check(self.n_ctx)
        state = controller.adopted(policy, pinned)
        check_window(state.ledger.n_keep + pinned.n_held, self.n_ctx)
        controller.settle_on(state)

    def _tokens(self, text: Input, special: bool) -> list[int]:
        """Tokens of what a user gives; text that opens the stream gets the model's BOS in front."""
        if isinstance(text, str):
            tokens = self._tokenizer.tokenize(text, special=special)
            return self._opened(tokens) if self._controller.is_empty else tokens
        try:
            tokens = [operator.index(token) for token in text]
        except TypeError as error:
            raise UsageError(f"feed takes text or token ids: {error}") from None
        n_tokens = self._tokenizer.n_tokens
        for token in tokens:
            if not 0 <= token < n_tokens:
                raise UsageError(f"token {token} is not in the vocabulary of {n_tokens} tokens")
        return tokens

    def _opened(self, tokens: list[int]) -> list[int]:
        bos = self._tokenizer.bos
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    def _begin(self, tokens: Sequence[int]) -> None:
        """Settle what the first prompt settles: the size of the pinned prefix."""
        controller = self._controller
        if not controller.is_empty or not tokens:
            return
        pinned = replace(controller.state.pinned, n_prompt=len(tokens))
        if self.policy.n_keep == "system" and pinned.n_system is None:
            raise UsageError(f"{setting('n_keep', 'system')} needs a chat: give a number, or -1")
        state = controller.adopted(self.policy, pinned)
        check_window(state.ledger.n_keep, self.n_ctx)
        controller.settle_on(state)

    def _drop_sampler(self) -> None:
        if self._sampler:
            self._sampler.close()
            self._sampler = None


def place_of(index: object) -> int:
    """A place in the stream.

    Raises
    ------
    UsageError
        It is no whole number.
    """
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
