"""The stream on the fake backend, under any sequence of operations, against a plain list.

The fake's values are exact and remember everything, so nothing here is approximate: after every
operation the stream must hold the values, and foresee by the logits, that the list holds.
"""

# A state machine goes on after a refusal, so it looks at the message itself.
# ruff: noqa: PT017

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamsink.core import moves
from streamsink.core.events import Event, Evicted
from streamsink.core.plan import MAIN
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.scoring import nll
from streamsink.engine.stream import Stream
from streamsink.errors import DecodeError, UsageError
from tests.fake_backend import BOS, EOS, FakeBackend, logits_of, value_of

N_CTX = 12


@dataclass
class Live:
    """A token that can be seen."""

    index: int
    token: int
    pos: int
    value: int


class PlainStream:
    """What a stream has to be, a token at a time on a list."""

    def __init__(self) -> None:
        self.live: list[Live] = []
        self.window = 0  # where in the list the window begins
        self.next_index = 0
        self.next_pos = 0
        self.evicted: list[tuple[int, int]] = []

    def take(self, token: int, policy: SinkPolicy, n_keep: int) -> None:
        """Take a token in, evicting where there is no room."""
        self.bring_up(policy)
        if len(self.live) == N_CTX:
            pinned = min(n_keep, len(self.live))
            n_discard = policy.n_discard if isinstance(policy.n_discard, int) else 0
            self.evict(max(1, min(n_discard or (N_CTX - pinned) // 2, N_CTX - pinned)), pinned)
            self.bring_up(policy)
        seen = [(self.next_pos - one.pos, one.value) for one in self.live]
        self.live.append(Live(self.next_index, token, self.next_pos, value_of(token, seen)))
        self.next_index += 1
        self.next_pos += 1

    def take_again(self, policy: SinkPolicy) -> None:
        """Take the newest token in a second time, seeing what is left by now."""
        if self.window >= len(self.live):  # it was written before what has left: all is read anew
            for at, one in enumerate(self.live):
                one.pos = at
                one.value = value_of(one.token, [(at - o.pos, o.value) for o in self.live[:at]])
            self.next_pos = len(self.live)
            return
        self.bring_up(policy)
        if self.window < len(self.live):
            newest = self.live.pop()
            self.next_index -= 1
            self.next_pos -= 1
            self.take(newest.token, policy, 0)

    def evict(self, n: int, pinned: int) -> None:
        """Take the oldest tokens that are not pinned out."""
        self.evicted += [(one.index, one.token) for one in self.live[pinned : pinned + n]]
        del self.live[pinned : pinned + n]
        # The window is what has no gap in it; an emptied one begins with the next token.
        self.window = max(pinned, len(self.live) - 1)
        while (
            self.window > pinned
            and self.live[self.window - 1].index == self.live[self.window].index - 1
        ):
            self.window -= 1

    def bring_up(self, policy: SinkPolicy) -> None:
        """Close the gap where it is larger than the slack, or the window is empty."""
        if not self.live:
            return
        gap = self.next_pos - self.live[0].pos - len(self.live)
        if gap == 0 or (gap <= (policy.slack or 0) and self.window < len(self.live)):
            return
        if policy.placement == "rotate":
            first = self.live[0].pos
            for at, one in enumerate(self.live):
                one.pos = first + at
            self.next_pos = first + len(self.live)
            return
        start = self.next_pos - len(self.live)
        head = self.live[: self.window]
        for at, one in enumerate(head):
            one.pos = start + at
            one.value = value_of(one.token, [(one.pos - o.pos, o.value) for o in head[:at]])


def fits(policy: SinkPolicy) -> bool:
    """Whether the context has room for it."""
    try:
        policy.check(N_CTX)
    except UsageError:
        return False
    return True


policies: st.SearchStrategy[SinkPolicy] = st.builds(
    SinkPolicy,
    n_keep=st.sampled_from([0, 1, 2, 4, 7, 11]),
    n_discard=st.sampled_from([1, 1, 2, 3, "half"]),
    placement=st.sampled_from(["rotate", "reanchor"]),
    slack=st.sampled_from([0, 1, 5, 30]),
).filter(fits)
texts = st.lists(st.integers(0, 255), max_size=40)


class StreamMachine(RuleBasedStateMachine):
    """Every operation on both."""

    @initialize(policy=policies, n_lanes=st.sampled_from([1, 2, 8]), n_batch=st.integers(4, 16))
    def open(self, policy: SinkPolicy, n_lanes: int, n_batch: int) -> None:
        self.backend = FakeBackend(N_CTX + n_lanes - 1, n_lanes, n_batch)
        self.events: list[Event] = []
        self.gone: list[Evicted] = []
        self.stream = Stream(
            self.backend,
            policy,
            N_CTX,
            on_evict=self.gone.append,
            on_event=self.events.append,
            rebase_at=80,
        )
        self.policy = policy
        self.plain = PlainStream()
        self.failed = False  # whether the latest decode failed: its logits are nobody's

    def n_keep(self) -> int:
        assert isinstance(self.policy.n_keep, int)
        return self.policy.n_keep

    def follow(self, tokens: Sequence[int]) -> None:
        """Let the list take what the stream took of these, whatever happened on the way."""
        for token in tokens[: self.stream.stats.index - self.plain.next_index]:
            self.plain.take(token, self.policy, self.n_keep())
        # A decode that failed after an eviction leaves room for the token that is still to come.
        more = self.stream.stats.evicted - len(self.plain.evicted)
        if more:
            self.plain.bring_up(self.policy)
            self.plain.evict(more, min(self.n_keep(), len(self.plain.live)))
            self.plain.bring_up(self.policy)

    def recover(self) -> None:
        """Whoever asks for logits after a failure gets those of the newest token, taken again."""
        if self.failed:
            self.plain.take_again(self.policy)
            self.failed = False

    def attempt(self, operation: Any, tokens: Sequence[int]) -> None:
        """Do something that may meet a failing decode, and follow it."""
        try:
            operation(tokens)
        except DecodeError:
            assert self.backend.fail_at
            self.failed = True
        else:
            assert self.stream.stats.index == self.plain.next_index + len(tokens)
            self.failed &= not tokens
        self.backend.fail_at = set()
        self.follow(tokens)

    @rule(tokens=texts, fail=st.one_of(st.none(), st.integers(0, 12)))
    def feed(self, tokens: list[int], fail: int | None) -> None:
        if fail is not None:
            self.backend.fail_at = {self.backend.n_decodes + fail}
        self.attempt(self.stream.feed, tokens)

    @rule(tokens=texts)
    def score(self, tokens: list[int]) -> None:
        try:
            scores = self.stream.score(tokens)
        except UsageError as error:
            assert "window empty" in str(error)
            return
        assert scores.shape == (len(tokens),)
        if tokens:
            self.recover()
        for at, token in enumerate(tokens):
            if self.plain.live:
                row = logits_of(self.plain.live[-1].value)
                assert np.isclose(scores[at], nll(row[None], [token])[0])
            else:
                assert np.isnan(scores[at])
            self.plain.take(token, self.policy, self.n_keep())

    @rule(n=st.integers(0, 20), fail=st.one_of(st.none(), st.integers(0, 20)))
    def generate(self, n: int, fail: int | None) -> None:
        if fail is not None:
            self.backend.fail_at = {self.backend.n_decodes + fail}
        steps = []
        try:
            for step in self.stream.generate(n, sampling=Sampling(temperature=0), ignore_eos=True):
                steps.append(step)
        except DecodeError:
            assert self.backend.fail_at
            self.backend.fail_at = set()
            if not steps and self.plain.live:
                self.look()
        except UsageError as error:
            assert "window empty" in str(error)
            self.backend.fail_at = set()
            return
        else:
            assert len(steps) == n
            self.backend.fail_at = set()
        if steps:
            self.recover()
        said = [step.token for step in steps]
        if self.plain.next_index == 0 and self.stream.stats.index > len(said):
            said = [BOS, *said]
        assert [step.index for step in steps] == list(
            range(self.stream.stats.index - len(steps), self.stream.stats.index)
        )
        self.stream.feed(())  # the newest token is not in the cache yet
        self.follow(said)

    @rule(policy=policies)
    def change(self, policy: SinkPolicy) -> None:
        self.stream.policy = self.policy = policy

    @rule()
    def reset(self) -> None:
        self.stream.reset()
        self.plain = PlainStream()
        self.failed = False
        self.gone.clear()

    @precondition(lambda self: self.plain.live)
    @rule()
    def look(self) -> None:
        try:
            row = self.stream.logits()
        except UsageError as error:
            assert "window empty" in str(error)
            return
        self.recover()
        assert (row == logits_of(self.plain.live[-1].value)).all()

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "plain"):
            return
        stats, plain = self.stream.stats, self.plain
        assert stats.index == plain.next_index
        assert self.stream.visible_tokens() == [one.token for one in plain.live]
        assert [index for start, stop in stats.sees for index in range(start, stop)] == [
            one.index for one in plain.live
        ]
        assert [
            (record.index + at, token)
            for record in self.gone
            for at, token in enumerate(record.tokens)
        ] == plain.evicted
        if self.stream._controller.ledger.missing.value != "nothing":
            return
        cells = sorted(self.backend._of(MAIN), key=lambda cell: cell.pos)
        assert len(cells) == len(self.backend.cells), "something is left in another sequence"
        assert [cell.value for cell in cells] == [one.value for one in plain.live]
        if cells:
            # The same distances; where they begin is the stream's own affair.
            shift = cells[0].pos - plain.live[0].pos
            assert [cell.pos - shift for cell in cells] == [one.pos for one in plain.live]
            assert cells[0].pos >= 0
            assert stats.positions[1] <= 80 + N_CTX + 40


StreamMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestStreamMachine = StreamMachine.TestCase


def test_the_machine_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that forgets to move its sink is found out."""
    machine = StreamMachine()
    machine.open(SinkPolicy(2, 1, "reanchor", 0), 1, 8)
    monkeypatch.setattr(moves, "close_gap", lambda state: None)
    try:
        machine.feed(list(range(40)), None)
        machine.same()
    except AssertionError:
        return
    raise AssertionError("it went unnoticed")


def test_the_end_of_text_is_a_token_of_the_stream() -> None:
    backend = FakeBackend(N_CTX)
    with Stream(backend, SinkPolicy(2), N_CTX) as stream:
        stream.feed("ab")
        backend.sample = lambda sampler, index: EOS  # type: ignore[method-assign]
        (step,) = stream.generate(5)
        assert (step.token, step.finish, step.text) == (EOS, "eos", "")
        assert stream.visible_tokens() == [BOS, *b"ab", EOS]
