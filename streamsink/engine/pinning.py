"""What is pinned beside the policy's own prefix, and swapping it: nothing else is evaluated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from streamsink.core.events import Repinned
from streamsink.core.pinned import Pinned, PinnedSpan, check_window, pinned_ranges
from streamsink.core.policy import LARGEST, SinkPolicy
from streamsink.engine.base import Base, Input, place_of
from streamsink.engine.task import Task, call, quick
from streamsink.errors import UsageError
from streamsink.system import checked


class Pinning(Base):
    """What stays for good."""

    @property
    def pins(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of the spans that are pinned beside the prefix, by `pin`."""
        pinned = self._controller.state.pinned
        return tuple(span.tokens for span in (*pinned.spans, *pinned.held))

    @property
    def pinned_ranges(self) -> tuple[tuple[int, int], ...]:
        """Index ranges of what stays for good, half-open: of the prefix, and of what `pin` keeps.

        A prefix that was swapped was never part of the stream and has none.
        """
        with self._still:
            controller = self._controller
            return pinned_ranges(controller.ledger.pinned(), controller.state.pinned)

    @quick
    def pin_system(self, n_tokens: int) -> None:
        """Tell how many tokens the system block has: what ``n_keep="system"`` pins."""
        n_tokens = checked.whole("n_tokens", n_tokens, 0, LARGEST, "a number of tokens")
        pinned = replace(self._controller.state.pinned, n_system=n_tokens)
        if self.policy.n_keep == "system" and not (pinned.spans or pinned.held):
            pinned = replace(pinned, n_prefix=None)
        self._adopt(self.policy, pinned)

    @call
    def repin(self, text: Input, *, special: bool = False, exact: bool = False) -> Task[Repinned]:
        """Swap the pinned prefix for another, shorter or longer; window and pinned spans stay.

        The new prefix is evaluated once, right below the window, and ``n_keep`` becomes its length.
        Keys and values of the window still remember the old prefix. Tokens of the new one have
        indices below 0, for they were never part of the stream.

        Parameters
        ----------
        text : str or sequence of int
            Text gets the model's BOS in front; tokens are taken as they are.
        special : bool, default False
            Read ``<|...|>`` in the text as control tokens.
        exact : bool, default False
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
        tokens = self._tokens(text, special)
        if isinstance(text, str):
            tokens = self._opened(tokens)
        n = len(tokens)
        pinned = replace(self._controller.state.pinned, n_prefix=n, n_system=n)
        policy = self.policy
        if policy.n_keep != "system":
            policy = replace(policy, n_keep=n)
        return (yield from self._splice(0, self._n_prefix, tokens, policy, pinned, exact=exact))

    @call
    def swap_system(
        self, text: Input, block: tuple[int, int], *, exact: bool = False
    ) -> Task[Repinned]:
        """Swap the system block for another; what else is pinned stays, and so does the policy.

        Under a policy that pins fewer tokens than the new block has, the rest of it leaves like the
        tokens of a window; but where something is pinned behind it by `pin`, all of it stays.

        Parameters
        ----------
        text : str or sequence of int
            The new block, as for `repin`.
        block : (int, int)
            Index range of the old block, half-open.
        exact : bool, default False
            As for `repin`.

        Raises
        ------
        UsageError, DecodeError, CacheError
            As for `repin`.
        """
        tokens = self._tokens(text, special=True)
        policy, pinned = self.policy, self._controller.state.pinned
        ledger = self._controller.ledger
        n_tokens = ledger.n_leading(*block)
        n_prefix: int | None = None
        if pinned.spans or pinned.held or policy.n_keep == -1:
            n_tokens = min(n_tokens, self._n_prefix)
            n_prefix = self._n_prefix - n_tokens + len(tokens)
            self._check_splice(n_tokens, tokens)
            # What of the block stands in the window, behind what is pinned.
            rest = sum(map(len, ledger.unpinned(*block)))
            if rest:
                yield from self._driver.evict(rest)
        pinned = replace(pinned, n_prefix=n_prefix, n_system=len(tokens))
        return (yield from self._splice(0, n_tokens, tokens, policy, pinned, exact=exact))

    @call
    def pin(self, start: int, stop: int, *, in_place: bool = False) -> Task[Repinned]:
        """Pin a span for good, beside the prefix: facts that must not be forgotten.

        The span is evaluated once more, as the end of the pinned prefix, and stays in the window
        too until it leaves there. In place, it stays where it is in the window, and when all before
        it has left it is the end of the pinned prefix: it is read once, and never evaluated again.
        The policy stays as it is; another ``n_keep`` releases the span.

        Parameters
        ----------
        start, stop : int
            Index range, half-open; of it is pinned what the model can still see and is not pinned
            already.
        in_place : bool, default False
            Leave it where it is. What is in several parts, for some of it is pinned already, is
            evaluated once more all the same.

        Raises
        ------
        UsageError
            Nothing of it can be seen any more, or it leaves no window; nothing has changed.
        DecodeError, CacheError
            As for `repin`.
        """
        start, stop = place_of(start), place_of(stop)
        controller = self._controller
        if stop > controller.ledger.next_index > start - controller.state.n_pending:
            yield from self._driver.advance()
        ledger, pinned = controller.ledger, controller.state.pinned
        parts = [part for part in ledger.unpinned(start, stop) if part.start >= 0]
        if not parts:
            raise UsageError(f"nothing of {start} to {stop} is in the window: there is no more")
        span = PinnedSpan(
            tuple((part.start, part.stop) for part in parts), tuple(controller.ids(*parts))
        )
        in_window = parts[0].start >= ledger.segments[-1].index
        if in_place and len(parts) == 1 and in_window:
            return self._hold(span)
        pinned = replace(pinned, n_prefix=self._n_prefix, spans=(*pinned.spans, span))
        return (yield from self._splice(ledger.n_pinned, 0, span.tokens, self.policy, pinned))

    def _hold(self, span: PinnedSpan) -> Repinned:
        """Pin a span where it stands in the window."""
        start = time.perf_counter()
        controller, policy = self._controller, self.policy
        pinned = controller.state.pinned
        ((first, last),) = span.ranges
        if any(one.ranges[0][0] < last and first < one.ranges[0][1] for one in pinned.held):
            raise UsageError(f"of {first} to {last} some is pinned already")
        n_keep = controller.ledger.n_pinned + pinned.n_held + len(span.tokens)
        check_window(n_keep, self.n_ctx)
        controller.adopted(policy, pinned, n_keep)  # which the model has to allow
        pinned = replace(pinned, n_prefix=self._n_prefix, held=(*pinned.held, span))
        controller.settle_on(controller.adopted(policy, pinned))
        ms = (time.perf_counter() - start) * 1e3
        return Repinned(n_keep, 0, 0, ms, first)

    @call
    def unpin(self) -> Task[Repinned]:
        """Release the span that was pinned last.

        Raises
        ------
        UsageError
            There is none.
        DecodeError, CacheError
            As for `repin`.
        """
        controller = self._controller
        pinned = controller.state.pinned
        if pinned.held:
            pinned = replace(pinned, held=pinned.held[:-1])
            controller.settle_on(controller.state.but(pinned=pinned))
            return Repinned(controller.ledger.n_pinned + pinned.n_held, 0, 0, 0.0)
        if not pinned.spans:
            raise UsageError("nothing is pinned beside the prefix")
        *spans, last = pinned.spans
        n = len(last.tokens)
        at = self._controller.ledger.n_pinned - n
        pinned = replace(pinned, spans=tuple(spans))
        return (yield from self._splice(at, n, (), self.policy, pinned))

    @property
    def _n_prefix(self) -> int:
        """Pinned tokens without the spans beside them."""
        return self._controller.ledger.n_pinned - self._controller.state.pinned.n_spans

    def _splice(
        self,
        at: int,
        n: int,
        tokens: Sequence[int],
        policy: SinkPolicy,
        pinned: Pinned,
        *,
        exact: bool = False,
    ) -> Task[Repinned]:
        """Swap ``n`` of the oldest tokens, after the first ``at``, for others."""
        start = time.perf_counter()
        policy.check(self.n_ctx)
        self._check_splice(n, tokens)
        yield from self._driver.advance()
        under = self._controller.adopted(policy, pinned)
        swapped = yield from self._driver.splice(at, n, tokens, under, exact=exact)
        ms = (time.perf_counter() - start) * 1e3
        n_pinned = self._controller.ledger.n_pinned
        return Repinned(n_pinned, swapped.n_evaluated, swapped.n_evicted, ms, swapped.first)

    def _check_splice(self, n: int, tokens: Sequence[int]) -> None:
        """Refuse to swap ``n`` of the oldest tokens for others where that cannot be."""
        if self._controller.is_empty:
            raise UsageError("an empty stream has no prefix to swap: feed it first")
        n_pinned = max(0, self._controller.ledger.n_pinned - n) + len(tokens)
        check_window(n_pinned + self._controller.state.pinned.n_held, self.n_ctx)
