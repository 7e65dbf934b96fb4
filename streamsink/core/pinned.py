"""What is pinned on one stream: a policy's ``n_keep`` as a number, and what stands beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from streamsink.core.ledger import Ledger
from streamsink.core.policy import SinkPolicy
from streamsink.errors import UsageError, setting


@dataclass(frozen=True, slots=True)
class PinnedSpan:
    """A part of the stream that is pinned beside the prefix.

    Attributes
    ----------
    ranges : tuple of (int, int)
        Index ranges of the stream that it repeats, half-open, in order.
    tokens : tuple of int
        Their tokens.
    """

    ranges: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pinned:
    """What ``n_keep`` comes to on a stream.

    Attributes
    ----------
    n_prompt : int
        Tokens of the first prompt: what -1 pins.
    n_system : int or None
        Tokens of the system block: what ``"system"`` pins; ``None`` where there is no chat.
    n_prefix : int or None
        Tokens of a prefix that was swapped; ``None`` where the policy says how many are pinned.
    spans : tuple of PinnedSpan
        What is pinned beside the prefix, right behind it.
    held : tuple of PinnedSpan
        What is pinned where it stands in the window, each one range: it joins the spans when all
        before it has left. Then it stands right behind what is pinned, and nothing is evaluated.
    """

    n_prompt: int = 0
    n_system: int | None = None
    n_prefix: int | None = None
    spans: tuple[PinnedSpan, ...] = ()
    held: tuple[PinnedSpan, ...] = ()

    @property
    def n_held(self) -> int:
        """Tokens that are pinned in the window."""
        return sum(len(span.tokens) for span in self.held)

    @property
    def oldest_held(self) -> PinnedSpan | None:
        """Which of what is held comes to the front of the window first."""
        return min(self.held, key=lambda span: span.ranges, default=None)

    def joined(self) -> Pinned:
        """It when the oldest of what is held has joined the spans."""
        span = self.oldest_held
        assert span
        held = tuple(one for one in self.held if one is not span)
        return replace(self, spans=(*self.spans, span), held=held)

    def until(self, index: int) -> Pinned:
        """It without what is held and has not come before an index."""
        held = tuple(span for span in self.held if span.ranges[-1][1] <= index)
        return self if len(held) == len(self.held) else replace(self, held=held)

    @property
    def n_spans(self) -> int:
        """Tokens of all spans."""
        return sum(len(span.tokens) for span in self.spans)

    def n_keep(self, policy: SinkPolicy, ledger: Ledger) -> int:
        """How many tokens of a stream are pinned under a policy.

        Raises
        ------
        UsageError
            A system block is to be pinned, and nobody said which.
        """
        return self._n_prefix(policy, ledger) + self.n_spans

    def _n_prefix(self, policy: SinkPolicy, ledger: Ledger) -> int:
        if self.n_prefix is not None:
            return self.n_prefix
        if policy.n_keep == "system":
            if self.n_system is not None:
                return self.n_system
            if ledger.next_index:
                raise UsageError(
                    f"{setting('n_keep', 'system')} needs a chat: give a number, or -1"
                )
            return 0
        if policy.n_keep == -1:
            still_to_come = max(0, self.n_prompt - ledger.next_index)
            return ledger.n_before(self.n_prompt) + still_to_come - self.n_spans
        return policy.n_keep


def pinned_ranges(prefix: Iterable[range], pinned: Pinned) -> tuple[tuple[int, int], ...]:
    """Index ranges of the stream that stay for good: of the prefix, and of what spans repeat."""
    own = ((part.start, part.stop) for part in prefix)
    beside = (*pinned.spans, *pinned.held)
    return (*own, *(one for span in beside for one in span.ranges))


def check_window(n_keep: int, n_ctx: int) -> None:
    """Refuse to pin all there is.

    Raises
    ------
    UsageError
        No window is left.
    """
    if n_keep >= n_ctx:
        raise UsageError(
            f"a pinned prefix of {n_keep} tokens leaves no window in {setting('n_ctx', n_ctx)}: "
            f"raise that above {n_keep}, or pin less ({setting('n_keep')}, a shorter prompt)"
        )
