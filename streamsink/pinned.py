"""What is pinned on one stream: a policy's ``n_keep`` as a number, and what stands beside it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from streamsink.errors import UsageError
from streamsink.ledger import Ledger
from streamsink.policy import SinkPolicy


@dataclass(frozen=True, slots=True)
class Pinned:
    """What ``n_keep`` comes to on a stream.

    Attributes
    ----------
    n_prompt : int
        Tokens of the first prompt: what -1 pins.
    n_system : int or None
        Tokens of the system block: what ``"system"`` pins; ``None`` where there is no chat.
    spans : tuple of tuple of int
        Spans that are pinned beside the prefix, behind it.
    """

    n_prompt: int = 0
    n_system: int | None = None
    spans: tuple[tuple[int, ...], ...] = ()

    @property
    def n_spans(self) -> int:
        """Tokens of all spans."""
        return sum(map(len, self.spans))

    def n_keep(self, policy: SinkPolicy, ledger: Ledger) -> int:
        """How many tokens of a stream a policy pins.

        Raises
        ------
        UsageError
            A system block is to be pinned, and nobody said which.
        """
        if policy.n_keep == "system":
            if self.n_system is not None:
                return self.n_system
            if ledger.next_index:
                raise UsageError("--keep system needs a chat: give a number, or -1")
            return 0
        if policy.n_keep == -1:
            return ledger.n_before(self.n_prompt)
        return policy.n_keep

    def prefix(self, ledger: Ledger) -> list[int]:
        """The pinned tokens without the spans beside them."""
        return list(islice(ledger.tokens(), ledger.n_pinned - self.n_spans))


def check_window(n_keep: int, n_ctx: int) -> None:
    """Refuse to pin all there is.

    Raises
    ------
    UsageError
        No window is left.
    """
    if n_keep >= n_ctx:
        raise UsageError(
            f"a pinned prefix of {n_keep} tokens leaves no window in n_ctx {n_ctx}: raise --ctx "
            f"above {n_keep}, or pin less (--keep, a shorter prompt)"
        )
