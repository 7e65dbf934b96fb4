"""llama.cpp's rules in plain Python: what it refuses, what would abort it, what a token sees.

A cell holds a *value* instead of keys and values: a number made of its token and of all that the
token saw when it was written, each with its distance. So a value remembers, as a transformer's cell
does, all that ever entered into it; and two ways to arrive at the same cache agree to the last bit,
or they are not the same. Logits follow from the value of the newest token.

What llama.cpp would abort on raises `Abort`, which nothing catches; so does what is not modelled.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from streamsink.core.capabilities import Capabilities
from streamsink.core.events import Threads
from streamsink.core.ledger import Span
from streamsink.core.plan import MAIN
from streamsink.core.sampling import Sampling
from streamsink.core.snapshot import CacheKey
from streamsink.engine.context import Logits, Outputs, Sampler
from streamsink.errors import CacheError, DecodeError

N_VOCAB = 258
BOS, EOS = 256, 257


class Abort(BaseException):
    """llama.cpp would have ended the process, or done what this file does not model."""


@dataclass
class Cell:
    """A cell in use."""

    token: int
    pos: int
    value: int
    sequences: set[int]


def value_of(token: int, seen: Iterable[tuple[int, int]]) -> int:
    """What a token becomes that sees these (distance, value) pairs."""
    return hash((token, tuple(sorted(seen))))


def logits_of(value: int) -> Logits:
    """What a token of this value foresees, shape (n_vocab,)."""
    row: Logits = np.random.default_rng(abs(value)).standard_normal(N_VOCAB).astype(np.float32)
    return row


class FakeTokenizer:
    """Bytes, and two control tokens."""

    bos: int | None = BOS
    n_tokens = N_VOCAB

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        return list(text.encode())

    def tokenize_parts(
        self, parts: Sequence[tuple[str, bool]], *, after_text: bool = False
    ) -> list[int]:
        return list("".join(text for text, _ in parts).encode())

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        if token < 256:
            return bytes([token])
        return {BOS: b"<s>", EOS: b"</s>"}[token] if special else b""

    def is_eog(self, token: int) -> bool:
        return token == EOS


class FakeSampler:
    """The likeliest token."""

    def __init__(self) -> None:
        self.closed = False
        self.stuck = False

    def close(self) -> None:
        self.closed = True


class FakeBackend:
    """Implements `streamsink.engine.context.Context`."""

    def __init__(
        self,
        n_cells: int,
        n_lanes: int = 1,
        n_batch: int = 16,
        capabilities: Capabilities | None = None,
    ) -> None:
        self.capabilities = capabilities or Capabilities(n_ctx_train=1000)
        self.tokenizer = FakeTokenizer()
        self.cache_key = CacheKey("fake", "plain Python")
        self.n_cells = n_cells
        self.n_batch = n_batch
        self.max_output_rows = n_batch
        self.n_lanes = n_lanes
        self.threads = Threads(1, 1)
        self.fail_at: set[int] = set()
        """Decodes, counted from 0, that fail without a reason."""
        self.n_decodes = 0
        self.cells: list[Cell] = []
        self._rows: list[int] = []
        self._put: Logits | None = None
        self._closed = False

    # -- decoding -------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int], pos: int, seq: int, rows: Outputs) -> None:
        self._decode(tokens, pos, [[seq]] * len(tokens), rows)

    def decode_lanes(
        self, tokens: Sequence[int], pos: int, lanes: Sequence[int], rows: Outputs
    ) -> None:
        # The first of a token's sequences is the one that it sees.
        self._decode(tokens, pos, [list(range(lane, MAIN - 1, -1)) for lane in lanes], rows)

    def _decode(
        self,
        tokens: Sequence[int],
        pos: int,
        sets: Sequence[Sequence[int]],
        rows: Outputs,
    ) -> None:
        self._alive()
        if not 0 < len(tokens) <= self.n_batch:
            raise Abort(f"GGML_ASSERT(n_tokens_all <= cparams.n_batch): {len(tokens)}")
        if not all(0 <= token < N_VOCAB for token in tokens):
            raise DecodeError("invalid token", -1)
        self._check_sequences(seq for members in sets for seq in members)
        if pos < 0:
            raise DecodeError("invalid position", -1)
        self._check_positions(pos, sets)
        self._check_coupled(sets)
        if len(self.cells) + len(tokens) > self.n_cells:
            raise DecodeError("no free cells", 1)
        self._rows, self._put = [], None
        self.n_decodes += 1
        if self.n_decodes - 1 in self.fail_at:
            raise DecodeError("injected", -3)
        for at, (token, members) in enumerate(zip(tokens, sets, strict=True)):
            here = pos + at
            seen = ((here - c.pos, c.value) for c in self._of(members[0]) if c.pos < here)
            self.cells.append(Cell(token, here, value_of(token, seen), set(members)))
            if rows == "all" or (rows == "last" and at == len(tokens) - 1):
                self._rows.append(self.cells[-1].value)

    def _check_positions(self, pos: int, sets: Sequence[Sequence[int]]) -> None:
        """Each sequence goes on where its cells end, without a hole (llama-batch.cpp: init)."""
        next_pos: dict[int, int] = {}
        for at, members in enumerate(sets):
            for seq in members:
                if seq not in next_pos:
                    cells = self._of(seq)
                    next_pos[seq] = max(c.pos for c in cells) + 1 if cells else pos + at
                if next_pos[seq] != pos + at:
                    raise DecodeError(f"sequence {seq} goes on at {next_pos[seq]}", -1)
                next_pos[seq] += 1

    def _check_coupled(self, sets: Sequence[Sequence[int]]) -> None:
        """Sequences that share a token begin and end alike (llama-batch.cpp: init)."""
        for members in sets:
            edges = {
                (min(c.pos for c in cells), max(c.pos for c in cells))
                for cells in map(self._of, members)
                if cells
            }
            if len(edges) > 1:
                raise DecodeError(f"sequences {members} diverge", -1)

    def fork(self) -> FakeBackend:
        self._alive()
        other = FakeBackend(self.n_cells, self.n_lanes, self.n_batch, self.capabilities)
        other.cells = [replace(cell, sequences={MAIN}) for cell in self._of(MAIN)]
        return other

    def save(self) -> memoryview:
        self._alive()
        cells = [(cell.token, cell.pos, cell.value) for cell in self._of(MAIN)]
        return memoryview(pickle.dumps(cells))

    def load(self, cells: memoryview, end: int) -> None:
        self.clear()
        saved = [Cell(token, pos, value, {MAIN}) for token, pos, value in pickle.loads(cells)]
        if len(saved) > self.n_cells or max((cell.pos for cell in saved), default=-1) != end - 1:
            raise CacheError("cells of another cache")
        self.cells = saved

    def end(self, seq: int) -> int:
        self._alive()
        return max((cell.pos for cell in self._of(seq)), default=-1) + 1

    def is_whole(self, spans: Sequence[Span]) -> bool:
        self._alive()
        return True

    def put_logits(self, row: Logits) -> None:
        self._alive()
        self._put = row

    def logits(self) -> Logits:
        self._alive()
        if self._put is not None:
            return self._put[None]
        return np.stack([logits_of(value) for value in self._rows])

    def check_sampling(self, sampling: Sampling) -> None:
        pass

    def sampler(self, sampling: Sampling, recent: Sequence[int]) -> FakeSampler:
        self._alive()
        return FakeSampler()

    def sample(self, sampler: Sampler, index: int) -> int:
        assert isinstance(sampler, FakeSampler)
        if sampler.closed:
            raise Abort("a chain was used after it was freed")
        return int(self.logits()[-1].argmax())

    # -- cells ----------------------------------------------------------------------------------

    def remove(self, seq: int, start: int, stop: int) -> None:
        self._alive()
        self._check_sequences([seq])
        for cell in self._between(seq, start, stop):
            cell.sequences.discard(seq)
        self.cells = [cell for cell in self.cells if cell.sequences]

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        self._alive()
        self._check_sequences([source, target])
        for cell in self._between(source, start, stop):
            cell.sequences.add(target)

    def shift(self, seq: int, start: int, stop: int, delta: int) -> None:
        self._alive()
        if self.capabilities.rotate.level == "impossible":
            raise Abort("GGML_ASSERT in seq_add or in the K-shift")
        if stop < 0:
            raise Abort("not modelled: an open shift")
        moved = self._between(seq, start, stop)
        for cell in moved:
            if cell.sequences != {seq}:
                raise Abort("not modelled: shifting a cell of several sequences")
            cell.pos += delta
            if cell.pos < 0:
                raise Abort("not modelled: llama.cpp drops cells of negative position")
        taken = [cell.pos for cell in self._of(seq)]
        if len(set(taken)) < len(taken):
            raise Abort("two cells of a sequence at one position")

    def compact(self, seq: int) -> None:
        self._alive()
        if any(cell.sequences != {seq} for cell in self.cells):
            raise Abort("not modelled: putting cells together beside another sequence")

    def clear(self) -> None:
        self._alive()
        self.cells = []

    def close(self) -> None:
        self._closed = True

    # -- looking --------------------------------------------------------------------------------

    def _of(self, seq: int) -> list[Cell]:
        return [cell for cell in self.cells if seq in cell.sequences]

    def _between(self, seq: int, start: int, stop: int) -> list[Cell]:
        if start < 0 or stop < -1:
            raise Abort(f"not modelled: the range {start} to {stop}")
        return [c for c in self._of(seq) if c.pos >= start and (stop == -1 or c.pos < stop)]

    def _check_sequences(self, sequences: Iterable[int]) -> None:
        # SCRATCH and the lanes share their numbers: see streamsink.engine.context.
        for seq in sequences:
            if not 0 <= seq <= self.n_lanes:
                raise Abort(f"GGML_ASSERT(seq_id < n_seq_max): {seq}")

    def _alive(self) -> None:
        if self._closed:
            raise Abort("a context was used after it was freed")
