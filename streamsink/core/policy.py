"""What a stream keeps and what it evicts: plain numbers and pure functions, no engine.

The words are those of StreamingLLM (arXiv 2309.17453) and of llama.cpp's ``--keep``: the first
``n_keep`` tokens are pinned (the attention sink), the most recent ones form the window, and
``n_discard`` of the oldest window tokens leave at once when the cache is full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from streamsink.errors import UsageError, setting
from streamsink.system.checked import impossible, truth, whole

Placement: TypeAlias = Literal["rotate", "reanchor"]
Placing: TypeAlias = Literal["auto", Placement]
Keep: TypeAlias = int | Literal["system"]
Discard: TypeAlias = int | Literal["half", "turn", "sentence"]

WHOLES = ("turn", "sentence")
"""What may be evicted whole."""
PLACEMENTS = get_args(Placing)
LARGEST = 2**24
"""Upper bound of every count: beyond it a 32-bit float cannot tell two positions apart."""


@dataclass(frozen=True, slots=True)
class SinkPolicy:
    """How a stream forgets.

    Parameters
    ----------
    n_keep : int or "system", default 4
        Tokens pinned at the head of the stream, BOS counted. ``-1`` pins the whole first prompt,
        ``"system"`` the rendered system block of a chat (`streamsink.chat` turns it into a number).
    n_discard : int, "half", "turn" or "sentence", default 1
        Tokens evicted at once when the cache is full. ``1`` is the paper, ``0`` and ``"half"`` are
        half of the window (llama.cpp's convention). ``"turn"`` and ``"sentence"`` evict the oldest
        whole ones, so that the window begins where one begins (`Stream.begin_turn`); of one that
        fills the window half is cut off.
    placement : {"auto", "rotate", "reanchor"}, default "auto"
        How sink and window are brought side by side again, see `streamsink.core.placement`.
    slack : int, optional
        Positions that the sink may trail the window before it is brought up again. ``0`` gives the
        paper's positions at every step; ``None`` lets the stream choose (`default_slack`).
    force : bool, default False
        Take a ``placement`` that is only approximate on the model, which is refused otherwise.

    Raises
    ------
    UsageError
        A value that no context could satisfy.
    """

    n_keep: Keep = 4
    n_discard: Discard = 1
    placement: Placing = "auto"
    slack: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        checked: dict[str, object] = {"force": truth("force", self.force)}
        if self.n_keep != "system":
            possible = "a number of tokens, -1 (the whole prompt) or 'system',"
            checked["n_keep"] = whole("n_keep", self.n_keep, -1, LARGEST, possible)
        if self.n_discard not in ("half", *WHOLES):
            possible = "a number of tokens, 0, 'half', 'turn' or 'sentence',"
            checked["n_discard"] = whole("n_discard", self.n_discard, 0, LARGEST, possible)
        if self.placement not in PLACEMENTS:
            raise impossible("placement", self.placement, f"one of {', '.join(PLACEMENTS)}")
        if self.slack is not None:
            checked["slack"] = whole("slack", self.slack, 0, LARGEST, "a number of positions")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def check(self, n_ctx: int) -> None:
        """Hold the policy against a context size, before anything is loaded.

        Raises
        ------
        UsageError
            The sink leaves no window, or more is to be discarded than a window holds.
        """
        whole("n_ctx", n_ctx, 1, LARGEST, "a number of tokens")
        n_keep = self.n_keep if isinstance(self.n_keep, int) else 0
        if n_keep >= n_ctx:
            raise UsageError(
                f"{setting('n_keep', n_keep)} leaves no window in {setting('n_ctx', n_ctx)}: "
                f"keep at most {n_ctx - 1}, or raise {setting('n_ctx')}"
            )
        if isinstance(self.n_discard, int) and self.n_discard > n_ctx - max(n_keep, 0):
            raise UsageError(
                f"{setting('n_discard', self.n_discard)} is more than the window of "
                f"{n_ctx - max(n_keep, 0)} tokens that {setting('n_ctx', n_ctx)} and "
                f"{setting('n_keep', n_keep)} leave"
            )


def discard_size(policy: SinkPolicy, n_ctx: int, n_pinned: int) -> int:
    """Tokens that one eviction takes out of a full cache, at least one.

    ``half`` follows llama.cpp's completion example: half of what is not pinned. It is also what is
    cut off where nothing whole can leave.
    """
    window = n_ctx - n_pinned
    n_discard = policy.n_discard if isinstance(policy.n_discard, int) else 0
    return max(1, min(n_discard or window // 2, window))


def next_chunk(
    n_waiting: int,
    *,
    room: int,
    n_window: int,
    n_discard: int,
    sink_lag: int,
    slack: int,
    n_batch: int,
    n_lanes: int,
    n_spare: int,
) -> int:
    """Choose how many waiting tokens the next decode takes, so that each sees what it would alone.

    More than there is room for need lanes (`streamsink.core.lanes`): within the decode, an eviction
    comes before each further group of ``n_discard`` tokens.

    Parameters
    ----------
    n_waiting : int
        Tokens still to be fed, at least 1.
    room : int
        Free places in the window, at least 1.
    n_window : int
        Tokens that may be evicted now. One decode cannot evict what it writes, and in every lane a
        token must stay for the batch to continue from.
    n_discard, sink_lag, slack : int
        Size of an eviction; positions the sink trails by now, and may trail by. The sink moves
        before a decode or not at all.
    n_batch : int
        Most tokens in one decode.
    n_lanes : int
        Most groups in one decode; 1 where lanes do not work.
    n_spare : int
        Cells beyond ``n_ctx``: tokens whose eviction is under way still occupy theirs.
    """
    n_evictions = 0
    if room == n_discard:
        n_evictions = min(
            (n_waiting - 1) // n_discard,
            (slack - sink_lag) // n_discard,
            n_lanes - 1,
            (n_window - 1) // n_discard,
            n_batch // n_discard - 1,
            n_spare // n_discard,
        )
    return min(n_waiting, room + max(0, n_evictions) * n_discard, n_batch)


CYCLE = 64
"""Slack is chosen so that a cycle of one-token evictions fills whole batches of this many lanes."""
SHARE = 0.005
"""Part of the time that moves may take. On 12,000 tokens of Moby-Dick, at n_ctx 512 and at 2,048, a
slack of 639 reads no worse than one of 319 (docs/README.md, slack)."""
OVERSHOOT = 1 / 16
"""How far beyond the trained context, in parts of it, a sink may trail. The window stays within;
and at a full trained context of 8,192 a slack of 319 changes nothing that could be seen, nor does
one of 1,024 (docs/README.md, drift)."""


NEAR = 5 * CYCLE
"""Positions that what is pinned may trail in any case: a sink of four tokens is then moved for one
percent of the time. Beyond that, and beyond a window, what is pinned is hard to read: in a chat of
the default model, n_ctx 320, a slack of 319 leaves a pinned fact foreseen, and one of 1,279 hardly
(``scripts/pinned``; docs/README.md, slack)."""


def move_cost(placement: Placement, n_keep: int) -> float:
    """What bringing sink and window together takes, in decodes of one token.

    Measured on SmolLM2-135M, 2 CPU cores, n_ctx 512 to 4,096: a K-shift takes 1.5 to 3.1 of them,
    whatever it moves; evaluating 4, 16, 64, 200 tokens 3, 8.5, 28 to 34, 85 to 104.
    """
    return 3 if placement == "rotate" else 1 + n_keep / 2


def default_slack(cost: float, n_ctx: int, n_ctx_train: int) -> int:
    """Slack that hides the cost of a move, where the trained context leaves room for it.

    Spread over two hundred times as many tokens as it costs, a move takes half a percent of the
    time.
    Sink and query must stay within the trained context and a little beyond: ``n_ctx + slack`` does.
    And what is pinned must stay near enough to be read.
    """
    cycle = math.ceil(cost / SHARE / CYCLE) * CYCLE
    longest = int(n_ctx_train * (1 + OVERSHOOT))
    return max(0, min(cycle, longest - n_ctx + 1, max(n_ctx, NEAR)) - 1)
