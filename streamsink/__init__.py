"""Endless streams through a finite context, on any GGUF model.

>>> from streamsink import Model, SinkPolicy
>>> with Model.open("smollm2-135m") as model, model.stream(SinkPolicy(n_keep=4)) as stream:
...     stream.feed("Call me Ishmael.")
...     text = "".join(step.text for step in stream.generate(max_tokens=32))

A stream never remembers more than ``n_ctx`` tokens: what was evicted is forgotten.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from streamsink.chat.chat import Chat as Chat
    from streamsink.chat.template import ChatTemplate as ChatTemplate
    from streamsink.core.events import Aligned as Aligned
    from streamsink.core.events import Event as Event
    from streamsink.core.events import Evicted as Evicted
    from streamsink.core.events import Repinned as Repinned
    from streamsink.core.events import Restored as Restored
    from streamsink.core.events import Stats as Stats
    from streamsink.core.events import Step as Step
    from streamsink.core.events import Visible as Visible
    from streamsink.core.policy import SinkPolicy as SinkPolicy
    from streamsink.core.sampling import Sampling as Sampling
    from streamsink.engine.stream import Stream as Stream
    from streamsink.errors import StreamsinkError as StreamsinkError
    from streamsink.integrations.llama_cpp_python import attach as attach
    from streamsink.model import Model as Model

_HOMES = {
    "Chat": "chat.chat",
    "ChatTemplate": "chat.template",
    "Event": "core.events",
    "Evicted": "core.events",
    "Model": "model",
    "Aligned": "core.events",
    "Repinned": "core.events",
    "Restored": "core.events",
    "Sampling": "core.sampling",
    "SinkPolicy": "core.policy",
    "Stats": "core.events",
    "Step": "core.events",
    "Stream": "engine.stream",
    "StreamsinkError": "errors",
    "Visible": "core.events",
    "attach": "integrations.llama_cpp_python",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use: ``import streamsink`` alone loads neither NumPy nor llama.cpp."""
    if name in _HOMES:
        return getattr(import_module(f"streamsink.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
