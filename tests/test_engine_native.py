"""In 32-bit floats, streams of an engine foresee what they foresee alone, on every family.

llama.cpp works in another process, where an abort is a test that fails.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import StreamsinkError, UsageError
from streamsink.gguf.layout import LayoutName
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.reference_families import ARCHITECTURES
from tests.zoo import FAMILIES, N_VOCAB

N_CTX = 40
TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-3
"""See `tests.test_zoo`: llama.cpp looks up GELU in a table of half precision."""
LAYOUTS: tuple[LayoutName, ...] = ("auto", "pools", "unified", "separate")
TOKENS = [int(t) for t in np.random.default_rng(2).integers(4, N_VOCAB, 3000)]
STREAMING = [name for name, family in FAMILIES.items() if not family.refusal]

POLICIES = [
    SinkPolicy(4, 1, slack=0),
    SinkPolicy(2, 5, slack=9),
    SinkPolicy(6, "half", slack=0),
    SinkPolicy(4, 1, slack=63),
]


class Compared(NamedTuple):
    """What came of a layout.

    Attributes
    ----------
    n_same : int
        Numbers that were held against those of a stream alone.
    worst : float
        Largest difference.
    texts : bool
        Whether generated texts are the same.
    """

    n_same: int
    worst: float
    texts: bool


Did = Callable[[Stream, int], Any]


def examine(path: Path, layout: LayoutName) -> Compared | str:
    """Do the same on streams of an engine, all at once, and on streams alone."""
    with Model(Weights(path)) as model:
        try:
            # Of a sliding window's cells those alone are brought back that are in sight: after a
            # turn in memory a stream that goes back is evaluated anew.
            n_places = len(POLICIES) if model.traits.n_swa else len(POLICIES) - 1
            engine = model.engine(n_places, N_CTX, "f32", "f32", layout=layout, threads=1, chunk=16)
        except UsageError as error:
            return str(error)
        with engine:
            shared = [engine.stream(policy) for policy in POLICIES]
            alone = [
                model.stream(
                    SinkPolicy(
                        stream.policy.n_keep,
                        stream.policy.n_discard,
                        stream.stats.placement,
                        stream.policy.slack,
                    ),
                    N_CTX,
                    "f32",
                    "f32",
                    threads=1,
                )
                for stream in shared
            ]
            found = np.concatenate(
                [
                    _compared(did, shared, alone)
                    for did in (_fed, _went_back, _aligned, _repinned, _aligned, _fed)
                ]
            )
            texts = _at_once(_said, shared) == [_said(one, at) for at, one in enumerate(alone)]
            forks = [shared[1].fork(), alone[1].fork()]
            for streams, fork in zip((shared, alone), forks, strict=True):
                streams.append(fork)
                streams.pop(0).close()
            found = np.concatenate([found, _compared(_fed, shared, alone)])
        return Compared(found.size, float(found.max()), texts)


def _compared(did: Did, shared: list[Stream], alone: list[Stream]) -> Any:
    """Differences of all that is foreseen."""
    found = _at_once(did, shared)
    wanted = [did(stream, at) for at, stream in enumerate(alone)]
    return np.concatenate([np.abs(a - b).ravel() for a, b in zip(found, wanted, strict=True)])


def _at_once(did: Did, streams: list[Stream]) -> list[Any]:
    found: dict[int, Any] = {}

    def act(at: int) -> None:
        found[at] = did(streams[at], at)

    threads = [threading.Thread(target=act, args=(at,)) for at in range(len(streams))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[at] for at in range(len(streams))]


def _foreseen(stream: Stream) -> Any:
    return stream.logits().astype(np.float64)


def _fed(stream: Stream, at: int) -> Any:
    scores = stream.score(TOKENS[100 * at : 100 * at + 60 + 7 * at])[1:]
    return np.concatenate([scores, _foreseen(stream)])


def _went_back(stream: Stream, at: int) -> Any:
    try:
        stream.rewind(stream.stats.index - 2 - at)
        stream.feed(TOKENS[at : at + 1])
    except StreamsinkError:  # a recurrent state
        stream.feed(TOKENS[at : at + 3])
    return _foreseen(stream)


def _aligned(stream: Stream, at: int) -> Any:
    """Taken out of the midst of the window, a new end fed; of one stream, the prefix swapped."""
    index, seen = stream.stats.index, stream.visible_tokens()
    n_window = stream.stats.window
    history = [0] * (index - n_window - stream.stats.pinned) + seen[-n_window:]
    prefix = seen[: stream.stats.pinned] if at != 1 else TOKENS[700:703]
    cut = len(history) - n_window + 9 + at
    history = [*prefix, *history[: cut - 1], *history[cut:-1], *TOKENS[600 : 603 + at]]
    stream.align(history, n_prefix=len(prefix))
    return _foreseen(stream)


def _repinned(stream: Stream, at: int) -> Any:
    stream.repin(TOKENS[500 + at : 503 + 2 * at])
    for token in TOKENS[:20]:
        stream.feed([token])
    return _foreseen(stream)


def _said(stream: Stream, at: int) -> list[int]:
    greedy = Sampling(temperature=0)
    return [step.token for step in stream.generate(30 + at, sampling=greedy, ignore_eos=True)]


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", STREAMING)
def test_streams_foresee_what_they_do_alone(
    name: str, worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    path = FAMILIES[name].write(tmp_path / "model.gguf")
    half = ARCHITECTURES[FAMILIES[name].draw(0).architecture].activation == "gelu"
    for layout in LAYOUTS:
        found = worker.submit(examine, path, layout).result()
        if isinstance(found, str):
            assert layout in ("pools", "unified"), found
            continue
        assert found.n_same > 300
        assert found.worst < (HALF_TOLERANCE if half else TOLERANCE), layout
        assert found.texts or half, layout
