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
    from streamsink.attached import attach as attach
    from streamsink.chat import Chat as Chat
    from streamsink.errors import StreamsinkError as StreamsinkError
    from streamsink.ledger import Evicted as Evicted
    from streamsink.model import Model as Model
    from streamsink.policy import SinkPolicy as SinkPolicy
    from streamsink.records import Event as Event
    from streamsink.records import Repinned as Repinned
    from streamsink.records import Restored as Restored
    from streamsink.records import Stats as Stats
    from streamsink.records import Step as Step
    from streamsink.records import Visible as Visible
    from streamsink.sampling import Sampling as Sampling
    from streamsink.stream import Stream as Stream
    from streamsink.template import ChatTemplate as ChatTemplate

_HOMES = {
    "Chat": "chat",
    "ChatTemplate": "template",
    "Event": "records",
    "Evicted": "ledger",
    "Model": "model",
    "Repinned": "records",
    "Restored": "records",
    "Sampling": "sampling",
    "SinkPolicy": "policy",
    "Stats": "records",
    "Step": "records",
    "Stream": "stream",
    "StreamsinkError": "errors",
    "Visible": "records",
    "attach": "attached",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use: ``import streamsink`` alone loads neither NumPy nor llama.cpp."""
    if name in _HOMES:
        return getattr(import_module(f"streamsink.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
