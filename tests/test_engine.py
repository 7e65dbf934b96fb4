"""Streams of an engine do what they would do alone, whatever the others do meanwhile."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsink.core.events import Step
from streamsink.core.policy import SinkPolicy
from streamsink.engine import neighbours, seating, undo
from streamsink.engine.engine import Engine
from streamsink.engine.neighbours import Neighbours
from streamsink.engine.stream import Stream
from streamsink.errors import (
    BusyError,
    CapabilityError,
    ClosedError,
    DecodeError,
    UsageError,
)
from tests.fake_backend import FakeBackend
from tests.fake_hosts import FakeHosts
from tests.test_engine_machine import N_CTX, TEXT, outcome


@pytest.fixture
def hosts() -> FakeHosts:
    return FakeHosts(4, N_CTX)


@pytest.fixture
def engine(hosts: FakeHosts) -> Iterator[Engine]:
    with Engine(hosts, N_CTX) as opened:
        yield opened


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call all of them, each in a thread of its own."""
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda at=at, call=call: found.update({at: call()}))
        for at, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[at] for at in range(len(calls))]


def said(stream: Stream, n: int) -> list[int]:
    return [step.token for step in stream.generate(n, ignore_eos=True)]


def test_streams_share_decodes(engine: Engine, hosts: FakeHosts) -> None:
    hosts.hosts[0].seconds = 0.002  # others come to word meanwhile, as in llama.cpp
    streams = [engine.stream(SinkPolicy(2)) for _ in range(4)]
    for at, stream in enumerate(streams):
        stream.feed(TEXT[at : at + 10])
    at_once(*(lambda stream=stream: said(stream, 200) for stream in streams))
    assert np.mean(hosts.hosts[0].sizes[-100:]) > 3


def test_more_streams_than_places(engine: Engine) -> None:
    streams = [engine.stream(SinkPolicy(2)) for _ in range(9)]
    for at, stream in enumerate(streams):
        stream.feed(TEXT[at : at + 30])
    texts = at_once(*(lambda stream=stream: said(stream, 40) for stream in streams))
    for at, text in enumerate(texts):
        with Stream(FakeBackend(N_CTX), SinkPolicy(2, placement="rotate"), N_CTX) as alone:
            alone.feed(TEXT[at : at + 30])
            assert said(alone, 40) == text


