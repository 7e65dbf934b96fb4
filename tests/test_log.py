"""What a call keeps of llama.cpp's log is its own, whatever other threads call."""

from __future__ import annotations

import gc
import logging
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from streamsink.core.plan import MAIN
from streamsink.errors import DecodeError, ModelError, TornError
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.context import NativeContext
from streamsink.llama.library import hearing, log
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.test_native_faults import Abort

SETTINGS = CacheSettings("f32", "f32", 16, 1, threads=1)


def unknown(folder: Path, architecture: str) -> Path:
    """A sound file of an architecture that llama.cpp does not know."""
    path = folder / f"{architecture}.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def reason_of(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Weights(path, 0)
    return str(caught.value)


def test_two_threads_that_fail_at_once_each_tell_their_own_reason(tmp_path: Path) -> None:
    paths = [unknown(tmp_path, name) for name in ("abacus", "bagpipe")]
    ready = threading.Barrier(2)

    def reasons(path: Path) -> list[str]:
        ready.wait(10)
        return [reason_of(path) for _ in range(100)]

    with ThreadPoolExecutor(2) as pool:
        for path, found in zip(paths, pool.map(reasons, paths), strict=True):
            assert all(f"unknown model architecture: '{path.stem}'" in reason for reason in found)


class Meanwhile(Abort):
    """Lets another thread work while llama.cpp computes, and aborts then."""

    def __init__(self, context: NativeContext, work: Any) -> None:
        self.work = work
        super().__init__(context)

    def _ask(self, _: Any) -> bool:
        struck = super()._ask(_)
        if struck:
            thread = threading.Thread(target=self.work)
            thread.start()
            thread.join(30)
        return struck


def test_a_failed_k_shift_is_noticed_whatever_another_thread_calls(
    model: Model, tmp_path: Path
) -> None:
    made = [NativeContext(model._weights, 48, SETTINGS, swa_full=False) for _ in range(2)]
    shifting, other = made
    reasons = []

    def work() -> None:
        reasons.append(reason_of(unknown(tmp_path, "clavichord")))
        other.decode([5, 6, 7], 0, MAIN, "last")
        with pytest.raises(DecodeError) as caught:
            other.decode([8], 17, MAIN, "last")
        reasons.append(str(caught.value))

    abort = Meanwhile(shifting, work)
    shifting.decode(list(range(4, 14)), 0, MAIN, "last")
    shifting.remove(MAIN, 2, 6)
    shifting.shift(MAIN, 6, 10, -4)
    abort.strike_in(0)
    with pytest.raises(TornError, match="K-shift"):
        shifting.decode([5], 6, MAIN, "last")
    assert "clavichord" in reasons[0]
    assert "K-shift" not in reasons[1]
    for context in made:
        context.close()


def test_a_call_hears_those_within_it_and_no_others(tmp_path: Path) -> None:
    path = unknown(tmp_path, "dulcimer")
    pattern = re.compile("architecture")
    with hearing(pattern) as outer:
        with hearing() as inner:
            reason_of(path)
        thread = threading.Thread(target=reason_of, args=(path,))
        thread.start()
        thread.join(30)
        assert not inner.lines
        assert sum("dulcimer" in line for line in inner.errors) == 1
        assert sum("dulcimer" in line for line in outer.errors) == 1
        assert outer.lines
    with hearing() as said:
        pass
    assert said.reason == ""


@contextmanager
def handled(emit: Any) -> Iterator[None]:
    handler = logging.Handler()
    handler.emit = emit  # type: ignore[method-assign]
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_while_a_model_is_loaded_is_not_lost(
    tiny_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[object] = []
    free = llama.llama_model_free

    def note(handle: object) -> None:
        freed.append(handle)
        free(handle)

    monkeypatch.setattr(llama, "llama_model_free", note)
    pressed: list[str] = []

    def press(record: logging.LogRecord) -> None:
        if not pressed:
            pressed.append(record.getMessage())
            signal.raise_signal(signal.SIGINT)

    with handled(press):
        try:
            Weights(tiny_path, 0)
        except KeyboardInterrupt:
            pressed.append("and it came")
    gc.collect()
    assert pressed[1:] == ["and it came"]
    assert len(freed) <= 1  # where loading is ended, llama.cpp frees what there is
    assert capfd.readouterr().err == ""
    Weights(tiny_path, 0).close()
