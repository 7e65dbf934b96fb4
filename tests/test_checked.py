"""Options of the wrong type or out of range are refused at once, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.text import TextStream
from streamsink.errors import UsageError
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.weights import Weights
from streamsink.model import Model

HUGE = 10**5000
"""Python refuses to print it."""
NO_NUMBERS: list[Any] = ["7", b"7", True, [1], None, 1j, object(), math.nan, HUGE, -HUGE]
NO_WHOLES = [*NO_NUMBERS, 1.5, 40.0, np.float32(2), np.True_, math.inf]

REALS = (
    *("temperature", "top_p", "min_p"),
    *("repeat_penalty", "frequency_penalty", "presence_penalty"),
)
WHOLES: list[tuple[Callable[..., object], str]] = [
    (Sampling, "top_k"),
    (Sampling, "repeat_last_n"),
    (Sampling, "seed"),
    (SinkPolicy, "n_keep"),
    (SinkPolicy, "n_discard"),
    (SinkPolicy, "slack"),
    (CacheSettings, "n_batch"),
    (CacheSettings, "n_lanes"),
    (CacheSettings, "threads"),
    (CacheSettings, "threads_batch"),
]
MAY_BE_NONE = ("seed", "slack", "threads", "threads_batch")


@pytest.mark.parametrize(("make", "field"), WHOLES)
def test_whole_numbers(make: Callable[..., Any], field: str) -> None:
    for value in NO_WHOLES:
        if value is None and field in MAY_BE_NONE:
            continue
        with pytest.raises(UsageError, match=f"{field}=") as caught:
            make(**{field: value})
        assert len(str(caught.value)) < 250
    for number in (np.int64(3), np.uint8(3), 3):
        made = getattr(make(**{field: number}), field)
        assert (type(made), made) == (int, 3)


@pytest.mark.parametrize("field", REALS)
def test_numbers(field: str) -> None:
    for value in [*NO_NUMBERS, math.inf, -math.inf]:
        with pytest.raises(UsageError, match=f"{field}="):
            Sampling(**{field: value})
    numbers: list[Any] = [1, 1.0, np.float32(1), np.int64(1)]
    for number in numbers:
        made = getattr(Sampling(**{field: number}), field)
        assert (type(made), made) == (float, 1.0)


@pytest.mark.parametrize(
    ("make", "field", "values"),
    [
        (Sampling, "grammar", [b'root ::= "a"', Path("a.gbnf"), 7, ['root ::= "a"']]),
        (SinkPolicy, "force", [1, "yes", None]),
        (SinkPolicy, "placement", [1, None, "rotates", ["auto"]]),
        (SinkPolicy, "n_keep", ["systems", ""]),
        (SinkPolicy, "n_discard", ["a turn", b"half"]),
        (CacheSettings, "flash_attn", [1, "on", 0]),
        (CacheSettings, "cache_type_k", [1, None, ["f16"], "F16", {}]),
        (CacheSettings, "cache_type_v", [16, None]),
        (CacheSettings, "rope_scaling", [1, ["yarn"], True]),
        (CacheSettings, "rope_scale", ["2", None, True, math.nan, 0, HUGE]),
    ],
)
def test_other_values(make: Callable[..., object], field: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=field.split("_")[-1]):
            make(**{field: value})


@pytest.mark.parametrize("stop", [[1], [b"x"], 7, None, ["a", None]])
def test_stop_strings(stop: Any) -> None:
    with pytest.raises(UsageError, match="stop"):
        TextStream(stop)


def test_what_a_model_is_opened_with(model: Model) -> None:
    for layers in ("all", 1.5, True, [3]):
        with pytest.raises(UsageError, match="n_gpu_layers"):
            Weights(model.path, layers)  # type: ignore[arg-type]
    for n_ctx in NO_WHOLES[:-6]:
        if n_ctx is not None:
            with pytest.raises(UsageError, match="n_ctx"):
                model.stream(n_ctx=n_ctx)
    with model.stream(SinkPolicy(np.int64(4)), n_ctx=np.int64(64)) as stream:  # type: ignore[arg-type]
        assert type(stream.n_ctx) is int
