"""Log-likelihoods from logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def nll(logits: NDArray[np.float32], targets: Sequence[int]) -> NDArray[np.float64]:
    """Negative log-likelihood of each target under its row of logits.

    Parameters
    ----------
    logits : ndarray of float32, shape (n, n_vocab)
    targets : sequence of int, length n

    Returns
    -------
    ndarray of float64, shape (n,)
        In nat; infinite where the logits are not numbers, as those of a ruined cache are not.
    """
    result = np.empty(len(targets))
    # Row by row: one row stays in the processor's cache, a batch of them does not.
    scratch = np.empty(logits.shape[1:], np.float32)
    for at, target in enumerate(targets):
        row = logits[at]
        top = row.max()
        np.exp(np.subtract(row, top, out=scratch), out=scratch)
        result[at] = np.log(float(scratch.sum())) + float(top) - float(row[target])
    result[np.isnan(result)] = np.inf
    return result
