"""What the recall benchmark is to ask, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from streamsink.bench.facts import MOST_FACTS, VALUES
from streamsink.core.policy import Discard, SinkPolicy
from streamsink.errors import UsageError

Where: TypeAlias = Literal["stream", "pinned"]

LADDER = (0.1, 0.25, 0.5, 0.75, 1.1, 1.5, 2.0, 4.0)
"""Distances in contexts, where no others are asked for."""
NEAREST = 48
"""Least distance of the ladder: by then all facts of a group have been stated."""
TOKENS_PER_FACT = 11
"""As the default model spells them; what a task weighs depends on it, and nothing else."""


@dataclass(frozen=True, slots=True)
class RecallSettings:
    """What is asked.

    Parameters
    ----------
    n_ctx : int
        Context of the stream.
    n_keep : int
        Tokens pinned at the head of the stream. Where the facts are pinned, as many as they take.
    n_discard : int or "half"
        Tokens evicted at once.
    n_choices : int
        Choices of each question: facts that are stated side by side.
    n_facts : int
        Questions at each distance.
    distances : tuple of int
        Tokens between the end of a fact and the question; none means a ladder from 0.1 to 4
        contexts, which then stands here.

    Raises
    ------
    UsageError
        Values out of range or that do not fit together.
    """

    n_ctx: int = 512
    n_keep: int = 4
    n_discard: Discard = 1
    n_choices: int = 4
    n_facts: int = 40
    distances: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.n_keep, int) or self.n_keep < 0:
            raise UsageError(f"--keep {self.n_keep} is not possible here: a number of tokens")
        SinkPolicy(self.n_keep, self.n_discard).check(self.n_ctx)
        if not 2 <= self.n_choices <= len(VALUES):
            raise UsageError(f"--choices {self.n_choices} is not possible: 2 to {len(VALUES)}")
        if not self.n_choices <= self.n_facts <= MOST_FACTS:
            raise UsageError(
                f"--facts {self.n_facts} is not possible: from as many as --choices "
                f"{self.n_choices} to {MOST_FACTS}"
            )
        for distance in self.distances:
            if distance < 0:
                raise UsageError(f"--distance {distance} is not possible: 0 or more tokens")
        found = self.distances or [max(NEAREST, round(part * self.n_ctx)) for part in LADDER]
        object.__setattr__(self, "distances", tuple(sorted(set(found))))
