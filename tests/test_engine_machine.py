"""Rounds of calls on all streams of an engine at once, followed by streams alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from streamsink.core.policy import SinkPolicy
from streamsink.engine import neighbours
from streamsink.engine.engine import Engine
from streamsink.engine.stream import Stream
from streamsink.errors import (
    DecodeError,
    StreamsinkError,
)
from tests.fake_backend import FakeBackend
from tests.fake_hosts import FakeHosts

N_CTX = 24
TEXT = [(7 * at) % 250 for at in range(4000)]


@dataclass
class Pair:
    """A stream in the engine, and one alone that does the same."""

    shared: Stream
    alone: Stream
    n_fed: int = 0

    def text(self, n: int) -> list[int]:
        self.n_fed += n
        return TEXT[self.n_fed : self.n_fed + n]


Did = Callable[[Stream], Any]


def outcome(did: Did, stream: Stream) -> Any:
    """What a call has come to, an error included."""
    try:
        return did(stream)
    except StreamsinkError as error:
        return type(error)


def generated(n: int, n_taken: int) -> Did:
    def did(stream: Stream) -> list[tuple[object, ...]]:
        steps: list[tuple[object, ...]] = [
            (step.token, step.index, step.text, step.finish)
            for step in islice(stream.generate(n, ignore_eos=True), n_taken)
        ]
        stream.visible()  # in an engine the last one may have been decoded already
        return steps

    return did


class EngineMachine(RuleBasedStateMachine):
    """Rounds in which every stream is called at once, each by a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patience, neighbours.PATIENCE = neighbours.PATIENCE, 2

    @initialize(
        n_streams=st.integers(2, 8),
        n_places=st.integers(1, 8),
        n_lanes=st.sampled_from([1, 8]),
        in_pools=st.booleans(),
        data=st.data(),
    )
    def open(
        self, n_streams: int, n_places: int, n_lanes: int, in_pools: bool, data: st.DataObject
    ) -> None:
        self.hosts = FakeHosts(n_places, N_CTX, n_lanes=n_lanes, in_pools=in_pools)
        self.engine = Engine(self.hosts, N_CTX, chunk=5)
        placements = ["rotate"] if in_pools else ["rotate", "reanchor"]
        self.pairs: list[Pair] = []
        for _ in range(n_streams):
            policy = SinkPolicy(
                data.draw(st.integers(0, 6)),
                data.draw(st.sampled_from([1, 2, 5, "half"])),
                data.draw(st.sampled_from(placements)),
                slack=data.draw(st.integers(0, 20)),
            )
            backend = FakeBackend(N_CTX + n_lanes - 1, n_lanes, 16, self.hosts.capabilities)
            alone = Stream(backend, policy, N_CTX)
            self.pairs.append(Pair(self.engine.stream(policy), alone))

    @rule(data=st.data())
    def round(self, data: st.DataObject) -> None:
        """Each stream does something of its own; some decodes fail."""
        calls = [(pair, self.drawn(pair, data)) for pair in self.pairs]
        for host in self.hosts.hosts:
            at = len(host.sizes)
            host.fail_at = {at + n for n in data.draw(st.sets(st.integers(0, 9), max_size=1))}
        found: dict[int, Any] = {}

        def act(number: int, did: Did, stream: Stream) -> None:
            found[number] = outcome(did, stream)

        threads = [
            threading.Thread(target=act, args=(number, did, pair.shared))
            for number, (pair, did) in enumerate(calls)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        for host in self.hosts.hosts:
            host.fail_at = set()
        for number, (pair, did) in enumerate(calls):
            wanted = outcome(did, pair.alone)
            if found[number] is DecodeError:
                self.hurt(pair)
            else:
                assert found[number] == wanted

    def hurt(self, pair: Pair) -> None:
        """A decode failed that the stream had to itself: it holds what was decoded before."""
        pair.shared.reset()
        pair.alone.reset()
        pair.alone.policy = pair.shared.policy

    def drawn(self, pair: Pair, data: st.DataObject) -> Did:
        kind = data.draw(
            st.sampled_from(
                [
                    "feed",
                    "feed",
                    "generate",
                    "generate",
                    "rest",
                    "repin",
                    "rewind",
                    "policy",
                    "evict",
                ]
            )
        )
        n = data.draw(st.integers(1, 40 if kind == "feed" else 6))
        if kind == "feed":
            text = pair.text(n)
            return lambda stream: stream.feed(text)
        if kind == "generate":
            return generated(n + 2, data.draw(st.integers(1, n + 2)))
        if kind == "repin":
            text = pair.text(n)
            return lambda stream: stream.repin(text).n_tokens if stream.visible() else None
        if kind == "rewind":
            return lambda stream: stream.rewind(stream.stats.index - n)
        if kind == "policy":
            discard = data.draw(st.sampled_from([1, 3]))
            return lambda stream: stream.change(n_discard=discard)
        if kind == "score":
            text = pair.text(n)
            return lambda stream: stream.score(text).tolist()[1:]
        return lambda stream: None

    @rule(number=st.integers(0, 7))
    def fork(self, number: int) -> None:
        if len(self.pairs) < 8 and number < len(self.pairs):
            pair = self.pairs[number]
            pair.shared.visible(), pair.alone.visible()
            self.pairs.append(Pair(pair.shared.fork(), pair.alone.fork(), pair.n_fed))

    @rule(number=st.integers(0, 7))
    def close(self, number: int) -> None:
        if 2 < len(self.pairs) > number:
            pair = self.pairs.pop(number)
            pair.shared.close()
            pair.alone.close()

    @rule()
    def same(self) -> None:
        for pair in self.pairs:
            assert pair.shared.visible() == pair.alone.visible()
            shared, alone = pair.shared.stats, pair.alone.stats
            assert (shared.index, shared.positions, shared.evicted, shared.gap) == (
                alone.index,
                alone.positions,
                alone.evicted,
                alone.gap,
            )
            logits = outcome(Stream.logits, pair.shared), outcome(Stream.logits, pair.alone)
            assert np.array_equal(*logits)

    def teardown(self) -> None:
        neighbours.PATIENCE = self.patience
        if hasattr(self, "engine"):
            self.same()
            self.engine.close()


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)
