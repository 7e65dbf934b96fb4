"""Endless streams through a finite context, on any GGUF model.

>>> from streamsink import Model, SinkPolicy
>>> with Model.open("smollm2-135m") as model, model.stream(SinkPolicy(n_keep=4)) as stream:
...     stream.feed("Call me Ishmael.")
...     text = "".join(step.text for step in stream.generate(max_tokens=32))

A stream never remembers more than ``n_ctx`` tokens: what was evicted is forgotten.

`Model` opens a file, and makes a `Stream`, or an `Engine` of many. `SinkPolicy` says what a stream
keeps and forgets, `Sampling` how tokens are chosen, `CacheSettings` how llama.cpp computes, and a
`Chat` is a conversation on a stream. Whatever is raised on purpose is a `StreamsinkError`.
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
    from streamsink.core.events import Threads as Threads
    from streamsink.core.events import Visible as Visible
    from streamsink.core.policy import SinkPolicy as SinkPolicy
    from streamsink.core.sampling import Sampling as Sampling
    from streamsink.engine.engine import Engine as Engine
    from streamsink.engine.stream import Stream as Stream
    from streamsink.errors import CacheError as CacheError
    from streamsink.errors import CapabilityError as CapabilityError
    from streamsink.errors import DecodeError as DecodeError
    from streamsink.errors import EngineError as EngineError
    from streamsink.errors import ModelError as ModelError
    from streamsink.errors import SessionError as SessionError
    from streamsink.errors import StreamsinkError as StreamsinkError
    from streamsink.errors import UsageError as UsageError
    from streamsink.gguf.settings import CacheSettings as CacheSettings
    from streamsink.integrations.llama_cpp_python import attach as attach
    from streamsink.model import Model as Model
    from streamsink.session.conversation import Conversation as Conversation
    from streamsink.session.conversation import Message as Message
    from streamsink.session.file import Session as Session

_HOMES = {
    "Aligned": "core.events",
    "CacheError": "errors",
    "CacheSettings": "gguf.settings",
    "CapabilityError": "errors",
    "Chat": "chat.chat",
    "ChatTemplate": "chat.template",
    "Conversation": "session.conversation",
    "DecodeError": "errors",
    "Engine": "engine.engine",
    "EngineError": "errors",
    "Event": "core.events",
    "Evicted": "core.events",
    "Message": "session.conversation",
    "Model": "model",
    "ModelError": "errors",
    "Repinned": "core.events",
    "Restored": "core.events",
    "Sampling": "core.sampling",
    "Session": "session.file",
    "SessionError": "errors",
    "SinkPolicy": "core.policy",
    "Stats": "core.events",
    "Step": "core.events",
    "Stream": "engine.stream",
    "StreamsinkError": "errors",
    "Threads": "core.events",
    "UsageError": "errors",
    "Visible": "core.events",
    "attach": "integrations.llama_cpp_python",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use: ``import streamsink`` alone loads neither NumPy nor llama.cpp."""
    if name in _HOMES:
        return getattr(import_module(f"streamsink.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is for users."""
    return [*__all__, "__version__"]
