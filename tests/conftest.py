"""Fixtures that more than one test module uses."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from streamsink.chat.chat import Chat
from streamsink.chat.template import ChatTemplate
from streamsink.core.policy import SinkPolicy
from streamsink.errors import UsageError
from streamsink.llama.weights import Weights
from streamsink.model import Model
from streamsink.registry.files import resolve
from tests.pulls import FileServer, without_settings
from tests.tiny_gguf import TinyModel


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """The weights in `tiny_path`, for the reference."""
    return TinyModel.create(seed=0)


@pytest.fixture(scope="session")
def tiny_path(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of architecture ``llama`` with F32 weights, under 1 MB."""
    return tiny_model.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> Iterator[Model]:
    """The model in `tiny_path`."""
    with Model(Weights(tiny_path)) as opened:
        yield opened


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """As in a terminal; what runs in the background may have been told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


Run: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the command line keeps what it keeps."""
    return tmp_path / "home"


@pytest.fixture
def bare_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, seen from an empty folder, without settings of the machine; none waits."""
    without_settings(monkeypatch)
    home.mkdir()
    monkeypatch.setenv("STREAMSINK_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return home


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A web server with one file."""
    with FileServer() as serving:
        yield serving


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    """What the command line finds around it."""
    return {**os.environ, "STREAMSINK_HOME": str(home)}


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """The command line, in a home of its own."""
    from tests.test_cli import STREAMSINK

    def call(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*STREAMSINK, *arguments],
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
            env=environment,
        )

    return call


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a current folder of its own."""
    monkeypatch.setenv("STREAMSINK_HOME", str(tmp_path / "home"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def chat(model: Model) -> Iterator[Chat]:
    """A chat with the model in `tiny_path`."""
    with model.stream(SinkPolicy(4, 1), 128, "f32", "f32") as stream:
        yield Chat(
            stream,
            ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}", {}),
        )


@pytest.fixture(scope="session")
def default_model() -> str:
    """The default model's file; scripts/test fetches it."""
    try:
        return str(resolve(""))
    except UsageError as error:
        pytest.skip(f"{error}")
