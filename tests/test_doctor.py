"""``streamsink doctor``, the inspection behind it, and the warnings that other commands share."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from streamsink import Model
from streamsink.cli.terms import in_options
from streamsink.errors import ModelError
from streamsink.gguf.advice import warnings
from streamsink.gguf.inspection import inspect, usual_contexts
from streamsink.gguf.settings import USUAL, CacheSettings
from streamsink.llama.context import NativeContext
from streamsink.llama.inspect_child import _CACHE, _SCRATCH, _SIZES, _bytes
from streamsink.llama.library import hearing
from streamsink.llama.weights import Weights
from tests.test_terminal import rewritten
from tests.tiny_gguf import TinyModel


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from streamsink.cli.main import main; main()", *words],
        capture_output=True,
        text=True,
    )


def as_json(*words: str) -> dict[str, Any]:
    done = run("doctor", *words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_installation() -> None:
    found = as_json()
    assert found["llama_cpp_python"]
    assert found["devices"][0]["kind"] == "CPU"
    assert found["devices"][0]["total_bytes"] > 2**30
    told = run("doctor").stdout
    assert found["cpu"] in told
    assert "built with" in told


def test_a_model(tiny_path: Path) -> None:
    found = as_json(str(tiny_path), "--ctx", "512,1024")
    assert found["traits"]["architecture"] == "llama"
    assert found["placements"]["rotate"]["level"] == "exact"
    assert [(need["n_ctx"], need["cache_type"]) for need in found["needs"]][:1] == [(512, "f16")]
    assert found["recommended"].startswith(f"streamsink chat {tiny_path} --ctx 1024")
    told = run("doctor", str(tiny_path))
    assert told.returncode == 0
    assert "rotate\texact" in told.stdout
    assert f"recommended: streamsink chat {tiny_path}" in told.stdout


def test_what_is_inspected_is_what_is_loaded(tiny_path: Path) -> None:
    found = inspect(tiny_path, USUAL)
    weights = Weights(tiny_path, 0)
    assert found.traits == weights.traits
    assert found.special_texts == weights.tokenizer.special_texts
    assert found.special_texts["bos_token"]
    weights.close()


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize("n_ctx", [512, 3000])
def test_memory_is_what_is_then_allocated(tmp_path: Path, cache_type: str, n_ctx: int) -> None:
    path = TinyModel.create(n_head=2, n_head_kv=2).write(tmp_path / "heads-of-32.gguf")
    settings = CacheSettings(cache_type, cache_type)
    needs = {n.cache_type: n for n in inspect(path, USUAL, [n_ctx]).needs}
    weights = Weights(path, 0)
    with hearing(_SIZES) as said:
        NativeContext(weights, n_ctx, settings, swa_full=False).close()
    weights.close()
    assert needs[cache_type].cache_bytes == pytest.approx(_bytes(said.lines, _CACHE), rel=0.03)
    assert needs[cache_type].scratch_bytes == pytest.approx(_bytes(said.lines, _SCRATCH), rel=0.03)


def test_the_bytes_of_a_token(tiny_path: Path) -> None:
    found = inspect(tiny_path, USUAL, [4096, 65536])
    # The log's hundredths of a MiB.
    assert found.kv_bytes("f16") == pytest.approx(found.traits.cell_bytes("f16", "f16"), abs=0.5)
    assert inspect(tiny_path, USUAL, [512]).kv_bytes("f16") is None


def test_contexts_that_people_ask_for() -> None:
    assert usual_contexts(8192) == [2048, 8192]
    assert usual_contexts(1024) == [1024]


def test_the_weights_are_not_loaded(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six gigabytes of weights, all holes, inspected in one gigabyte of memory."""
    path, n_ff = tmp_path / "large.gguf", 2**22
    theirs = gguf.GGUFReader(tiny_path)
    writer = gguf.GGUFWriter(path, "llama")
    for field in theirs.fields.values():
        if field.name == "llama.feed_forward_length":
            writer.add_uint32(field.name, n_ff)
        elif not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind, *of = field.types
            writer.add_key_value(field.name, field.contents(), kind, *of)
    end = 0
    for tensor in theirs.tensors:
        shape = [int(size) for size in tensor.shape[::-1]]
        if ".ffn_" in tensor.name and len(shape) == 2:
            shape[shape.index(128)] = n_ff
        n_bytes = 4 * math.prod(shape)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), n_bytes)
        end += -(-n_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + end)
    assert path.stat().st_size > 6 * 2**30
    monkeypatch.setattr("streamsink.gguf.inspection.MOST_BYTES", 2**30)
    found = inspect(path, USUAL)
    assert found.weight_bytes == path.stat().st_size
    assert found.traits.architecture == "llama"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["/none.gguf"], "no such file: /none.gguf"),
        (["TINY", "--ctx", "12"], "--ctx 12 is not possible"),
        (["TINY", "--ctx", "512,many"], "--ctx 512,many is not possible"),
        (["TINY", "--ctx", "512,"], "is not possible: numbers from 16 on"),
        (["TINY", "--ctx", "9" * 5000], "is not possible: numbers from 16 on"),
    ],
)
def test_wrong_input(tiny_path: Path, words: list[str], says: str) -> None:
    done = run("doctor", *(str(tiny_path) if word == "TINY" else word for word in words))
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_damaged_file(tiny_path: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(tiny_path.read_bytes()[:20_000])
    with pytest.raises(ModelError, match=r"torn\.gguf is damaged"):
        inspect(torn, USUAL)
    done = run("doctor", str(torn))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_warnings_are_told_once_by_the_commands(tiny_path: Path) -> None:
    long = "--ctx 8192 is more than the 4096 tokens"
    chat = subprocess.run(
        [sys.executable, "-c", "from streamsink.cli.main import main; main()", "chat",
         str(tiny_path), "--ctx", "8192", "--max-tokens", "2"],
        input="hi\nho\n", capture_output=True, text=True,
    )  # fmt: skip
    assert chat.stderr.count(long) == 1
    generated = run("generate", str(tiny_path), "--ctx", "8192", "-p", "hi", "--max-tokens", "2")
    assert generated.stderr.count(long) == 1
    assert long not in generated.stdout


def test_a_template_that_was_given_is_no_lack(tmp_path: Path, tiny_path: Path) -> None:
    bare = rewritten(tiny_path, tmp_path / "bare.gguf", tokenizer__chat_template="")
    for words, lacks in ([], True), (["--chat-template", "llama3"], False):
        chat = subprocess.run(
            [sys.executable, "-c", "from streamsink.cli.main import main; main()", "chat",
             str(bare), "--ctx", "256", "--max-tokens", "2", *words],
            input="hi\n", capture_output=True, text=True,
        )  # fmt: skip
        assert chat.returncode == 0, chat.stderr
        assert ("ChatML is tried" in chat.stderr) == lacks


def test_what_is_odd(tiny_path: Path) -> None:
    with Model.open(tiny_path) as model:
        usual = model.traits
    assert warnings(usual, USUAL, n_ctx=1024) == []
    odd = dataclasses.replace(
        usual, chat_template="", bos=None, adds_bos=True, eos=None, n_swa=32, swa_layers=(0,),
        complaints=("missing pre-tokenizer type, using: 'default'",),
    )  # fmt: skip
    told = in_options("\n".join(warnings(odd, USUAL, n_ctx=10_000, chat=True)))
    for says in (
        "pre-tokenizer", "no chat template", "begin with BOS", "no token that ends",
        "--ctx 10000 is more than", "--rope-scale 3", "1 of 3 layers see the last 32 tokens only",
    ):  # fmt: skip
        assert says in told, told
    stretched = CacheSettings(rope_scaling="yarn", rope_scale=3.0)
    assert warnings(usual, stretched, n_ctx=10_000) == []
