"""What a stream needs of a context: cells, sequences, decoding, choosing tokens.

`streamsink.llama` implements `Context` over llama.cpp; the tests implement it in plain Python.
A sequence is llama.cpp's: a set of cells that a token written to it can attend to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamsink.core.capabilities import Capabilities
from streamsink.core.events import Threads
from streamsink.core.ledger import Span
from streamsink.core.plan import Cells, Rows
from streamsink.core.sampling import Sampling
from streamsink.core.snapshot import CacheKey

Logits: TypeAlias = NDArray[np.float32]
Outputs: TypeAlias = Literal["none", "last", "all"]
"""Of which tokens of a decode logits are computed: in small models a row takes a fifth of the time
of a token."""


class Part(NamedTuple):
    """What a stream has decoded in one step.

    Attributes
    ----------
    rows : Rows
        Tokens and where they go.
    outputs : {"none", "last", "all"}
        Of which of them logits are computed.
    """

    rows: Rows
    outputs: Outputs


class Sampler(Protocol):
    """A sampler chain for one generation."""

    @property
    def stuck(self) -> bool:
        """Whether its grammar lets nothing follow the last token, not even the end of the text."""

    def close(self) -> None:
        """Free the chain."""


class Tokenizer(Protocol):
    """Tokens and text."""

    @property
    def bos(self) -> int | None:
        """The token that opens a stream, ``None`` where the model expects none."""

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary."""

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of ``text``, no BOS added; ``special`` reads ``<|...|>`` as control tokens."""

    def tokenize_parts(
        self, parts: Sequence[tuple[str, bool]], *, after_text: bool = False
    ) -> list[int]:
        """Tokens of a text as a whole, no BOS added.

        Parameters
        ----------
        parts : sequence of tuple
            The text in pieces, and of each whether control tokens are read in it.
        after_text : bool
            Whether the text goes on from a token that is no control token.
        """

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token, perhaps not whole characters; control tokens only on ``special``."""

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a turn or a text."""


class Context(Cells, Protocol):
    """One context of an engine.

    Every method either does all it says or changes nothing and raises; none aborts the process.
    Where neither could be had it raises `TornError`: the cells are to be filled anew.
    Positions are half-open ranges ``[start, stop)``.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What may be done to this cache."""

    @property
    def cache_key(self) -> CacheKey:
        """What the cells depend on."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokens and text of the model."""

    @property
    def n_cells(self) -> int:
        """Cells of the cache."""

    @property
    def n_batch(self) -> int:
        """Most tokens in one decode."""

    @property
    def max_output_rows(self) -> int:
        """Most rows of logits that one decode may return."""

    @property
    def threads(self) -> Threads:
        """CPU threads that decode single tokens, by now."""

    @property
    def n_lanes(self) -> int:
        """Lanes that were found to work here; 1 where they do not. May decode a few tokens."""

    def decode(self, tokens: Sequence[int], pos: int, seq: int, rows: Outputs) -> None:
        """Write tokens to ``seq`` at ``pos`` and after it, and compute rows of logits.

        Raises
        ------
        DecodeError
            The tokens are not in the cache; everything else is as before.
        """

    def decode_lanes(
        self, tokens: Sequence[int], pos: int, lanes: Sequence[int], rows: Outputs
    ) -> None:
        """Like `decode`: token ``i`` sees lane ``lanes[i]`` and is written to it and later ones.

        A lane is later than those of higher number, and `MAIN` is later than every lane.
        """

    def end(self, seq: int) -> int:
        """Position after the last cell of a sequence; 0 of an empty one."""

    def is_whole(self, spans: Sequence[Span]) -> bool:
        """Whether `MAIN` still has the cells of these positions that its next token would see.

        A small cache of a sliding window puts new tokens where those out of sight were, and does
        not have them any more once the newest are taken back.
        """

    def fork(self) -> Context:
        """Open another context of the same kind, with the same cells in `MAIN` and no others."""

    def save(self) -> memoryview:
        """The cells of `MAIN`, for any backend of the same `cache_key`.

        Raises
        ------
        CacheError
            They cannot be given out, or not now.
        """

    def load(self, cells: memoryview, end: int) -> None:
        """Put cells that `save` gave out into `MAIN`, and no others anywhere.

        Raises
        ------
        CacheError
            They do not fit, or do not stand right below position ``end``; the cache is empty.
        """

    def logits(self) -> Logits:
        """Rows of the stream's last decode, shape (n_rows, n_vocab); a view, until the next decode.

        Where streams share a context, the last of them outlasts the others' decodes.
        """

    def put_logits(self, row: Logits) -> None:
        """Let these be the last row of logits: they came with cells from elsewhere."""

    def check_sampling(self, sampling: Sampling) -> None:
        """Look whether a chain can be built: for a new grammar that takes seconds.

        It touches nothing of the context, so it needs no lock and may be interrupted.

        Raises
        ------
        UsageError
            The grammar cannot be read, or admits nothing to begin with.
        """

    def sampler(self, sampling: Sampling, recent: Sequence[int]) -> Sampler:
        """Build a chain; ``recent`` tokens count for its repetition penalties.

        Raises
        ------
        UsageError
            As for `check_sampling`.
        """

    def sample(self, sampler: Sampler, index: int) -> int:
        """Choose the token of an index by the last row of logits and accept it into the chain.

        Raises
        ------
        LogitsError
            Logits that are no numbers.
        """

    def close(self) -> None:
        """Free the context. Twice is fine."""


