"""How much of a prompt is fed between two tokens of those who generate."""

from __future__ import annotations

SHARE = 3.0
"""Time that prompts may take in a step, by the time that it takes without: those who generate keep
a quarter of their pace."""
FIRST, LEAST, MOST = 64, 8, 2**16
"""Tokens while nothing is known, and bounds."""
WEIGHT = 0.2
"""Of the last step, in what is known."""


class Pace:
    """Settles chunks of prompts by what steps have taken.

    Parameters
    ----------
    chunk : int, optional
        A number of tokens that is kept to; by default it follows from the machine and the model.
    """

    def __init__(self, chunk: int | None = None) -> None:
        self._fixed = chunk
        self._step = 0.0
        self._token = 0.0

    @property
    def chunk(self) -> int:
        """Most tokens of prompts in a step in which others generate."""
        if self._fixed is not None:
            return self._fixed
        if not self._step or not self._token:
            return FIRST
        return max(LEAST, min(MOST, int(SHARE * self._step / self._token)))

    def took(self, seconds: float, n_fed: int, *, others: bool) -> None:
        """Note a step.

        Parameters
        ----------
        seconds : float
            What it took.
        n_fed : int
            Tokens of prompts in it.
        others : bool
            Whether streams generated in it.
        """
        if not n_fed:
            self._step = _followed(self._step, seconds)
        else:
            rest = seconds - self._step if others else seconds
            self._token = _followed(self._token, max(rest, 0.1 * seconds) / n_fed)


def _followed(known: float, found: float) -> float:
    return known + WEIGHT * (found - known) if known else found
