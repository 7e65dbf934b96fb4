"""Whatever is done to a stream, it can be saved, and comes back as it was.

Every public operation in any order, under any policy; after each the stream is saved by the road
that a user takes, read back, and held against itself.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamsink import session
from streamsink.core import matching
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine import undo
from streamsink.engine.stream import Stream
from streamsink.errors import CapabilityError, DecodeError, UsageError
from tests.fake_backend import FakeBackend

N_CTX = 24
FILE = Path(tempfile.mkdtemp()) / "machine.session"
GREEDY = Sampling(temperature=0)

policies = st.builds(
    SinkPolicy,
    n_keep=st.sampled_from([-1, 0, 1, 4, 9, "system"]),
    n_discard=st.sampled_from([1, 3, "half", "turn", "sentence"]),
    placement=st.sampled_from(["rotate", "reanchor"]),
    slack=st.sampled_from([0, 3, 30]),
)
texts = st.text("ab. \n", min_size=1, max_size=30)
places = st.integers(-30, 80)


class PublicMachine(RuleBasedStateMachine):
    """All public operations on one stream."""

    @initialize(policy=policies, n_lanes=st.sampled_from([1, 8]))
    def open(self, policy: SinkPolicy, n_lanes: int) -> None:
        self.n_lanes = n_lanes
        self.stream = self.opened(policy)
        self.stream.pin_system(3)

    def opened(self, policy: SinkPolicy) -> Stream:
        backend = FakeBackend(N_CTX + self.n_lanes - 1, self.n_lanes, 8)
        return Stream(backend, policy, N_CTX, rebase_at=90)

    def attempt(self, operation: Any, *arguments: Any, **more: Any) -> bool:
        """What cannot be is refused, and changes nothing; whether it could be."""
        before = self.state()
        try:
            operation(*arguments, **more)
        except (UsageError, CapabilityError):
            assert self.state() == before
            return False
        return True

    def state(self) -> tuple[Any, ...]:
        stream = self.stream
        # Not which of the tokens wait to be evaluated.
        return stream.stats.index, stream.visible_tokens(), stream.pins, stream.policy

    @rule(text=texts)
    def feed(self, text: str) -> None:
        self.attempt(self.stream.feed, text)

    @rule(text=texts)
    def score(self, text: str) -> None:
        self.attempt(self.stream.score, text)

    @rule(n=st.integers(0, 9), taken=st.integers(0, 9))
    def generate(self, n: int, taken: int) -> None:
        def some() -> None:
            steps = self.stream.generate(n, sampling=GREEDY, ignore_eos=True)
            for _ in zip(range(taken), steps, strict=False):
                pass

        self.attempt(some)

    @rule(index=places)
    def rewind(self, index: int) -> None:
        self.attempt(self.stream.rewind, index)

    @rule(back=st.integers(0, 3))
    def step_back(self, back: int) -> None:
        self.attempt(self.stream.rewind, self.stream.stats.index - back)

    @rule()
    def begin_turn(self) -> None:
        self.stream.begin_turn()

    @rule(start=places, n=st.integers(0, 12))
    def pin(self, start: int, n: int) -> None:
        self.stream.feed(())
        self.attempt(self.stream.pin, start, start + n)

    @rule(n=st.integers(1, 6))
    def pin_newest(self, n: int) -> None:
        self.stream.feed(())  # a token that waits is evaluated first, and another may leave for it
        index = self.stream.stats.index
        self.attempt(self.stream.pin, index - n, index)

    @rule()
    def unpin(self) -> None:
        self.attempt(self.stream.unpin)

    @rule(text=texts, exact=st.booleans())
    def repin(self, text: str, exact: bool) -> None:
        self.attempt(self.stream.repin, text, exact=exact)

    @rule(text=st.text("xyz", max_size=9), stop=st.integers(0, 12))
    def swap_system(self, text: str, stop: int) -> None:
        first = self.stream.stats.sees[:1]
        start = first[0][0] if first else 0
        self.attempt(self.stream.swap_system, list(text.encode()), (start, start + stop))

    @rule(
        cuts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=2),
        tail=st.text("abz", max_size=12),
        exact=st.booleans(),
        whole=st.booleans(),
        n_prefix=st.none() | st.integers(0, 9),
    )
    def align(
        self,
        cuts: list[tuple[int, int]],
        tail: str,
        exact: bool,
        whole: bool,
        n_prefix: int | None,
    ) -> None:
        """What is seen of an edited history is its beginning, as much as is pinned, and its end."""
        stats, seen = self.stream.stats, self.stream.visible_tokens()
        n_forgotten = max(0, stats.index - len(seen)) if whole else 0
        history = seen[: stats.pinned] + [122] * n_forgotten + seen[stats.pinned :]
        for start, n in cuts:
            del history[-1 - start : len(history) - 1 - start + n]
        history += list(tail.encode())
        with patch.object(matching, "LEAST", 3):
            if not self.attempt(self.stream.align, history, exact=exact, n_prefix=n_prefix):
                return
        stats, seen = self.stream.stats, self.stream.visible_tokens()
        assert stats.index == len(history)
        if stats.window:
            assert seen[-stats.window :] == history[-stats.window :]
        assert len(seen) == stats.pinned + stats.window <= N_CTX

    @rule(policy=policies)
    def change(self, policy: SinkPolicy) -> None:
        self.attempt(setattr, self.stream, "policy", policy)

    @rule(n_keep=st.sampled_from([-1, 0, 2, 6, "system"]))
    def keep(self, n_keep: Any) -> None:
        self.attempt(self.stream.change, n_keep=n_keep)

    @rule(n=st.integers(0, 9))
    def pin_system(self, n: int) -> None:
        self.attempt(self.stream.pin_system, n)

    @rule(text=texts, fails=st.booleans(), then=st.sampled_from(["feed", "pin", "reset", "repin"]))
    def transact(self, text: str, fails: bool, then: str) -> None:
        """All of it, or nothing."""
        foreseen = self.foreseen()
        before = self.state(), self.stream.stats.evicted
        acts: dict[str, Any] = {
            "feed": lambda: self.stream.feed(text[::-1]),
            "pin": lambda: self.stream.pin(self.stream.stats.index - 2, self.stream.stats.index),
            "reset": self.stream.reset,
            "repin": lambda: self.stream.repin("yz"),
        }
        try:
            # However short it is, the cells are copied.
            with patch.object(undo, "SHORT", -1.0), self.stream.transaction():
                self.stream.feed(text)
                acts[then]()
                if fails:
                    raise DecodeError("injected", -3)
        except (DecodeError, UsageError):
            assert (self.state(), self.stream.stats.evicted) == before
            if then == "feed" and foreseen is not None:  # before the others no cells are copied
                assert (self.foreseen() == foreseen).all()

    def foreseen(self) -> Any:
        try:
            return self.stream.logits()
        except UsageError:
            return None

    @precondition(lambda self: self.stream.stats.index > 60)
    @rule()
    def reset(self) -> None:
        self.stream.reset()

    @rule()
    def fork(self) -> None:
        self.same(self.stream.fork())

    @invariant()
    def comes_back(self) -> None:
        if not hasattr(self, "stream"):
            return
        self.stream.save(FILE)
        with session.SessionFile(FILE) as file:
            saved, cells, logits = file.session, file.cells(), file.logits()
        other = self.opened(SinkPolicy(0))
        other.restore(saved.stream, saved.kind, cells, logits=logits)
        self.same(other)

    def same(self, other: Stream) -> None:
        stream = self.stream
        assert replace(other.stats, feed_rate=0, rate=0, why="") == replace(
            stream.stats, feed_rate=0, rate=0, why=""
        )
        assert other.visible_tokens() == stream.visible_tokens()
        assert (other.policy, other.pins) == (stream.policy, stream.pins)
        assert other.pinned_ranges == stream.pinned_ranges
        if (
            stream.visible_tokens()
            and not stream._controller.state.n_pending
            and stream.stats.window
        ):
            assert np.array_equal(other.logits(), stream.fork().logits())
        other.close()

    @invariant()
    def pinned_tokens_are_there(self) -> None:
        if not hasattr(self, "stream"):
            return
        stats = self.stream.stats
        head = self.stream.visible_tokens()[: stats.pinned]
        spans = [token for span in self.stream.pins for token in span]
        assert not spans or head[-len(spans) :] == spans
        assert stats.pinned < N_CTX


PublicMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestPublicMachine = PublicMachine.TestCase
