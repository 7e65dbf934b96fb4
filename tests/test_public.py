"""What users import: its names, what its objects say of themselves, what its docstrings state."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamsink
from streamsink import Chat, ChatTemplate, Model, SinkPolicy, session
from tests.test_chat import SOURCE

_STATED = re.compile(r"^ *(\w+(?:, \w+)*) : .*, default (.+)$", re.M)


def test_the_names_are_those_for_users() -> None:
    names = dir(streamsink)
    assert set(names) == {*streamsink.__all__, "__version__"}
    for name in names:
        assert getattr(streamsink, name) is not None
    for name in ("Model", "Stream", "Engine", "Chat", "SinkPolicy", "Sampling", "CacheSettings"):
        assert name in names


def test_importing_it_loads_nothing_native() -> None:
    code = (
        "import sys, streamsink; print(*(set('numpy llama_cpp jinja2'.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def public() -> Iterator[tuple[str, Any]]:
    """Every function and class for users, and their methods."""
    for name in streamsink.__all__:
        found = getattr(streamsink, name)
        yield name, found
        if inspect.isclass(found):
            for method, value in inspect.getmembers(found, callable):
                if not method.startswith("_") and value.__doc__:
                    yield f"{name}.{method}", value


@pytest.mark.parametrize(
    ("name", "what"), list(public()), ids=lambda one: one if type(one) is str else ""
)
def test_defaults_are_as_the_docstring_states_them(name: str, what: Any) -> None:
    try:
        parameters = inspect.signature(what).parameters
    except (ValueError, TypeError):
        return
    for names, stated in _STATED.findall(inspect.getdoc(what) or ""):
        known = [parameters[one].default for one in names.split(", ") if one in parameters]
        values = [] if not known else ast.literal_eval(f"[{stated}]")
        assert set(values) == set(known), f"{name}({names})"


def test_objects_say_what_they_are(tiny_path: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd \x1b[31m\u202e.gguf"
    odd.write_bytes(tiny_path.read_bytes())
    model = Model.open(odd)
    stream = model.stream(SinkPolicy(4), 64, threads=1)
    chat = Chat(model.stream(n_ctx=128, threads=1), ChatTemplate(SOURCE, {}))
    chat.take_in("Hi", "Ho")
    chat.save(tmp_path / "a.session")
    stream.feed([7] * 100)
    engine = model.engine(2, 64, threads=1)
    held = [engine.stream()]
    said = {
        "model": repr(model),
        "stream": repr(stream),
        "chat": repr(chat),
        "template": repr(chat.template),
        "engine": repr(engine),
        "session": repr(session.read(tmp_path / "a.session")),
    }
    assert said["stream"] == "<Stream: 64 of 64 tokens: 4 pinned + 60 recent, 36 forgotten>"
    assert said["chat"].startswith("<Chat: 1 turn on <Stream: ")
    assert said["engine"] == "<Engine: 1 stream, n_ctx 64>"
    assert "trained on 4,096 tokens" in said["model"]
    assert "1 turn, " in said["session"]
    for text in said.values():
        assert text.isprintable(), text
        assert len(text) < 200
    elsewhere: list[str] = []
    thread = threading.Thread(target=lambda: elsewhere.append(repr(stream)))
    thread.start()
    thread.join()
    assert elsewhere == [said["stream"]]
    del held
    model.close()
    for closed in (model, stream, engine):
        assert repr(closed).endswith("closed>")
    assert "closed" in repr(chat)
