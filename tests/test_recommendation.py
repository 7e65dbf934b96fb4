"""What doctor recommends is opened, and what would be refused it does not call fitting."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamsink.chat.template_report import report
from streamsink.cli.doctor import recommended
from streamsink.cli.options import EngineOptions
from streamsink.cli.terms import in_options
from streamsink.core.policy import SinkPolicy
from streamsink.errors import MemoryBudgetError
from streamsink.gguf.advice import warnings
from streamsink.gguf.budget import context_bytes
from streamsink.gguf.inspection import Inspection, inspect
from streamsink.gguf.recommendation import fits, recommend
from streamsink.gguf.settings import USUAL, CacheSettings
from streamsink.llama.context import NativeContext
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.talks import without_cuts
from tests.tiny_gguf import TinyModel
from tests.zoo import FAMILIES

LONG = 32_768
STREAMING = [
    *("llama", "llama-yarn", "phi3", "deepseek2", "mistral3", "qwen2vl", "gemma3", "gpt-oss"),
    *("cohere2", "smollm3", "bloom", "baichuan-13b", "lfm2"),
]
"""Families that differ in what a cache holds, and whose files have no table of positions."""


@pytest.fixture(scope="module")
def inspected(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Inspection]:
    """Surveys of the zoo's families, trained on long contexts."""
    folder = tmp_path_factory.mktemp("zoo")
    known: dict[str, Inspection] = {}

    def look(name: str) -> Inspection:
        if name not in known:
            model = FAMILIES[name].draw(0)
            metadata = {**model.metadata, "context_length": LONG}
            path = dataclasses.replace(model, metadata=metadata).write(folder / f"{name}.gguf")
            known[name] = inspect(path, USUAL, [512, 2048, 8192, LONG])
        return known[name]

    return look


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets a machine seem to have as much memory as that."""

    def seem(n_bytes: int) -> None:
        monkeypatch.setattr("streamsink.llama.making.available_bytes", lambda: n_bytes)

    return seem


@pytest.mark.parametrize("name", STREAMING)
def test_what_is_recommended_is_opened(
    name: str, inspected: Callable[[str], Inspection], free: Callable[[int], None]
) -> None:
    found = inspected(name)
    largest = 0
    with Model(Weights(found.path, 0)) as model:
        for mib in (1, 4, 12, 40, 120, 400, 1300, 4000):
            room = found.weight_bytes + mib * 2**20
            best = recommend(found, room)
            free(room - found.weight_bytes)
            for need in found.needs:
                types = CacheSettings(need.cache_type, need.cache_type)
                if fits(found, need, room) and need.n_ctx <= 8192:  # larger ones take long
                    model.stream(n_ctx=need.n_ctx, **dataclasses.asdict(types)).close()
            if isinstance(best, str):
                assert "leaves no room for a context" in best
                continue
            assert best.n_ctx >= largest  # more memory, no less context
            largest = best.n_ctx
            if best.n_ctx <= 8192:
                model.stream(best.policy, best.n_ctx, **dataclasses.asdict(best.settings)).close()
    assert largest == LONG


@pytest.mark.parametrize("name", STREAMING)
def test_the_estimate_is_what_llama_cpp_takes(
    name: str, inspected: Callable[[str], Inspection]
) -> None:
    """Of the cache; keys of MLA come without values, which older versions of llama.cpp kept."""
    found = inspected(name)
    flash = CacheSettings(flash_attn=True)
    for need in found.needs:
        if need.cache_type == "f16" and need.n_ctx > 2048:  # the log has hundredths of a MiB
            estimate = context_bytes(found.traits, flash, need.n_ctx, swa_full=False)
            assert estimate >= 0.98 * need.cache_bytes
            if not found.traits.mla:
                assert estimate <= 1.02 * need.cache_bytes


def test_a_window_is_not_counted_at_full_context(
    inspected: Callable[[str], Inspection], free: Callable[[int], None]
) -> None:
    """Of a Gemma half of the layers keep a window: what fits by that is opened."""
    found = inspected("gemma3")
    quick = CacheSettings(flash_attn=True)
    small = context_bytes(found.traits, quick, LONG, swa_full=False)
    whole = context_bytes(found.traits, quick, LONG, swa_full=True)
    assert small < 0.6 * whole
    free(int(0.8 * whole))
    with Model(Weights(found.path, 0)) as model:
        model.stream(n_ctx=LONG, flash_attn=True).close()
        with pytest.raises(MemoryBudgetError, match=r"lower n_ctx \(about \d+ fit\)"):
            NativeContext(model._weights, LONG, quick, swa_full=True)


def test_a_machine_without_room_is_told_so(inspected: Callable[[str], Inspection]) -> None:
    found = inspected("llama")
    assert "its weights take" in str(recommend(found, found.weight_bytes))
    talks = report("", {})
    command, advice = recommended("m", EngineOptions(), found, found.weight_bytes, talks)
    assert command is None
    assert "nothing can be recommended" in advice[-1]


def test_types_that_a_model_refuses_are_not_recommended(tmp_path: Path) -> None:
    """Heads of 16 dimensions hold no block of q8_0; keys of 32 cannot be rotated in it."""
    narrow = TinyModel.create().write(tmp_path / "narrow.gguf")
    assert {need.cache_type for need in inspect(narrow, USUAL, [512]).needs} == {"f16"}
    wide = TinyModel.create(n_head=2, n_head_kv=2).write(tmp_path / "wide.gguf")
    assert {need.cache_type for need in inspect(wide, USUAL, [512]).needs} == {"f16", "q8_0"}
    without = CacheSettings(flash_attn=False)
    assert {need.cache_type for need in inspect(wide, without, [512]).needs} == {"f16"}


# -- the command ----------------------------------------------------------------------------------


def doctor(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", "from streamsink.cli.main import main; main()", "doctor", *words,
         "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["recommended"] else 1)
    return found


def test_recommended_commands_keep_the_options_and_run(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny model's.gguf"
    path.write_bytes(tiny_path.read_bytes())
    options = [
        *("--threads", "1", "--threads-batch", "1", "--batch", "64", "--gpu-layers", "0"),
        *("--no-flash-attn", "--rope-scaling", "yarn", "--rope-scale", "2.5"),
    ]
    recommended = doctor(str(path), *options)["recommended"]
    words = shlex.split(recommended)
    assert words[:3] == ["streamsink", "chat", str(path)]
    assert words[3:] == [*options, "--ctx", "8192"]  # more than it was trained on: stretched
    done = subprocess.run(
        [sys.executable, "-c", "from streamsink.cli.main import main; main()", *words[1:],
         "--max-tokens", "2"],
        input="Hello\n", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert without_cuts(done.stderr) == []


TALKS = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}"
    "{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
)


@pytest.mark.parametrize(
    ("template", "command", "says"),
    [
        ("{% for %}", "generate", "cannot be read"),
        ("{{ raise_exception('no \x1b[2J chat') }}", "generate", "no"),
        ("{{ messages[0].content.nope() }}", "generate", "nope"),
        ("", "generate", "brings no chat template"),
        (TALKS, "chat", ""),
        ("{{ raise_exception('no BOS') if not bos_token }}" + TALKS, "chat", ""),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            + TALKS,
            "chat",
            "takes no system prompt: --system is refused",
        ),
    ],
)
def test_what_a_template_lacks_is_said(
    inspected: Callable[[str], Inspection], template: str, command: str, says: str
) -> None:
    """And a model that cannot chat is recommended for what it can."""
    found = inspected("llama")
    asks = dataclasses.replace(
        found, traits=dataclasses.replace(found.traits, chat_template=template)
    )
    talks = report(template, found.special_texts)
    line, advice = recommended("m", EngineOptions(), asks, 2**34, talks)
    assert talks.usable == (command == "chat")
    more = " -p 'Once upon a time'" if command == "generate" else ""
    assert line == f"streamsink {command} m --ctx {LONG}{more}"
    if says:
        (told,) = map(in_options, advice)
        assert says in told
        assert ("--chat-template" in told) == (command == "generate")
    else:
        assert advice == []
        assert talks.has == ("system prompt",)


@pytest.mark.parametrize(("n_ctx", "is_told"), [(512, True), (16, False)])
def test_pinned_tokens_out_of_sight(
    inspected: Callable[[str], Inspection], n_ctx: int, is_told: bool
) -> None:
    """Only where context and slack make it so: this window slides over 32 tokens."""
    found = inspected("gemma3")
    policy = SinkPolicy(slack=4)
    told = "\n".join(warnings(found.traits, found.settings, policy, n_ctx, slack=4))
    assert ("out of their sight" in told) == is_told
