"""Everything streamsink raises on purpose.

Each message says what was asked, what is possible, and which setting to change. Settings are marked
in it: Python reads a name, ``n_keep=70``, and the command line shows an option, ``--keep 70``. It
tells the message in one line and exits with ``exit_code``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_NOTHING: Final = object()
# Characters for private use, which no message has otherwise.
_SETTING = re.compile("\ue000(\\w+)(?:\ue001(.*?))?\ue002", re.DOTALL)


def setting(name: str, value: object = _NOTHING) -> str:
    """A setting within a message, by the name that Python has for it; perhaps with its value."""
    stated = "" if value is _NOTHING else f"\ue001{value!r}"
    return f"\ue000{name}{stated}\ue002"


def told(message: str, how: Callable[[str, str | None], str]) -> str:
    """A message with every setting in it told in some way.

    Parameters
    ----------
    message : str
        The message.
    how : callable
        Makes text of a setting's name and its value, as Python writes it; None without.
    """
    return _SETTING.sub(lambda found: how(found[1], found[2]), message)


class StreamsinkError(Exception):
    """Base of every error that streamsink raises on purpose."""

    exit_code = 1

    @property
    def message(self) -> str:
        """The message with its settings marked, for `told`."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return told(self.message, lambda name, value: name if value is None else f"{name}={value}")


class UsageError(StreamsinkError):
    """What was asked for cannot be: a value out of range, an unknown name, a missing file."""

    exit_code = 2


class EngineError(StreamsinkError):
    """llama-cpp-python is missing, broken or too old."""


class ModelError(StreamsinkError):
    """A model file is there but cannot be used: not GGUF, truncated, of an unsupported kind."""


class FetchError(StreamsinkError):
    """A model could not be brought here: network, checksum, disk."""


class MemoryBudgetError(StreamsinkError):
    """A context does not fit into the memory that this machine has left."""


class CapabilityError(StreamsinkError):
    """The model or its cache cannot do what the policy needs."""


class CacheError(StreamsinkError):
    """llama.cpp refused a change to the KV cache; cache and ledger are as they were."""


class TornError(CacheError):
    """A failure left cells in disorder; the stream evaluates its tokens anew before it goes on.

    Attributes
    ----------
    everywhere : bool
        Whether the cells of all streams in the context are in doubt, and not those alone that took
        part in what failed.
    """

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class DecodeError(StreamsinkError):
    """``llama_decode`` did not return 0; the tokens of that call are not in the stream.

    Attributes
    ----------
    code : int
        llama.cpp's return code: 1 no free cell, 2 aborted, -1 invalid batch, below -1 fatal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class LogitsError(StreamsinkError):
    """The model's logits are no numbers; no token was chosen, and the stream is as it was."""


class SessionError(StreamsinkError):
    """A session file cannot be gone on with: torn, of another model or version, or in use."""


class BusyError(StreamsinkError):
    """A stream was used while another call on it was under way; that call is undisturbed."""


class ClosedError(StreamsinkError):
    """A model or a stream was used after ``close()``."""
