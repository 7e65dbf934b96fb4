"""Every family of the zoo on real llama.cpp: what it is, what it computes, how it streams.

llama.cpp aborts on a file or a call that it did not expect, so it works in another process here,
where an abort is a test that fails. The reference is computed in this one meanwhile.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from streamsink.core.plan import MAIN, SCRATCH
from streamsink.core.policy import Placement, SinkPolicy
from streamsink.errors import DecodeError, StreamsinkError
from streamsink.gguf.settings import CacheSettings
from streamsink.gguf.traits import Traits
from streamsink.llama.context import NativeContext
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.reference import Floats, Step, nll, schedule
from tests.reference_families import ARCHITECTURES, dense, replay
from tests.zoo import FAMILIES, N_VOCAB, Family

P = ParamSpec("P")
T = TypeVar("T")

N_CTX, N_KEEP = 40, 4
N_DENSE = 100
TOKENS = [int(t) for t in np.random.default_rng(1).integers(4, N_VOCAB, 10 * N_CTX + 1)]
TOLERANCE = 2e-4
"""Of a logit, whose standard deviation is 2, and of a score in nat. llama.cpp computes in float32,
the reference in float64."""
HALF_TOLERANCE = 5e-3
"""Where llama.cpp looks up GELU in a table of half precision: what lies near the middle between two
entries may be rounded to either."""
FAR = 0.5
"""What is wrong is wrong by more than this."""

STREAMING = [name for name, family in FAMILIES.items() if not family.refusal]
REFUSED = [name for name, family in FAMILIES.items() if family.refusal]
GENERATING = [*STREAMING, "gpt2", "mpt-learned", "mamba"]


# -- what is done in the other process ----------------------------------------------------------


class Run(NamedTuple):
    """A way to stream."""

    placement: Placement
    n_discard: int
    slack: int
    force: bool = False


RUNS = [
    Run(placement, n_discard, slack)
    for placement in ("rotate", "reanchor")
    for n_discard, slack in ((1, 0), (16, 0), (1, 63))  # the last evicts in lanes
]


class Streamed(NamedTuple):
    """Scores of `TOKENS` in nat, and the logits after the last of them."""

    scores: Floats
    logits: Floats


@dataclass(frozen=True)
class Outcome:
    """What llama.cpp and streamsink make of a file.

    Attributes
    ----------
    traits
        Of the model.
    dense
        Logits after each of the first `N_DENSE` tokens, and after the same but for the first token;
        (2, `N_DENSE`, n_vocab). None where the model does not generate.
    streams
        What came of each run, or why it was refused.
    usual
        The placement of a stream that says nothing of it, or why there is none.
    """

    traits: Traits
    dense: Floats | None
    streams: dict[Run, Streamed | str]
    usual: str


def examine(name: str, path: Path) -> Outcome:
    """Load a family's file, decode with it, and stream in every way that is allowed."""
    with Model(Weights(path)) as model:
        streams: dict[Run, Streamed | str] = {}
        for run in RUNS:
            streams[run] = _stream(model, run)
            if isinstance(streams[run], str):
                forced = run._replace(force=True)
                streams[forced] = _stream(model, forced)
        logits = _dense(model._weights) if name in GENERATING else None
        return Outcome(model._weights.traits, logits, streams, _usual(model))


def _usual(model: Model) -> str:
    try:
        with model.stream(SinkPolicy(), N_CTX, threads=1) as stream:
            stream.feed(TOKENS)
            return stream.stats.placement
    except StreamsinkError as error:
        return f"{type(error).__name__}: {error}"


def _stream(model: Model, run: Run) -> Streamed | str:
    policy = SinkPolicy(N_KEEP, run.n_discard, run.placement, run.slack, run.force)
    try:
        with model.stream(policy, N_CTX, "f32", "f32", threads=1) as stream:
            scores = stream.score(TOKENS)
            return Streamed(scores, stream.logits().astype(np.float64))
    except StreamsinkError as error:
        return f"{type(error).__name__}: {error}"


def _context(weights: Weights) -> NativeContext:
    settings = CacheSettings("f32", "f32", N_DENSE, n_lanes=1, threads=1)
    return NativeContext(weights, 2 * N_DENSE, settings, swa_full=False)


def _dense(weights: Weights) -> Floats:
    context = _context(weights)
    rows = []
    for first in (TOKENS[0], TOKENS[0] + 1):
        context.clear()
        context.decode([first, *TOKENS[1:N_DENSE]], 0, MAIN, "all")
        rows.append(context.logits().astype(np.float64))
    context.close()
    return np.array(rows)


