"""Errors in the terms of whoever asked: Python's names for Python, options for the command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from streamsink.chat.chat import Chat
from streamsink.chat.template import ChatTemplate
from streamsink.cli.terms import in_options
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import StreamsinkError, UsageError, setting
from streamsink.gguf.settings import CacheSettings
from streamsink.model import Model
from streamsink.system.checked import whole
from tests.fake_backend import FakeBackend
from tests.test_chat import SOURCE

PACKAGE = Path(__file__).parents[1] / "streamsink"


def stream() -> Stream:
    return Stream(FakeBackend(64), SinkPolicy(4), 64)


def chat() -> Chat:
    return Chat(stream(), ChatTemplate(SOURCE, {}))


ASKED: list[tuple[Callable[[], object], str, str]] = [
    (lambda: SinkPolicy(n_keep=-2), "n_keep=-2", "--keep -2"),
    (lambda: SinkPolicy(n_keep="all"), "n_keep='all'", "--keep all"),  # type: ignore[arg-type]
    (lambda: SinkPolicy(n_discard=-1), "n_discard=-1", "--discard -1"),
    (lambda: SinkPolicy(placement="up"), "placement='up'", "--placement up"),  # type: ignore[arg-type]
    (lambda: SinkPolicy(slack=-1), "slack=-1", "--slack -1"),
    (lambda: SinkPolicy(force=1), "force=1", "--force 1"),  # type: ignore[arg-type]
    (lambda: SinkPolicy(70).check(64), "n_keep=70 leaves no window in n_ctx=64",
     "--keep 70 leaves no window in --ctx 64: keep at most 63, or raise --ctx"),
    (lambda: SinkPolicy(4, 61).check(64), "n_discard=61", "--discard 61"),
    (lambda: Sampling(temperature=-1), "temperature=-1", "--temp -1"),
    (lambda: Sampling(top_k=-1), "top_k=-1", "--top-k -1"),
    (lambda: Sampling(top_p=2), "top_p=2", "--top-p 2"),
    (lambda: Sampling(min_p=2), "min_p=2", "--min-p 2"),
    (lambda: Sampling(repeat_penalty=0), "repeat_penalty=0", "--repeat-penalty 0"),
    (lambda: Sampling(repeat_last_n=-1), "repeat_last_n=-1", "--repeat-last-n -1"),
    (lambda: Sampling(frequency_penalty=1e9), "frequency_penalty=", "--frequency-penalty"),
    (lambda: Sampling(presence_penalty=1e9), "presence_penalty=", "--presence-penalty"),
    (lambda: Sampling(seed=-1), "seed=-1", "--seed -1"),
    (lambda: Sampling(grammar="x", json_schema="{}"), "grammar and json_schema",
     "--grammar and --json-schema"),
    (lambda: CacheSettings(cache_type_k="q9"), "cache_type_k='q9'", "--cache-type-k q9"),
    (lambda: CacheSettings(cache_type_v="q8_0", flash_attn=False), "drop flash_attn=False",
     "drop --no-flash-attn"),
    (lambda: CacheSettings(n_batch=0), "n_batch=0", "--batch 0"),
    (lambda: CacheSettings(threads=0), "threads=0", "--threads 0"),
    (lambda: CacheSettings(threads_batch=0), "threads_batch=0", "--threads-batch 0"),
    (lambda: CacheSettings(rope_scaling="up"), "rope_scaling='up'", "--rope-scaling up"),
    (lambda: CacheSettings(rope_scale=0.5), "rope_scale=0.5", "--rope-scale 0.5"),
    (lambda: CacheSettings(rope_scale=2), "rope_scaling linear", "--rope-scaling linear"),
    (lambda: stream().generate(-1), "max_tokens=-1", "--max-tokens -1"),
    (lambda: stream().generate(stop=""), "empty stop", "empty --stop"),
    (lambda: stream().generate(ignore_eos=1), "ignore_eos=1", "--ignore-eos 1"),  # type: ignore[arg-type]
    (lambda: Stream(FakeBackend(64), SinkPolicy("system"), 64).feed([1]), "n_keep='system'",
     "--keep system"),
    (lambda: Stream(FakeBackend(64), SinkPolicy(-1), 64).feed([1] * 70), "n_ctx=64", "--ctx 64"),
    (lambda: chat().change(max_tokens=0), "max_tokens=0", "--max-tokens 0"),
]  # fmt: skip


@pytest.mark.parametrize(("ask", "python", "options"), ASKED, ids=[one[1] for one in ASKED])
def test_each_reads_its_own_terms(ask: Callable[[], object], python: str, options: str) -> None:
    with pytest.raises(StreamsinkError) as raised:
        ask()
    error = raised.value
    assert python in str(error)
    assert "--" not in str(error)
    assert options in in_options(error.message)
    for text in (str(error), in_options(error.message)):
        assert text.isprintable()


def test_a_model_s_own_settings(tiny_path: Path) -> None:
    with pytest.raises(UsageError, match="n_gpu_layers=9999999999"):
        Model.open(tiny_path, 9999999999)
    with Model.open(tiny_path) as model:
        with pytest.raises(UsageError, match="n_ctx=0"):
            model.stream(n_ctx=0)
        with pytest.raises(UsageError, match="n_streams=0"):
            model.engine(0)


def test_a_value_that_cannot_be_shown() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError

    for value in (Odd(), 10**10_000, "x" * 10_000):
        with pytest.raises(UsageError, match="n_ctx=") as raised:
            whole("n_ctx", value, 1, 9)
        assert len(str(raised.value)) < 300


def test_an_error_without_settings_is_as_it_is() -> None:
    assert str(UsageError("--keep is what --keep is")) == "--keep is what --keep is"
    assert str(StreamsinkError()) == ""
    assert in_options(f"{setting('a_b', True)} {setting('a_b', False)}") == "--a-b --no-a-b"


OWN = {"registry", "bench", "cli"}
"""Rooms whose messages are about commands: `streamsink models add --force`."""
ASIDE = {"system/turns.py", "system/reading.py", "system/installing.py", "llama/__init__.py"}


@pytest.mark.parametrize(
    "path",
    [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in OWN],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_no_message_of_the_library_names_an_option(path: Path) -> None:
    if str(path.relative_to(PACKAGE)) in ASIDE:
        return
    tree = ast.parse(path.read_text("utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            assert not re.search(r"(^|[\s(`])--[a-z]", node.value), node.value