def test_those_who_wait_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long prompts on one place: none has it until its end."""
    monkeypatch.setattr(seating, "TURN", 0.01)
    hosts = FakeHosts(1, N_CTX)
    hosts.hosts[0].seconds = 0.0005
    with Engine(hosts, N_CTX) as engine:
        streams = [engine.stream(SinkPolicy(2)) for _ in range(3)]
        at_once(*(lambda stream=stream: stream.feed(TEXT[:150]) for stream in streams))
        assert sum(stream._context.n_moves for stream in streams) > 6  # type: ignore[attr-defined]
        with Stream(FakeBackend(N_CTX), SinkPolicy(2, placement="rotate"), N_CTX) as alone:
            alone.feed(TEXT[:150])
            for stream in streams:
                assert np.array_equal(stream.logits(), alone.logits())


def test_those_who_generate_sit_side_by_side(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, hosts: FakeHosts
) -> None:
    """llama.cpp computes the tokens of neighbours together; who is idle in between makes way."""
    monkeypatch.setattr(neighbours, "PATIENCE", 3)
    (host,) = hosts.hosts
    host.seconds = 0.001
    streams = [engine.stream(SinkPolicy(2)) for _ in range(4)]
    for stream in streams:
        stream.feed(TEXT[:20])
    outer = [streams[0], streams[3]]
    texts = at_once(*(lambda stream=stream: said(stream, 60) for stream in outer))
    places = sorted(at for at, slot in host.slots.items() for one in outer if slot is one._context)
    assert places[1] - places[0] == 1
    with Stream(FakeBackend(N_CTX), SinkPolicy(2, placement="rotate"), N_CTX) as alone:
        alone.feed(TEXT[:20])
        idle = alone.logits()
        assert texts == [said(alone, 60)] * 2
    for stream in streams[1:3]:
        assert np.array_equal(stream.logits(), idle)


@given(st.sets(st.integers(0, 7)))
def test_the_fewest_move(places: set[int]) -> None:
    watched = Neighbours(8)
    for _ in range(neighbours.PATIENCE):
        assert watched.moves(sorted(places)) == []
    moved = watched.moves(sorted(places))
    after = {*places, *(target for _, target in moved)} - {source for source, _ in moved}
    assert len(after) == len(places)
    assert not after or max(after) - min(after) < len(after) or len(after) == 1
    windows = [set(range(start, start + len(places))) for start in range(9 - len(places))]
    assert len(moved) == min(len(places - window) for window in windows) or len(places) < 2


def test_a_prefix_is_evaluated_once(engine: Engine, hosts: FakeHosts) -> None:
    """Whoever opens a stream with it, and whatever has become of the first."""
    policy = SinkPolicy(-1, 2, slack=0)
    prefix = TEXT[:6]
    alone = Stream(FakeBackend(N_CTX), policy, N_CTX)
    alone.feed(prefix)
    first = engine.stream(policy, prefix=prefix)
    (host,) = hosts.hosts
    first.feed(TEXT[:40])
    first.close()
    n_decodes = len(host.sizes)
    streams = [engine.stream(policy, prefix=prefix), engine.stream(prefix=prefix)]
    assert len(host.sizes) == n_decodes
    assert [stream.stats.pinned for stream in streams] == [6, 6]
    for one in (alone, *streams):
        one.policy = policy
        one.feed(TEXT[40:70])
    for stream in streams:
        assert np.array_equal(stream.logits(), alone.logits())
        assert stream.stats.sees == alone.stats.sees
    other = engine.stream(SinkPolicy(3, 1), prefix=prefix)
    assert (other.stats.pinned, other.stats.window, other.stats.index) == (3, 3, 6)
    assert other.visible_tokens() == prefix
    many = [engine.stream(prefix=prefix) for _ in range(9)]
    assert [stream.visible_tokens() for stream in many] == [prefix] * 9
    for wrong in (TEXT[:N_CTX], 5, ["a"]):
        with pytest.raises(UsageError):
            engine.stream(SinkPolicy(-1), prefix=wrong)  # type: ignore[arg-type]


def test_a_failure_is_the_guilty_streams_alone(engine: Engine, hosts: FakeHosts) -> None:
    """One stream's tokens are refused whenever they come; the others never notice."""
    good, bad = engine.stream(SinkPolicy(2)), engine.stream(SinkPolicy(2))
    slot: Any = bad._context
    plain = slot.decode_here

    def refused(*args: Any) -> None:
        plain(*args)
        raise DecodeError("injected", -3)

    good.feed(TEXT[:10]), bad.feed(TEXT[:10])
    slot.decode_here = refused
    with Stream(FakeBackend(N_CTX), SinkPolicy(2, placement="rotate"), N_CTX) as alone:
        alone.feed(TEXT[:10])
        wanted = said(alone, 300)

    def fails() -> int:
        n = 0
        for _ in range(100):
            with pytest.raises(DecodeError):
                bad.feed(TEXT[:1])
            n += 1
        return n

    text, n = at_once(lambda: said(good, 300), fails)
    assert (text, n) == (wanted, 100)
    assert bad.stats.index == 10
    slot.decode_here = plain
    assert bad.feed(TEXT[:5]) == 5


def test_pools_rotate(engine: Engine) -> None:
    stream = engine.stream(SinkPolicy(2))
    assert (stream.stats.placement, stream.stats.why) == ("rotate", "pools; the test says so")
    with pytest.raises(CapabilityError):
        engine.stream(SinkPolicy(2, placement="reanchor"))


def test_one_call_at_a_time(engine: Engine) -> None:
    stream = engine.stream(SinkPolicy(2))
    stream.feed(TEXT[:3])
    with stream.transaction():
        assert at_once(lambda: outcome(lambda one: one.feed([1]), stream)) == [BusyError]
        stream.feed(TEXT[:3])
    assert stream.stats.index == 6


def test_a_transaction_is_undone(engine: Engine) -> None:
    stream, other = engine.stream(SinkPolicy(2)), engine.stream(SinkPolicy(2))
    stream.feed(TEXT[:40])
    before = stream.visible_tokens()
    with suppress(KeyError), stream.transaction():
        stream.feed(TEXT[:60])
        other.feed(TEXT[:5])
        raise KeyError
    assert stream.visible_tokens() == before
    assert other.stats.index == 5


def test_closing_ends_calls(engine: Engine) -> None:
    stream = engine.stream(SinkPolicy(2))
    stream.feed(TEXT[:3])
    seen: list[Step] = []

    def endless() -> type[BaseException] | None:
        try:
            for step in stream.generate(None, ignore_eos=True):
                seen.append(step)
        except ClosedError as error:
            return type(error)
        return None

    def close() -> None:
        while len(seen) < 50:
            time.sleep(0.001)
        engine.close()

    assert at_once(endless, close)[0] is ClosedError
    with pytest.raises(ClosedError):
        stream.feed([1])
    with pytest.raises(ClosedError):
        engine.stream()
    engine.close()


def test_a_closed_stream_gives_its_place_up(engine: Engine, hosts: FakeHosts) -> None:
    for _ in range(20):
        with engine.stream(SinkPolicy(2)) as stream:
            stream.feed(TEXT[:5])
    assert not hosts.hosts[0].slots


