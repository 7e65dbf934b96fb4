"""What a model's cache allows: the ground on which placements are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Verdict(NamedTuple):
    """How right a placement is on a model.

    Attributes
    ----------
    level : {"exact", "approximate", "impossible"}
        Exact to rounding; of some other effect, which ``force`` accepts; or not to be done at all.
    why : str
        The reason, as a clause; empty for exact.
    """

    level: Literal["exact", "approximate", "impossible"] = "exact"
    why: str = ""


EXACT = Verdict()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What may be done to this model's cache.

    Attributes
    ----------
    n_ctx_train : int
        Tokens of context that the model was trained on, or that RoPE scaling stretches it to.
    rotate, reanchor : Verdict
        How right the placement is on this model.
    no_stream : str
        Why no placement can work; empty where one does.
    takes_back : bool
        Whether the newest tokens can be taken out of the cache again; a recurrent state holds them.
    moves_aside : bool
        Whether the stream's cells can be taken to where re-anchoring would be exact.
    sight : int
        Positions that a layer with a sliding window sees, the token's own included; 0 where every
        layer sees all.
    """

    n_ctx_train: int
    rotate: Verdict = EXACT
    reanchor: Verdict = EXACT
    no_stream: str = ""
    takes_back: bool = True
    moves_aside: bool = False
    sight: int = 0

    @property
    def evaluates_beside(self) -> bool:
        """Whether a head can be evaluated anew right below the window, here or aside."""
        return self.moves_aside or self.reanchor.level == "exact"
