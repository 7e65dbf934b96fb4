"""Fixtures that more than one test module uses."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamsink.model import Model
from streamsink.native.weights import Weights
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
