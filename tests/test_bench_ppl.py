"""The instrument: perplexities against independent ones, and streams whose likelihood is known."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamsink.bench import ppl, rows, text
from streamsink.bench.ppl import Cell, Reading, grid, measure
from streamsink.bench.scores import read_scores
from streamsink.bench.task import Place
from streamsink.errors import UsageError
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.reference import dense_logits, nll, stream_logits
from tests.tiny_gguf import TinyModel

F32: dict[str, Any] = {"cache_type_k": "f32", "cache_type_v": "f32"}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = random.Random(0)
    lines = [
        " ".join(words.choice(["the", "sea", "whale", "and", "of", "ship"]) for _ in range(9))
        for _ in range(60)
    ]
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def tokens(model: Model, book: str) -> list[int]:
    return [token for piece, _ in text.tokens(model, [book]) for token in piece]


def run(
    model: Model, cell: Cell, reading: Reading, folder: Path
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    result = measure(cell, reading, Place(model, folder, 0, lambda done: None))
    return result, np.array(read_scores(folder / result["nll_file"]))


def assert_close(scores: NDArray[np.float32], reference: NDArray[np.float64]) -> None:
    assert scores.shape == reference.shape
    assert (np.isnan(scores) == np.isnan(reference)).all()
    assert np.nanmax(np.abs(scores - reference)) < 2e-4


def test_without_eviction_it_is_the_dense_one(
    model: Model, tiny_model: TinyModel, book: str, tokens: list[int], tmp_path: Path
) -> None:
    reference = nll(dense_logits(tiny_model, tokens), tokens)
    result, scores = run(model, Cell("dense", 64, **F32), Reading((book,)), tmp_path)
    assert_close(scores, reference)
    assert result["nll"] == pytest.approx(np.nanmean(reference), abs=TOLERANCE)
    assert result["perplexity"] == pytest.approx(math.exp(result["nll"]))
    assert result["n_scored"] == len(tokens) - 1
    assert (result["evictions"], result["stopped"]) == (0, "")


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("policy", "n_keep"), [("sink", 4), ("sink", 1), ("window", 0)])
def test_policies_are_the_papers(
    model: Model,
    tiny_model: TinyModel,
    book: str,
    tokens: list[int],
    tmp_path: Path,
    policy: Any,
    n_keep: int,
    batched: bool,
) -> None:
    cell = Cell(policy, 48, n_keep, 1, slack=16, batched=batched, **F32)
    reading = Reading((book,), 300)
    _, scores = run(model, cell, reading, tmp_path)
    assert_close(
        scores, nll(stream_logits(tiny_model, tokens[:300], 48, n_keep, 1, 16), tokens[:300])
    )


def test_recomputing_evaluates_the_last_window(
    model: Model, tiny_model: TinyModel, book: str, tokens: list[int], tmp_path: Path
) -> None:
    cell = Cell("recompute", 32, every=37, **F32)
    result, scores = run(model, cell, Reading((book,), 200), tmp_path)
    scored = np.flatnonzero(np.isfinite(scores))
    assert scored.tolist() == [37, 74, 111, 148, 185]
    assert result["n_scored"] == 5
    for at in map(int, scored):
        part = tokens[max(0, at - 32) : at + 1]
        assert scores[at] == pytest.approx(nll(dense_logits(tiny_model, part), part)[-1], abs=2e-3)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_size_of_a_piece_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, model: Model, book: str, tmp_path: Path, size: int
) -> None:
    cell, reading = Cell("sink", 48, 4, 1, **F32), Reading((book,), 250)
    whole, _ = run(model, cell, reading, tmp_path)
    monkeypatch.setattr(ppl, "PIECE", size)
    pieces, _ = run(model, cell, reading, tmp_path)
    assert pieces["nll"] == pytest.approx(whole["nll"], abs=1e-5)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(
    tiny_model: TinyModel, book: str, tmp_path: Path
) -> None:
    weights = {**tiny_model.weights, "output.weight": tiny_model.weights["output.weight"] * 0}
    path = replace(tiny_model, weights=weights).write(tmp_path / "blind.gguf")
    with Model(Weights(path)) as blind:
        result, scores = run(blind, Cell("sink", 48, 4, 1, **F32), Reading((book,), 200), tmp_path)
    assert result["perplexity"] == pytest.approx(tiny_model.config.n_vocab, rel=1e-5)
    assert scores[1:] == pytest.approx(math.log(tiny_model.config.n_vocab), rel=1e-6)
    assert result["low"] is None  # 200 tokens are too few to tell


def test_a_ruined_stream_is_infinitely_surprised(tmp_path: Path) -> None:
    broken = TinyModel.create(seed=0)
    broken.weights["output.weight"][7] = np.nan
    path = broken.write(tmp_path / "broken.gguf")
    with Model(Weights(path)) as model:
        result, scores = run(model, Cell("sink", 48), Reading(n_tokens=200), tmp_path)
    assert np.isnan(scores[0])
    assert np.isinf(scores[1:]).all()
    assert result["n_scored"] == 199
    assert result["perplexity"] is None
    (row,) = rows.KINDS["ppl"][1]({"settings": asdict(Cell("sink", 48)), "result": result})
    assert "infinite" in row


def test_dense_stops_where_the_trained_context_ends(tiny_model: TinyModel, tmp_path: Path) -> None:
    config = replace(tiny_model.config, context_length=96)
    path = TinyModel(config, tiny_model.weights).write(tmp_path / "short.gguf")
    with Model(Weights(path)) as short:
        result, scores = run(short, Cell("dense", 64), Reading((), 500), tmp_path)
    assert len(scores) == 96
    assert result["stopped"] == "the trained context of 96 tokens ends"


def test_the_built_in_text_is_whole(model: Model) -> None:
    pieces = list(text.pieces(()))
    whole = "".join(pieces)
    assert len(whole.encode()) == 1_192_883
    assert whole.startswith("CHAPTER 1. Loomings.\n\nCall me Ishmael.")
    assert all(piece.endswith("\n") for piece in pieces[:-1])
    found = [token for piece, _ in text.tokens(model, (), limit=1000) for token in piece]
    assert len(found) == 1000
    assert found[0] == model.bos


def test_a_grid_has_every_combination_once() -> None:
    cells = grid(
        policies=("window", "sink", "dense"),
        n_ctx=(64, 128),
        n_keep=(0, 1, 4),
        n_discard=(1, "half"),
        placement=("auto",),
        slack=(None, 0),
        cache_types=("f16", "q8_0"),
    )
    keys = [cell.key for cell in cells]
    assert len(keys) == len(set(keys))
    # 0, 1 and 4 sinks x contexts x evictions x slacks x types; and dense, which has but types.
    assert len(keys) == 3 * 2 * 2 * 2 * 2 + 2
    assert "4+60_discard-half_auto-slack-0_q8_0-q8_0" in keys


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policy": "sinc"}, "--policy sinc"),
        ({"n_ctx": 1}, "--ctx 1"),
        ({"n_keep": 64}, "n_keep=64"),
        ({"n_discard": 100}, "n_discard=100"),
        ({"cache_type_k": "q9"}, "cache_type_k='q9'"),
        ({"every": 0}, "--every 0"),
    ],
)
def test_cells_that_are_not_possible(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Cell(**{"policy": "sink", "n_ctx": 64, **settings})
