"""From options to a model and a stream on it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from streamsink.cli import terminal
from streamsink.cli.choosing import ModelOptions
from streamsink.cli.life import Life
from streamsink.cli.options import CacheOptions, EngineOptions, LogOptions
from streamsink.cli.values import usual_ctx
from streamsink.core.policy import SinkPolicy
from streamsink.errors import UsageError
from streamsink.gguf.advice import warnings
from streamsink.registry.files import entry_for
from streamsink.system.writing import open_out

if TYPE_CHECKING:
    from streamsink.core.events import Event
    from streamsink.engine.stream import Stream
    from streamsink.model import Model

Hears: TypeAlias = "Callable[[Event], object]"


@contextmanager
def opened(
    model: str,
    policy: SinkPolicy,
    ctx: int | None,
    which: ModelOptions,
    engine: EngineOptions,
    cache: CacheOptions,
    log: LogOptions,
    *,
    chat: bool = False,
    session: Path | None = None,
    hears: Hears | None = None,
) -> Iterator[tuple[Model, Stream]]:
    """Check everything that can be checked without a model, then load it and open a stream.

    What is odd about the model, or about the policy, is told once.

    Parameters
    ----------
    model, policy, ctx, which, engine, cache, log
        What was asked for; ``None`` is the command's own choice, or the session's.
    chat : bool
        Whether it is for a conversation by the model's own template.
    session : Path, optional
        A session file to go on with.
    hears : callable, optional
        Called with every event, beside what ``log`` asks for.
    """
    n_ctx = ctx if ctx is not None else usual_ctx(entry_for(model))
    if session is None:
        policy.check(n_ctx)
    settings = engine.settings(cache)
    path = which.locate(model)
    if log.verbose > 1:
        _show_log()
    with _event_writer(log.json_events) as write:
        on_event = _both(write, hears)
        with _loaded(path, engine.gpu_layers) as loaded:
            if session is not None:
                given = engine.given(cache)
                stream = loaded.restore(session, policy, ctx, on_event=on_event, **given)
            else:
                if ctx is None:
                    n_ctx = min(n_ctx, loaded.n_ctx_train)
                    policy.check(n_ctx)
                stream = loaded.stream(
                    policy, n_ctx, on_event=on_event, **dataclasses.asdict(settings)
                )
            with stream:
                terminal.warn(
                    warnings(
                        loaded.traits,
                        settings,
                        stream.policy,
                        stream.n_ctx,
                        slack=stream.stats.slack,
                        chat=chat,
                    )
                )
                yield loaded, stream


def _loaded(path: Path, gpu_layers: int | None) -> Model:
    """The model of a file, while a terminal shows how much of it is in memory."""
    done = 0.0

    def tell(part: float) -> None:
        nonlocal done
        done = part

    with Life(lambda: f"loading {path.name}{f', {done:.0%}' if 0 < done < 1 else ''}"):
        from streamsink.model import Model

        return Model.open(path, gpu_layers, progress=tell)


def _both(first: Hears | None, second: Hears | None) -> Hears | None:
    if first is None or second is None:
        return first or second

    def hear(event: Event) -> None:
        first(event)
        second(event)

    return hear


@contextmanager
def _event_writer(path: Path | None) -> Iterator[Hears | None]:
    if path is None:
        yield None
        return
    try:
        file = open_out(path)
    except OSError as error:
        raise _unwritable(path, error) from None

    def write(event: Event) -> None:
        record = {"time": time.time(), **dataclasses.asdict(event)}
        try:
            file.write(json.dumps(record) + "\n")
            file.flush()
        except OSError as error:
            raise _unwritable(path, error) from None

    try:
        yield write
    finally:
        with contextlib.suppress(OSError):  # what could not be written was told of
            file.close()


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"--json-events {path} cannot be written: {error.strerror or error}")


class _OnTerminal(logging.Handler):
    """Shows llama.cpp's log, in which a file's metadata is quoted."""

    def emit(self, record: logging.LogRecord) -> None:
        terminal.note(record.getMessage())


def _show_log() -> None:
    log = logging.getLogger("streamsink.llama")
    log.addHandler(_OnTerminal())
    log.setLevel(logging.INFO)
