"""Asking a stream for a fact, and what of it the question sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamsink.bench.facts import Fact
from streamsink.core.plan import MAIN, SCRATCH
from streamsink.core.policy import discard_size
from streamsink.engine.scoring import nll
from streamsink.engine.stream import Stream


@dataclass(frozen=True, slots=True)
class Sight:
    """What a question sees.

    Attributes
    ----------
    n_pinned : int
        Pinned tokens, the first of the stream.
    oldest : int
        Index of the oldest token of the window.
    index : int
        Index of the first token that has not been fed: the question would stand there.
    n_forgotten : int
        Tokens of the window that the question has driven out.
    """

    n_pinned: int
    oldest: int
    index: int
    n_forgotten: int

    def holds(self, span: range) -> bool:
        """Whether all tokens of these indices are seen."""
        return span.stop <= self.n_pinned or span.start >= self.oldest

    def misses(self, span: range) -> bool:
        """Whether none of them is."""
        return self.n_pinned <= span.start and span.stop <= self.oldest


def sight(stream: Stream, n_tokens: int) -> Sight:
    """What the last of ``n_tokens`` would see of a stream that took them in now."""
    stats = stream.stats
    step = discard_size(stream.policy, stream.n_ctx, stats.pinned)
    n_over = stats.pinned + stats.window + n_tokens - stream.n_ctx
    n_forgotten = max(0, -(-n_over // step) * step)
    return Sight(stats.pinned, stats.index - stats.window + n_forgotten, stats.index, n_forgotten)


def foresee(stream: Stream, fact: Fact, seen: Sight) -> NDArray[np.float64]:
    """Ask in a branch of the stream; the stream itself stays as it is.

    What the question drives out is out of the branch before its first token: fed token by token,
    its first tokens would see a few more of the oldest ones, its last token, which answers, none.

    Returns
    -------
    ndarray of float64, shape (n_choices,)
        Negative log-likelihood of each choice, in nat.
    """
    context, controller = stream._context, stream._controller
    ledger = controller.ledger
    # The logits will be those of the question; whoever wants the stream's has to ask anew.
    controller.settle_on(controller.state.but(has_logits=False))
    context.copy(MAIN, SCRATCH, 0, -1)
    try:
        for part in ledger.leaving(seen.n_forgotten):
            context.remove(SCRATCH, part.pos, part.end)
        context.decode(fact.question, ledger.next_pos, SCRATCH, "last")
        row = context.logits()[-1]
        return nll(np.broadcast_to(row, (len(fact.choices), len(row))), fact.choices)
    finally:
        context.remove(SCRATCH, 0, -1)


def edge(fact: Fact, seen: Sight) -> int:
    """The distance at which a fact would just not be wholly visible any more."""
    return seen.index - seen.oldest - len(fact.statement) + 1
