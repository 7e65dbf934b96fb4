"""A stream on a full cache, and the blocks that are timed on it, each beside its baseline.

Measurements are paired as closely as they can be: after each token that the stream takes in, that
token is taken out of the cache and decoded again without the stream, so that a machine that gets
slower or faster meanwhile favours neither. What an eviction costs comes up only every so many
tokens; a sample is therefore a whole cycle of them. Each block leaves the cache as full as it was.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple, ParamSpec, TypeAlias

import numpy as np

from streamsink.core.plan import MAIN, SCRATCH
from streamsink.core.policy import SinkPolicy, discard_size
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.model import Model

P = ParamSpec("P")
Rows: TypeAlias = Literal["last", "all"]

BATCH = 64
"""Tokens of a plain batch: as many as a decode with lanes takes."""
LEAST_BLOCK = 24
"""Fewest tokens of a block."""
N_GENERATE = 96
"""Tokens of a block of generating."""
N_REPIN = 200
"""Tokens of a prefix that is swapped."""


class Sample(NamedTuple):
    """One block: ms of each call, its tokens, ms per token of the baseline, and evictions."""

    ms: list[float]
    n_tokens: int
    baseline_ms: float
    n_evictions: int = 0


class FullStream:
    """A full stream under changing policies.

    Parameters
    ----------
    stream : Stream
        An empty one.
    seed : int
        Seed of the tokens that are fed.
    model : Model
        The stream's model.
    """

    def __init__(self, stream: Stream, seed: int, model: Model) -> None:
        self.stream = stream
        self._model = model
        self._n_ctx = stream.n_ctx
        self._random = random.Random(seed)
        self._sampling = Sampling(seed=seed)
        # The baselines work beneath the stream, on its very cells.
        self._driver = stream._driver
        self._do = stream._do
        self._context = self._driver.context
        self._feed(self._n_ctx + BATCH)  # the first eviction tries out whether lanes work
        self.auto = self.stream.stats.placement

    def decoding(self, policy: SinkPolicy) -> Sample:
        """One cycle of evictions, token by token, and each token again by a plain decode."""
        self._settle(policy)
        n_discard = discard_size(policy, self._n_ctx, self._driver.controller.ledger.n_pinned)
        cycle = n_discard * (self.stream.stats.slack // n_discard + 1)
        n = cycle * -(-LEAST_BLOCK // cycle)
        before = self.stream.stats.evictions
        ms, plain = [], 0.0
        for token in self._tokens(n):
            ms.append(_ms(self._take, [token]))
            plain += _ms(self._again, [token])
        return Sample(ms, n, plain / n, self.stream.stats.evictions - before)

    def feeding_singly(self) -> Sample:
        """Feed a batch of tokens one by one, against plain batches."""
        self._settle(SinkPolicy())
        before = self._prefill("last")
        ms = [_ms(self._take, [token]) for token in self._tokens(BATCH)]
        return Sample(ms, BATCH, (before + self._prefill("last")) / 2, BATCH)

    def feeding(self) -> Sample:
        """Feed one cycle of one-token evictions in a call, between as many plain batches."""
        return self._at_once(self.stream.feed, "last")

    def scoring(self) -> Sample:
        """Score one, against plain batches that return all logits."""
        return self._at_once(self.stream.score, "all")

    def _at_once(self, take: Callable[[Sequence[int]], object], rows: Rows) -> Sample:
        self._settle(SinkPolicy())
        n = max(BATCH, self.stream.stats.slack + 1)
        tokens = self._tokens(n)

        def whole() -> None:
            take(tokens)
            # What the next single token would have to do is counted here.
            self._do(self._driver.compact())
            self._context.logits()

        before = [self._prefill(rows) for _ in range(n // BATCH)]
        ms = _ms(whole)
        after = [self._prefill(rows) for _ in range(n // BATCH)]
        return Sample([ms], n, float(np.mean(before + after)), n)

    def batching(self) -> Sample:
        """A plain batch on a full cache, between two that end in one: what the cells cost."""
        self._settle(SinkPolicy())
        before = self._prefill("last", 0)
        ms = self._prefill("last") * BATCH
        return Sample([ms], BATCH, (before + self._prefill("last", 0)) / 2)

    def generating(self) -> Sample:
        """Generate where there is room, and each token again by a bare loop."""
        self._settle(SinkPolicy(n_discard=2 * N_GENERATE))
        self._feed(1)
        chain = self._context.sampler(self._sampling, ())

        def bare(token: int) -> None:
            self._again([token])
            self._context.sample(chain, 0)

        ms, plain = [], 0.0
        steps = self.stream.generate(N_GENERATE, sampling=self._sampling, ignore_eos=True)
        pending = next(steps).token
        try:
            for _ in range(N_GENERATE - 1):
                start = time.perf_counter()
                step = next(steps)
                ms.append((time.perf_counter() - start) * 1e3)
                plain += _ms(bare, pending)
                pending = step.token
        finally:
            chain.close()
        self.stream.feed(())  # the last token is not decoded yet
        return Sample(ms, N_GENERATE - 1, plain / (N_GENERATE - 1))

    def recomputing(self) -> Sample:
        """What a token costs if the whole window is evaluated for it, against a plain decode."""
        self._settle(SinkPolicy())
        ms = _ms(lambda: self._do(self._driver.evaluate_anew()))
        newest = self.stream.visible_tokens()[-1:]
        plain = [_ms(self._again, newest) for _ in range(8)]
        return Sample([ms], 1, float(np.median(plain)))

    def repinning(self) -> Sample:
        """Swap the pinned prefix for one of 200 tokens, against evaluating as many there bare."""
        self._settle(SinkPolicy())
        tokens = self._tokens(N_REPIN)
        self.stream.repin(tokens)  # room is made for it: it takes the place of one as long
        before = self._evaluate(tokens)
        ms = _ms(self.stream.repin, self._tokens(N_REPIN))
        return Sample([ms], N_REPIN, (before + self._evaluate(tokens)) / 2)

    def forking(self) -> Sample:
        """Fork, against evaluating what is visible."""
        return self._against_anew(lambda: self.stream.fork().close())

    def saving(self) -> Sample:
        """Write the stream to the disk, against evaluating what is visible."""
        with TemporaryDirectory() as folder:
            return self._against_anew(lambda: self.stream.save(Path(folder) / "a"))

    def restoring(self) -> Sample:
        """Open a stream out of a file, against evaluating what is visible."""
        with TemporaryDirectory() as folder:
            self.stream.save(Path(folder) / "a")
            return self._against_anew(lambda: self._model.restore(Path(folder) / "a").close())

    def _against_anew(self, call: Callable[[], object]) -> Sample:
        self._settle(SinkPolicy())
        ms = _ms(call)
        anew = _ms(lambda: self._do(self._driver.evaluate_anew()))
        return Sample([ms], self._n_ctx, anew / self._n_ctx)

    # -- calls ----------------------------------------------------------------------------------

    def _take(self, tokens: list[int]) -> None:
        self.stream.feed(tokens)
        # Graphs run asynchronously where there is a GPU: reading waits for them.
        self._context.logits()

    def _again(self, tokens: list[int]) -> None:
        """Take the newest tokens, which these are, out of the cache and decode them bare."""
        pos = self._driver.controller.ledger.next_pos - len(tokens)
        self._context.remove(MAIN, pos, -1)
        self._decode(tokens, pos, "last")

    def _decode(self, tokens: list[int], pos: int, rows: Rows) -> None:
        self._context.decode(tokens, pos, MAIN, rows)
        self._context.logits()

    def _evaluate(self, tokens: list[int]) -> float:
        """Ms per token of evaluating tokens bare, where a sink is evaluated."""
        start = self._driver.controller.ledger.head_place

        def whole() -> None:
            for at in range(0, len(tokens), self._context.n_batch):
                piece = tokens[at : at + self._context.n_batch]
                self._context.decode(piece, start + at, SCRATCH, "last")

        ms = _ms(whole)
        self._context.remove(SCRATCH, 0, -1)
        return ms / len(tokens)

    def _prefill(self, rows: Rows, n_beyond: int | None = None) -> float:
        """Ms per token of a plain batch, the last ``n_beyond`` tokens of it on a full cache.

        Without, it begins on the fill of a decode with lanes: a full cache, one token evicted.
        """
        context, pos = self._context, self._driver.controller.ledger.next_pos
        if n_beyond is None:
            n_beyond = min(BATCH - 1, context.n_cells - self._n_ctx)
        newest = self.stream.visible_tokens()[-(BATCH - n_beyond) :]
        batch = [*newest, *self._tokens(n_beyond)]
        context.remove(MAIN, pos - len(newest), -1)
        ms = _ms(self._decode, batch, pos - len(newest), rows)
        context.remove(MAIN, pos, -1)
        return ms / BATCH

    # -- between blocks -------------------------------------------------------------------------

    def _tokens(self, n: int) -> list[int]:
        n_tokens = self._context.tokenizer.n_tokens
        return [self._random.randrange(n_tokens) for _ in range(n)]

    def _feed(self, n: int) -> None:
        self.stream.feed(self._tokens(n))

    def _settle(self, policy: SinkPolicy) -> None:
        """Change the policy, let its first evictions pass, and leave the cache full and compact."""
        self.stream.policy = policy
        self._fill()
        for _ in range(2):
            self._feed(1)
        self._fill()
        self._do(self._driver.compact())

    def _fill(self) -> None:
        stats = self.stream.stats
        self._feed(self._n_ctx - stats.pinned - stats.window)


def _ms(call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    start = time.perf_counter()
    call(*args, **kwargs)
    return (time.perf_counter() - start) * 1e3
