"""The stream: what a person holds in hand. Text and tokens in, scores and steps out."""

from __future__ import annotations

from streamsink.engine.aligning import Aligning
from streamsink.engine.generating import Generating
from streamsink.engine.reporting import Reporting
from streamsink.engine.saving import Saving


class Stream(Aligning, Generating, Saving, Reporting):
    """An endless stream through a finite context. Made by `streamsink.Model.stream`.

    A stream never remembers more than ``n_ctx`` tokens: what was evicted is forgotten.

    One call at a time: while one is under way, another on the same stream raises `BusyError`. A
    generation is under way while it makes a step, not between two of them.

    Parameters
    ----------
    context : Context
        An engine's context, owned by the stream from here on.
    policy : SinkPolicy
        What to keep, what to evict.
    n_ctx : int
        Tokens that a token can attend to, itself and the sink included.
    on_evict : callable, optional
        Called with every `Evicted` record, after cache and ledger have settled.
    on_event : callable, optional
        Called with every `Event`, likewise.
    rebase_at : int, default 65536
        Position at which a growing stream is brought back to 0.
    siblings : mutable set of Stream, optional
        Where this stream and its forks enter themselves.

    Raises
    ------
    UsageError
        The policy does not fit ``n_ctx``.
    CapabilityError
        The model cannot stream, or not by the placement asked for.
    """