def test_so_does_a_dropped_one(engine: Engine, hosts: FakeHosts) -> None:
    streams = [engine.stream(SinkPolicy(2)) for _ in range(3)]
    for stream in streams:
        said(stream, 3)
    assert len(hosts.hosts[0].slots) == 3
    del stream, streams
    gc.collect()
    last = engine.stream(SinkPolicy(2))  # what was dropped goes first
    last.feed(TEXT[:3])
    assert [*hosts.hosts[0].slots.values()] == [last._context]


def test_a_transaction_that_loses_cells_is_undone_beside_shifts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy of the cells is made though others' keys wait to be rotated, again and again."""
    monkeypatch.setattr(undo, "SHORT", 0)
    with Engine(FakeHosts(2, N_CTX), N_CTX) as engine:
        policy = SinkPolicy(2, 1, "rotate", slack=0)
        stream, other = engine.stream(policy), engine.stream(policy)
        stream.feed(TEXT[:60]), other.feed(TEXT[:60])
        logits, visible = stream.logits(), stream.visible()

        def undone() -> None:
            for _ in range(20):
                with suppress(KeyError), stream.transaction():
                    stream.feed(TEXT[:200])
                    raise KeyError

        at_once(undone, lambda: said(other, 200))
        assert stream.visible() == visible
        assert np.array_equal(stream.logits(), logits)


def test_event_loops(engine: Engine) -> None:
    streams = [engine.stream(SinkPolicy(2)) for _ in range(6)]

    async def one(at: int) -> list[int]:
        await streams[at].afeed(TEXT[at : at + 10])
        return [step.token async for step in streams[at].agenerate(50, ignore_eos=True)]

    async def all_of_them() -> list[list[int]]:
        return list(await asyncio.gather(*map(one, range(6))))

    for at, text in enumerate(asyncio.run(all_of_them())):
        with Stream(FakeBackend(N_CTX), SinkPolicy(2, placement="rotate"), N_CTX) as alone:
            alone.feed(TEXT[at : at + 10])
            assert said(alone, 50) == text


def test_a_cancelled_feed_ends_between_two_decodes(engine: Engine) -> None:
    stream = engine.stream(SinkPolicy(2, 1, slack=0))

    async def cancelled() -> None:
        feeding = asyncio.ensure_future(stream.afeed(TEXT))
        await asyncio.sleep(0.02)
        feeding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await feeding

    asyncio.run(cancelled())
    assert 0 < stream.stats.index < len(TEXT)
    index = stream.stats.index
    assert stream.visible_tokens()[2:] == TEXT[:index][-(N_CTX - 2) :]


def test_who_is_cancelled_lets_others_have_the_place() -> None:
    """It waited for a place that it does not need any more."""
    hosts = FakeHosts(1, N_CTX)
    hosts.hosts[0].seconds = 0.0005
    with Engine(hosts, N_CTX) as engine:
        first, second, third = (engine.stream(SinkPolicy(2)) for _ in range(3))

        async def cancelled() -> None:
            feeding = asyncio.ensure_future(first.afeed(TEXT))
            await asyncio.sleep(0.005)
            waiting = asyncio.ensure_future(second.afeed(TEXT[:5]))
            last = asyncio.ensure_future(third.afeed(TEXT[:5]))
            await asyncio.sleep(0.01)
            waiting.cancel()
            assert await last == 5
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await feeding

        asyncio.run(cancelled())
        assert (first.stats.index, third.stats.index) == (len(TEXT), 5)


def test_a_cancelled_generation_holds_what_was_yielded(engine: Engine) -> None:
    stream = engine.stream(SinkPolicy(2))
    stream.feed(TEXT[:5])
    seen: list[int] = []

    async def listening() -> None:
        async for step in stream.agenerate(None, ignore_eos=True):
            seen.append(step.token)

    async def cancelled() -> None:
        task = asyncio.ensure_future(listening())
        while len(seen) < 30:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert stream.stats.index == 5 + len(seen)
    assert stream.visible_tokens()[-10:] == seen[-10:]


def test_a_slow_listener_holds_up_nobody(engine: Engine) -> None:
    slow, quick = engine.stream(SinkPolicy(2)), engine.stream(SinkPolicy(2))
    slow.feed(TEXT[:5]), quick.feed(TEXT[:5])
    steps = slow.generate(None, ignore_eos=True)
    first = [next(steps) for _ in range(3)]
    assert len(said(quick, 200)) == 200
    assert slow.stats.index == 8
    with Stream(FakeBackend(N_CTX), SinkPolicy(2, placement="rotate"), N_CTX) as alone:
        alone.feed(TEXT[:5])
        assert said(alone, 10) == [step.token for step in [*first, *islice(steps, 7)]]
