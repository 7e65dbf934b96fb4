"""The ledger against the simplest thing that could be right: a list of (index, token, pos)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamsink.core.ledger import Ledger
from streamsink.core.tape import Tape


@dataclass(frozen=True)
class Entry:
    index: int
    token: int
    pos: int


class LedgerMachine(RuleBasedStateMachine):
    """Every operation on both; `next_pos` is the only state beside the list."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(n_keep=2)
        self.tape = Tape()
        self.n_keep = 2
        self.live: list[Entry] = []
        self.next_index = 0
        self.next_pos = 0
        self.moved = False  # whether the head has just been set beside the window

    def n_pinned(self) -> int:
        return min(self.n_keep, len(self.live))

    def place(self, positions: list[int]) -> None:
        self.live = [replace(e, pos=p) for e, p in zip(self.live, positions, strict=True)]

    @rule(tokens=st.lists(st.integers(0, 99), max_size=9))
    def append(self, tokens: list[int]) -> None:
        self.tape.write(self.ledger.next_index, tokens)
        self.ledger = self.ledger.append(len(tokens))
        for token in tokens:
            self.live.append(Entry(self.next_index, token, self.next_pos))
            self.next_index += 1
            self.next_pos += 1

    @precondition(lambda self: self.ledger.n_newest)
    @rule()
    def take_the_newest_back_and_enter_it_again(self) -> None:
        self.ledger = self.ledger.truncate(1)
        assert self.ledger.next_index == self.next_index - 1
        self.ledger = self.ledger.append(1)
        if len(self.live) == 1:  # an empty ledger may begin anywhere
            self.next_pos = self.ledger.next_pos
            self.place([self.next_pos - 1])

    @precondition(lambda self: len(self.live) > self.n_pinned())
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        first = self.n_pinned()
        n = data.draw(st.integers(1, len(self.live) - first))
        gone = self.live[first : first + n]
        leaving = self.ledger.leaving(n)
        positions = [pos for part in leaving for pos in range(part.pos, part.end)]
        assert positions == [entry.pos for entry in gone]
        left = [range(part.index, part.stop) for part in leaving]
        self.ledger = self.ledger.evict(n)
        assert [index for part in left for index in part] == [entry.index for entry in gone]
        assert self.tape.read(*left) == [entry.token for entry in gone]
        self.tape.clean(self.ledger.indices)
        del self.live[first : first + n]

    @rule(n_keep=st.integers(0, 12))
    def pin(self, n_keep: int) -> None:
        self.n_keep = n_keep
        self.ledger = self.ledger.keeping(n_keep)

    @rule()
    def rotate(self) -> None:
        moved = {entry.pos: entry.pos for entry in self.live}
        first = self.live[0].pos if self.live else self.ledger.first_pos
        if not self.ledger.next_shift():
            self.ledger = self.ledger.placed(self.ledger.first_pos)
        while shift := self.ledger.next_shift():
            span, delta = shift
            assert delta < 0
            for pos in range(span.start, span.stop):
                assert pos in moved
                moved[pos] = pos + delta
            self.ledger = self.ledger.moved(span, delta)
        self.place([first + at for at in range(len(self.live))])
        assert list(moved.values()) == [entry.pos for entry in self.live]
        self.next_pos = first + len(self.live)

    @precondition(lambda self: self.ledger.segments)
    @rule()
    def reanchor(self) -> None:
        head = self.tape.read(*self.ledger.indices[:-1])
        assert len(head) == self.ledger.n_head
        assert head == [entry.token for entry in self.live[: len(head)]]
        start = self.ledger.head_place
        assert start >= 0
        self.ledger = self.ledger.with_head_at(start)
        window = self.live[len(head) :]
        assert start + len(head) == (window[0].pos if window else self.next_pos)
        self.place([start + at for at in range(len(head))] + [entry.pos for entry in window])

    @rule()
    def rebase(self) -> None:
        delta = -self.ledger.first_pos
        self.ledger = self.ledger.shifted(delta)
        self.place([entry.pos + delta for entry in self.live])
        self.next_pos += delta

    @rule()
    def place_all(self) -> None:
        self.ledger = self.ledger.placed(0)
        self.place(list(range(len(self.live))))
        self.next_pos = len(self.live)

    @invariant()
    def same(self) -> None:
        ledger, live = self.ledger, self.live
        entries = [
            Entry(part.index + at, token, part.pos + at)
            for part in ledger.segments
            for at, token in enumerate(self.tape.read(range(part.index, part.stop)))
        ]
        assert entries == live
        assert self.tape.read(*ledger.indices) == [entry.token for entry in live]
        assert ledger.n_live == len(live)
        assert ledger.n_pinned == self.n_pinned()
        assert (ledger.next_index, ledger.next_pos) == (self.next_index, self.next_pos)
        if live:
            assert ledger.first_pos == live[0].pos
            assert ledger.sink_lag == self.next_pos - live[0].pos - len(live)
        ranges = ledger.visible()
        assert [index for part in ranges for index in part] == [entry.index for entry in live]
        assert all(a.stop < b.start for a, b in pairwise(ranges))
        assert all(part.n for part in ledger.segments[:-1])


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


def test_taking_the_only_window_token_back_keeps_its_place() -> None:
    ledger = Ledger(n_keep=2).append(4).evict(1)
    ledger = ledger.truncate(1)
    assert (ledger.next_index, ledger.next_pos) == (3, 3)
    ledger = ledger.append(1)
    assert ledger.visible() == [range(2), range(3, 4)]
