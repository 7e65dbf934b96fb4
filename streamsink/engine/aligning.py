"""A stream made to hold a history that its owner has edited."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from streamsink.core.alignment import align
from streamsink.core.events import Aligned
from streamsink.core.ledger import Missing
from streamsink.core.matching import Ids, Passage, common
from streamsink.core.policy import LARGEST
from streamsink.engine.base import Input
from streamsink.engine.feeding import Feeding
from streamsink.engine.pinning import Pinning
from streamsink.engine.task import Task
from streamsink.system import checked


class _Held(NamedTuple):
    """What a stream holds, in the order of its history.

    Attributes
    ----------
    n_head : int
        The oldest live tokens: the pinned ones, and those that a smaller ``n_keep`` has released
        and that stand apart from the window.
    prefix, released : list of int
        Pinned tokens without the spans beside them, and those released.
    past, window : ndarray of int32
        Forgotten tokens, and those of the window.
    n_lost : int
        Tokens before ``past`` whose ids nobody knows any more.
    window_index : int
        Index of the window's first token.
    """

    n_head: int
    prefix: list[int]
    released: list[int]
    past: Ids
    window: Ids
    n_lost: int
    window_index: int


class Aligning(Feeding, Pinning):
    """Histories that were edited."""

    def align(
        self,
        history: Input,
        *,
        special: bool = False,
        exact: bool = False,
        n_prefix: int | None = None,
    ) -> Aligned:
        """Make the stream's tokens those of a history that its owner has edited.

        What the history begins with and the stream holds is kept and costs nothing. Visible tokens
        that the history does not hold any more are taken out of the cache, and what follows moves
        together, as after an eviction: it remembers what was taken out, as it remembers what was
        evicted. From the first token on that is new, the history is fed. What it still holds but
        the stream has forgotten is not fed again, unless nothing of the window stays. A pinned
        prefix that has changed is swapped, as by `repin`; spans that were pinned beside it stay.

        All of it happens, or nothing. From here on indices are places in the history.

        Parameters
        ----------
        history : str or sequence of int
            The whole of it, from the beginning on, whatever of it was evicted. Text gets the
            model's BOS in front; tokens are taken as they are, and are the better, for text that
            the model has written may read as other tokens.
        special : bool, default False
            Read ``<|...|>`` in the text as control tokens.
        exact : bool, default False
            Nothing of what is taken out is to be remembered: what follows is evaluated again.
        n_prefix : int, optional
            How many of its first tokens are the pinned prefix. By default so many as now; of a
            first prompt or a system block that has changed, what stands before the first token
            that the stream knows.

        Returns
        -------
        Aligned
            What was kept, taken out, evaluated.

        Raises
        ------
        UsageError
            A token that the vocabulary does not have, or a prefix that leaves no window.
        DecodeError, CacheError
            llama.cpp failed; the stream stands where it stood.
        """
        return self._do(self._aligned(history, special, n_prefix, exact=exact))

    async def aalign(
        self,
        history: Input,
        *,
        special: bool = False,
        exact: bool = False,
        n_prefix: int | None = None,
    ) -> Aligned:
        """`align` for an event loop, which is free meanwhile. Cancelled, nothing has changed."""
        return await self._ado(self._aligned(history, special, n_prefix, exact=exact))

    def _aligned(
        self, history: Input, special: bool, n_prefix: int | None, *, exact: bool
    ) -> Task[Aligned]:
        tokens = self._tokens(history, special)
        if isinstance(history, str):
            tokens = self._opened(tokens)
        if n_prefix is not None:
            most = min(LARGEST, len(tokens))
            n_prefix = checked.whole("n_prefix", n_prefix, 0, most, "tokens of the history")
        return (yield from self._all_or_nothing(self._align(tokens, n_prefix, exact=exact)))

    def _align(self, tokens: list[int], n_prefix: int | None, *, exact: bool) -> Task[Aligned]:
        controller, driver = self._controller, self._driver
        began = time.perf_counter()
        n_live = controller.ledger.n_live
        if not n_live:
            return (yield from self._begin_anew(tokens, began))
        controller.drop(controller.next_index)
        yield from driver.finish()
        yield from self._copy_held()
        held, n_new, same = yield from self._compared(tokens, n_prefix)
        n_before = n_new + len(held.released)
        room = self.n_ctx - n_before - controller.state.pinned.n_spans
        if n_before > len(tokens) or room <= 0:
            return (yield from self._begin_anew(tokens, began))
        rest = np.asarray(tokens[n_before:], np.int32)
        found = align(held.past, held.n_lost, held.window, rest, room)
        if not (found.kept or (same and n_before)):
            return (yield from self._begin_anew(tokens, began))
        kept, anew, why = self._possible(found.kept, len(held.window), exact=exact, same=same)
        start = n_before + found.start
        stop = start + _sum(kept)
        n_again = _sum(found.kept[len(kept) :]) + found.forgotten - found.start
        if found.forgotten > found.start:
            why = "nothing of the window stays"
        if not same or start != held.window_index or stop != controller.ledger.next_index:
            yield from driver.will_lose(len(tokens) - stop)
            plan = partial(
                controller.plan_keeping,
                *(tokens[:stop], held.n_head, kept, start),
                same_prefix=same,
                anew=anew,
            )
            yield from driver.keep(plan)
        n_fed = len(tokens) - stop - n_again
        n_kept = controller.ledger.n_live
        if controller.ledger.missing is Missing.ALL and same:
            n_again += n_kept
            why = why or "the cells of a sliding window are gone"
        if not same:
            n_fed += n_new
            n_kept -= len(held.prefix)
            n_again += yield from self._swap_prefix(tokens[:n_new], len(held.prefix), exact=exact)
        yield from self._take_in(tokens[stop:])
        ms = (time.perf_counter() - began) * 1e3
        return Aligned(n_kept, n_live - n_kept, found.start, n_fed, n_again, why, ms)

    def _copy_held(self) -> Task[None]:
        """Put what is held in the window into the head, where an edited history leaves it alone."""
        while (pinned := self._controller.state.pinned).held:
            pinned = pinned.joined()
            tokens = pinned.spans[-1].tokens
            yield from self._splice(
                self._controller.ledger.n_pinned, 0, tokens, self.policy, pinned
            )

    def _compared(self, tokens: list[int], n_prefix: int | None) -> Task[tuple[_Held, int, bool]]:
        """What the stream holds, how many tokens of a history are pinned, and if they are held."""
        held = self._held()
        same = n_prefix in (None, len(held.prefix)) and _is_at(tokens, 0, held.prefix)
        if held.released and not (same and _is_at(tokens, len(held.prefix), held.released)):
            yield from self._driver.evict(len(held.released))  # they would leave next
            held = self._held()
        n_new = len(held.prefix) if same else self._n_prefix_of(tokens, held, n_prefix)
        if not same and n_new == len(held.prefix) and self._is_whole:
            # Nothing has been evicted: what the prefix and the history begin with can stay.
            held, same, n_new = self._held(0), True, 0
        return held, n_new, same

    @property
    def _is_whole(self) -> bool:
        """Whether all that the stream has taken in can be seen, and nothing else."""
        ledger = self._controller.ledger
        return len(ledger.segments) == 1 and ledger.n_live == ledger.next_index

    def _held(self, n_head: int | None = None) -> _Held:
        """What the stream holds, all of it in the cache: the head, and the window behind it."""
        controller = self._controller
        ledger = controller.ledger
        n_prefix = self._n_prefix
        if n_head is None:
            n_head = max(ledger.n_pinned, ledger.n_head)
        head, (*_, window) = ledger.divided(n_head)
        ids = controller.ids(*(range(part.index, part.stop) for part in head))
        past, n_lost = controller.forgotten(window.index)
        return _Held(
            n_head,
            ids[:n_prefix],
            ids[ledger.n_pinned :],
            np.frombuffer(past, np.int32),
            np.asarray(controller.ids(range(window.index, window.stop)), np.int32),
            n_lost,
            window.index,
        )

    def _n_prefix_of(self, tokens: list[int], held: _Held, n_prefix: int | None) -> int:
        """How many tokens of a history are its pinned prefix, where that has changed."""
        if n_prefix is not None:
            return n_prefix
        n_held = len(held.prefix)
        pinned = self._controller.state.pinned
        if self.policy.n_keep not in (-1, "system") and pinned.n_prefix is None:
            return n_held
        known = common(
            np.concatenate([held.past, held.window]),
            np.asarray(tokens, np.int32),
            begin_alike=False,
        )
        return known[0].new if known else n_held

    def _possible(
        self, kept: tuple[Passage, ...], n_window: int, *, exact: bool, same: bool
    ) -> tuple[tuple[Passage, ...], bool, str]:
        """What can be kept with its cells, whether all is evaluated again instead, and why."""
        able = self._context.capabilities
        stays = kept[0].old + kept[0].n if len(kept) == 1 else -1
        if not able.takes_back and stays != n_window:
            return kept, True, "a recurrent state cannot give up tokens"
        if len(kept) > 1 and able.rotate.level != "exact":
            return kept[:1], False, able.rotate.why
        if len(kept) > 1 and exact and same:  # of a changed prefix all is evaluated again later
            return kept[:1], False, "as asked"
        return kept, False, ""

    def _swap_prefix(self, tokens: list[int], n_old: int, *, exact: bool) -> Task[int]:
        """Swap the pinned prefix; how many other tokens were evaluated again."""
        controller, driver, policy = self._controller, self._driver, self.policy
        pinned, n = controller.state.pinned, len(tokens)
        is_counted = policy.n_keep in (n, "system") and not pinned.spans
        pinned = replace(
            pinned,
            n_prefix=None if is_counted else n,
            n_system=n if policy.n_keep == "system" else pinned.n_system,
        )
        under = controller.adopted(policy, pinned)
        if controller.state.is_shifting:  # no cells are taken aside until keys are rotated
            yield from driver.settle()
        swapped = yield from driver.splice(0, n_old, tokens, under, exact=exact)
        controller.number_prefix(n)
        return max(0, swapped.n_evaluated - n - pinned.n_spans)

    def _begin_anew(self, tokens: list[int], began: float) -> Task[Aligned]:
        """Forget everything, and feed a history."""
        controller, driver = self._controller, self._driver
        n_live, n_first = controller.ledger.n_live, self._n_prefix
        yield from driver.will_lose(len(tokens))
        yield from driver.clear()
        self._begin(tokens[: n_first or None])
        yield from self._take_in(tokens)
        ms = (time.perf_counter() - began) * 1e3
        return Aligned(0, n_live, 0, len(tokens), 0, "", ms)


def _is_at(tokens: Sequence[int], at: int, part: Sequence[int]) -> bool:
    return tokens[at : at + len(part)] == part


def _sum(passages: Sequence[Passage]) -> int:
    return sum(one.n for one in passages)