class Host(Protocol):
    """A context that several streams share: each has a place in it while it is at work."""

    @property
    def n_places(self) -> int:
        """How many streams there is room for."""

    @property
    def has_scratch(self) -> bool:
        """Whether each place has a `SCRATCH` beside its `MAIN`."""

    @property
    def joins_neighbours(self) -> bool:
        """Whether those alone are computed together whose places are side by side."""

    @property
    def shift_waits(self) -> bool:
        """Whether keys are rotated with the next decode: until then, no cells are given out."""

    @property
    def n_batch(self) -> int:
        """Most tokens in one decode."""

    def decode(self, parts: Sequence[tuple[Slot, Part]]) -> None:
        """Decode for several streams at once, each of which has a place here.

        Raises
        ------
        DecodeError
            None of the tokens is in the cache; everything else is as before.
        TornError
            Neither could be had.
        """


class Slot(Context, Protocol):
    """The context of one stream among many: its cells, in a place of a host or in memory.

    Attributes
    ----------
    share : int or None
        Most tokens of the stream in the next decode, where that is less than a host's batch.
    """

    share: int | None

    @property
    def host(self) -> Host | None:
        """Where its cells are; None where they are in memory."""

    def enter(self, host: Host, place: int) -> None:
        """Take a place, from 0 on, that is free, and bring the cells there.

        Raises
        ------
        CacheError
            They could not be brought there; the place is taken, and empty.
        """

    def leave(self) -> None:
        """Give up the place, with the cells in memory from then on.

        Raises
        ------
        CacheError
            They cannot be given out; the place is given up, and they are gone.
        """

    def put(self, cells: memoryview, end: int) -> None:
        """Hold cells that `save` gave out, the last at ``end`` - 1, until there is a place."""


class Hosts(Protocol):
    """The contexts of an engine.

    Attributes
    ----------
    why : str
        Why streams are laid out so, as a clause.
    """

    why: str

    @property
    def hosts(self) -> Sequence[Host]:
        """Where streams have their places."""

    def slot(self) -> Slot:
        """The context of another stream, without a place yet."""

    def lanes_host(self) -> Host | None:
        """A context of one place where lanes work, for those who have none in theirs.

        It is made when it is first asked for; None where there can be none.
        """

    def close(self) -> None:
        """Free them. Twice is fine."""
