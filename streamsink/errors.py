"""Everything streamsink raises on purpose.

Each message says what was asked, what is possible, and which option to change.
The command line prints it as one line and exits with ``exit_code``.
"""

from __future__ import annotations


class StreamsinkError(Exception):
    """Base of every error that streamsink raises on purpose."""

    exit_code = 1


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