def small_windows(path: Path) -> Streamed:
    """Stream by re-anchoring in a cache whose sliding layers have 256 cells, the others 512."""
    policy = SinkPolicy(N_KEEP, 100, "reanchor", 0)
    with (
        Model(Weights(path)) as model,
        model.stream(policy, 400, "f32", "f32", n_batch=64, threads=1) as stream,
    ):
        return Streamed(stream.score(2 * TOKENS), stream.logits().astype(np.float64))


def shift(path: Path) -> None:
    """Shift positions, whatever may be thought of that."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core file
    with Model(Weights(path)) as model:
        context = _context(model._weights)
        context.decode(TOKENS[:20], 0, MAIN, "last")
        llama.llama_memory_seq_add(context._memory, MAIN, 8, 20, -4)
        context.close()


def copy_a_sink(path: Path) -> int:
    """Evaluate a sink beside a stream, copy it there, and go on: what the decode returns."""
    with Model(Weights(path)) as model:
        context = _context(model._weights)
        context.decode(TOKENS[:20], 0, MAIN, "last")
        context.remove(MAIN, 0, 12)
        context.decode(TOKENS[:4], 8, SCRATCH, "last")
        context.copy(SCRATCH, MAIN, 8, -1)
        try:
            context.decode(TOKENS[20:21], 20, MAIN, "last")
        except DecodeError as error:
            return error.code
        finally:
            context.close()
        return 0


# -- fixtures -----------------------------------------------------------------------------------


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def apart(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do something in a process of its own; `BrokenProcessPool` where that dies."""
    with _pool() as pool:
        return pool.submit(work, *args, **kwargs).result()


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """No debugger called for a backtrace of an abort (ggml.c: ggml_print_backtrace)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GGML_NO_BACKTRACE", "1")
        yield


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("zoo")
    return {name: family.write(folder / f"{name}.gguf") for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def outcome(paths: dict[str, Path]) -> Iterator[Callable[[str], Outcome]]:
    """What comes of each family, found out one after the other."""
    with _pool() as pool:
        waiting: dict[str, Future[Outcome]] = {
            name: pool.submit(examine, name, path) for name, path in paths.items()
        }

        @cache
        def found(name: str) -> Outcome:
            try:
                return waiting[name].result()
            except BrokenProcessPool:  # by this family, or by one before it
                return apart(examine, name, paths[name])
            except StreamsinkError as error:
                pytest.fail(f"{name}: {error}", pytrace=False)

        yield found


@cache
def expected(name: str, n_discard: int, slack: int) -> Streamed:
    """What a stream of that family has to say."""
    return replayed(name, TOKENS, schedule(len(TOKENS), N_CTX, N_KEEP, n_discard, slack))


def replayed(name: str, tokens: Sequence[int], steps: Iterable[Step]) -> Streamed:
    logits = replay(FAMILIES[name].draw(0), tokens, steps)
    return Streamed(nll(logits, tokens), logits[-1])


def tolerance(name: str) -> float:
    kind = ARCHITECTURES[FAMILIES[name].draw(0).architecture]
    return HALF_TOLERANCE if kind.activation == "gelu" else TOLERANCE


def difference(a: Streamed, b: Streamed) -> float:
    """The largest, in any score and in the last logits."""
    scores = np.nanmax(np.abs(a.scores - b.scores))
    return float(max(scores, np.abs(a.logits - b.logits).max()))


def level(family: Family, run: Run) -> str:
    return family.rotate if run.placement == "rotate" else family.reanchor


def of_level(*levels: str) -> list[tuple[str, Run]]:
    """All runs that are of such a level on their family."""
    return [
        (name, run) for name in STREAMING for run in RUNS if level(FAMILIES[name], run) in levels
    ]


def labels(value: object) -> str:
    return "-".join(map(str, value[:3])) if isinstance(value, Run) else str(value)


# -- the files ----------------------------------------------------------------------------------


def test_files_are_small_and_always_the_same(paths: dict[str, Path], tmp_path: Path) -> None:
    for name, path in paths.items():
        assert path.stat().st_size < 3e6
        again = FAMILIES[name].write(tmp_path / "again.gguf").read_bytes()
        assert again == path.read_bytes()
        assert again != FAMILIES[name].write(tmp_path / "other.gguf", seed=1).read_bytes()


def test_make_zoo_writes_the_same_files(paths: dict[str, Path], tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "scripts" / "make-zoo"
    command = [sys.executable, str(script), str(tmp_path / "zoo"), "llama", "t5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["0.61", "0.95"]
    for name in ("llama", "t5"):
        assert (tmp_path / "zoo" / f"{name}.gguf").read_bytes() == paths[name].read_bytes()
    done = subprocess.run([*command, "yeti"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "yeti" in done.stderr


@pytest.mark.parametrize("name", FAMILIES)
def test_traits(name: str, outcome: Callable[[str], Outcome]) -> None:
    found = asdict(outcome(name).traits)
    facts = asdict(FAMILIES[name].facts)
    assert {key: found[key] for key in facts} == facts


# -- what a model computes ----------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATING)
def test_logits_are_worth_something(name: str, outcome: Callable[[str], Outcome]) -> None:
    logits = outcome(name).dense
    assert logits is not None
    assert np.isfinite(logits).all()
    assert logits[0].std(axis=1).min() > 0.5
    # Each row differs from that before it, and tokens remember the first one.
    assert np.abs(np.diff(logits[0], axis=0)).max(axis=1).min() > FAR
    assert np.abs(logits[0] - logits[1])[:10].max(axis=1).min() > 0.1


@pytest.mark.parametrize("name", STREAMING)
def test_dense_is_llama_cpp(name: str, outcome: Callable[[str], Outcome]) -> None:
    reference = replay(FAMILIES[name].draw(0), TOKENS[:N_DENSE], dense(N_DENSE))
    logits = outcome(name).dense
    assert logits is not None
    largest = np.abs(logits[0] - reference).max()
    print(f"\n{name}: largest difference in a logit {largest:.1e}", end="")
    assert largest < tolerance(name)


# -- how it streams -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "run"), of_level("exact"), ids=labels)
def test_a_stream_is_the_papers(name: str, run: Run, outcome: Callable[[str], Outcome]) -> None:
    reference = expected(name, run.n_discard, run.slack)
    streamed = outcome(name).streams[run]
    assert isinstance(streamed, Streamed), streamed
    largest = difference(streamed, reference)
    print(f"\n{name}, {labels(run)}: largest difference {largest:.1e}", end="")
    assert largest < tolerance(name)


@pytest.mark.parametrize("name", STREAMING)
def test_a_usual_stream_is_exact(name: str, outcome: Callable[[str], Outcome]) -> None:
    family = FAMILIES[name]
    levels = {"rotate": family.rotate, "reanchor": family.reanchor}
    usual = outcome(name).usual
    assert levels.get(usual) == "exact", usual


@pytest.mark.parametrize(("name", "run"), of_level("approximate", "impossible"), ids=labels)
def test_what_is_not_exact_is_refused(
    name: str, run: Run, outcome: Callable[[str], Outcome]
) -> None:
    streams = outcome(name).streams
    assert_one_line(streams[run])
    forced = streams[run._replace(force=True)]
    if level(FAMILIES[name], run) == "impossible":
        assert_one_line(forced)
        return
    assert isinstance(forced, Streamed), forced
    largest = difference(forced, expected(name, run.n_discard, run.slack))
    print(f"\n{name}, {labels(run)}, forced: largest difference {largest:.1e}", end="")
    assert largest > FAR


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_stream_says_why(name: str, outcome: Callable[[str], Outcome]) -> None:
    for said in (*outcome(name).streams.values(), outcome(name).usual):
        assert_one_line(said)
        assert FAMILIES[name].refusal in str(said)


def assert_one_line(said: Streamed | str) -> None:
    assert isinstance(said, str)
    assert said.startswith("CapabilityError: ")
    assert "\n" not in said


def test_the_placements_agree(outcome: Callable[[str], Outcome]) -> None:
    for name in STREAMING:
        if (FAMILIES[name].rotate, FAMILIES[name].reanchor) != ("exact", "exact"):
            continue
        for n_discard, slack in {(run.n_discard, run.slack) for run in RUNS}:
            streams = outcome(name).streams
            rotated = streams[Run("rotate", n_discard, slack)]
            reanchored = streams[Run("reanchor", n_discard, slack)]
            assert isinstance(rotated, Streamed)
            assert isinstance(reanchored, Streamed)
            assert difference(rotated, reanchored) < tolerance(name)


def test_reanchoring_needs_no_more_than_the_windows(paths: dict[str, Path]) -> None:
    reference = replayed("gemma3", 2 * TOKENS, schedule(2 * len(TOKENS), 400, N_KEEP, 100))
    assert difference(apart(small_windows, paths["gemma3"]), reference) < HALF_TOLERANCE


# -- why what is impossible is so ---------------------------------------------------------------


def test_llama_cpp_dies_of_a_shift_of_mrope(paths: dict[str, Path]) -> None:
    apart(shift, paths["qwen2"])
    with pytest.raises(BrokenProcessPool):
        apart(shift, paths["qwen2vl"])


def test_a_sinks_state_replaces_a_hybrids(paths: dict[str, Path]) -> None:
    assert apart(copy_a_sink, paths["qwen3"]) == 0
    assert apart(copy_a_sink, paths["lfm2"]) == -1
