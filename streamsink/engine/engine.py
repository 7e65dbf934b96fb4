"""Many streams in one thread: a step of each, decoded together.

A call on a stream is a task (`streamsink.engine.task`). The engine's thread asks every task that is
under way for its next work, and carries these out together: the operations of all, one decode for
those whose cells are in the same context, the commit of each. Then it asks again, and tokens are
chosen before anything else is decoded. Callers wait for the end of their task, in a thread or in an
event loop; what they get is handed to them right before a decode, so that they do their own work
while llama.cpp does its.

No lock protects a stream's state: nothing but that one thread touches it.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

from streamsink.core.events import Event, Evicted
from streamsink.core.policy import SinkPolicy
from streamsink.engine.base import Input
from streamsink.engine.context import Host, Hosts, Slot
from streamsink.engine.member import Member, Outcome, Stopped, Ticket
from streamsink.engine.pace import Pace
from streamsink.engine.prefixes import Prefixes
from streamsink.engine.seating import Seating
from streamsink.engine.stream import Stream
from streamsink.engine.task import Ask, AskAside, AskLanes, Work, carry_out
from streamsink.errors import ClosedError, StreamsinkError, TornError
from streamsink.system.closing import Closing

CLOSED = "this engine is closed: open another with model.engine()"


class Engine(Closing):
    """Streams that decode together. Made by `streamsink.Model.engine`.

    Streams are used like any other, each by one thread or task at a time: while one generates,
    others are fed. Of ``n_streams`` of them the cells are at hand; there may be more, whose cells
    are put into memory and brought back as they take turns. A stream that is closed, or dropped,
    gives up its place.

    A token is decoded as soon as it is yielded, and not, as alone, when more is asked for: so a
    policy that is changed between two tokens acts from the one after on.

    Parameters
    ----------
    hosts : Hosts
        The contexts, owned by the engine from here on.
    n_ctx : int
        Tokens that a token can attend to, in each stream.
    chunk : int, optional
        Most tokens of prompts in one step while other streams generate: more feed a prompt sooner,
        fewer keep the others going. By default these keep a quarter of their pace.
    """

    def __init__(self, hosts: Hosts, n_ctx: int, *, chunk: int | None = None) -> None:
        self.n_ctx = n_ctx
        self._pace = Pace(chunk)
        self._hosts = hosts
        self._seating = Seating(hosts)
        self._prefixes = Prefixes()
        self._inbox: SimpleQueue[Ticket | None] = SimpleQueue()
        self._members: list[Member] = []
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._answers: deque[Callable[[], object]] = deque()
        self._n_steps = 0
        self._closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="streamsink-engine", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        """How many streams there are, in one line."""
        if self._closed:
            return "<Engine, closed>"
        n = len(self._streams)
        return f"<Engine: {n} stream{'s' * (n != 1)}, n_ctx {self.n_ctx:,}>"

    @property
    def why(self) -> str:
        """Why the streams are laid out as they are, as a clause."""
        return self._hosts.why

    def stream(
        self,
        policy: SinkPolicy | None = None,
        *,
        prefix: Input | None = None,
        special: bool = False,
        on_evict: Callable[[Evicted], object] | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> Stream:
        """Open a stream.

        Parameters
        ----------
        policy : SinkPolicy, optional
            What to keep and what to evict; ``SinkPolicy()`` by default, and with a prefix one that
            pins it.
        prefix : str or sequence of int, optional
            What the stream begins with, as for `Stream.feed`. Of streams that begin alike, the
            first evaluates it, and the others take over its cells.
        special : bool, default False
            Read ``<|...|>`` in the prefix as control tokens.
        on_evict, on_event : callable, optional
            See `Stream`. They are called in the thread of whoever used the stream.

        Raises
        ------
        UsageError
            Policy or prefix do not fit ``n_ctx``.
        CapabilityError
            The model cannot stream, or not by the placement asked for in this layout.
        DecodeError, CacheError
            The prefix could not be evaluated.
        ClosedError
            After `close`.
        """
        if self._closed:
            raise ClosedError(CLOSED)
        slot = self._hosts.slot()
        stream = Stream(
            slot,
            policy or (SinkPolicy(n_keep=-1) if prefix is not None else SinkPolicy()),
            self.n_ctx,
            on_evict=on_evict,
            on_event=on_event,
            siblings=self._streams,
            runner=self.runner_of(slot),
        )
        if prefix is not None:
            try:
                self._prefixes.begin(stream, prefix, special=special)
            except BaseException:
                stream.close()
                raise
        return stream

    def runner_of(self, slot: Slot) -> partial[Member]:
        """What makes the runner of a stream in a slot of this engine."""
        return partial(Member, self, slot)

    def submit(self, ticket: Ticket) -> None:
        """Have a task run.

        Raises
        ------
        ClosedError
            After `close`.
        """
        with self._closing:
            if self._closed:
                raise ClosedError(CLOSED)
            self._inbox.put(ticket)

    def abandon(self, ticket: Ticket) -> None:
        """Have a task run for which nobody waits, if anybody runs any; takes no lock."""
        self._inbox.put(ticket)

    def wait(self) -> None:
        """Wait until the thread of a closed engine has ended."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def forget(self, member: Member) -> None:
        """Let go of a stream that is closed."""
        self._seating.forget(member)

    def close(self) -> None:
        """Close all streams and free the contexts; calls under way end with `ClosedError`."""
        with self._closing:
            was_closed, self._closed = self._closed, True
        if not was_closed:
            self._inbox.put(None)
        self.wait()
        for stream in list(self._streams):
            with suppress(StreamsinkError):
                stream.close()
            self._streams.discard(stream)
        self._hosts.close()

    # -- the thread -----------------------------------------------------------------------------

    def _serve(self) -> None:
        why: BaseException = ClosedError(CLOSED)
        try:
            while self._receive():
                self._step()
        except BaseException as error:  # nobody is to wait for a thread that has ended
            why = error
            with self._closing:
                self._closed = True
        for member in self._members:
            member.end(why, self._answers)
        while True:
            try:
                ticket = self._inbox.get_nowait()
            except Empty:
                break
            if ticket:
                self._answers.append(partial(ticket.tell, Outcome(error=why)))
        self._answer()

    def _receive(self) -> bool:
        """Take in what was submitted, and wait for it where nothing else is to be done."""
        waits = not self._members
        if waits:
            self._answer()
        while True:
            try:
                ticket = self._inbox.get(block=waits)
            except Empty:
                return True
            if ticket is None:
                return False
            waits = False
            member = ticket.member
            member.begin(ticket)
            if member not in self._members:
                self._members.append(member)

    def _step(self) -> None:
        """Carry out one work of each stream that has one."""
        self._n_steps += 1
        self._seating.begin_step()
        self._share_out()
        # Who comes first gets what there is too little of.
        first = self._n_steps % len(self._members)
        wanted: dict[Host, list[Member]] = {}
        for member in self._members[first:] + self._members[:first]:
            work = self._next_work(member)
            if work is not None:
                host = member.slot.host
                assert host is not None
                wanted.setdefault(host, []).append(member)
        # The others' callers go on while llama.cpp works.
        self._answer()
        self._seating.has_decoded = bool(wanted)
        sizes = [member.work.n_tokens for members in wanted.values() for member in members]
        n_fed = sum(n for n in sizes if n > 1)
        start = time.perf_counter()
        for host, members in wanted.items():
            self._decode(host, members)
        if sizes:
            self._pace.took(time.perf_counter() - start, n_fed, others=1 in sizes)
        self._members = [one for one in self._members if one.is_busy]

    def _share_out(self) -> None:
        """Settle how many tokens of a prompt each stream may bring into the next decode."""
        n_feeding = sum(not member.is_generating for member in self._members)
        n_others = len(self._members) - n_feeding
        for member in self._members:
            host = member.slot.host
            most: int | None = None
            if host is not None and len(self._members) > 1:
                most = host.n_batch - n_others
                if n_others:
                    most = min(most, self._pace.chunk)
                most = max(1, most // max(1, n_feeding))
            member.slot.share = most

    def _next_work(self, member: Member) -> Work | None:
        """Let a task go on until it asks for a decode; None where it has ended, or has to wait."""
        while True:
            request = member.request(self._answers)
            if request is None:
                self._seating.comes_home(member)
                return None
            if not self._seating.seats(member):
                if not member.is_cancelled:
                    return None
                self._seating.stops_waiting(member)
                member.answer_error(Stopped())
            elif isinstance(request, Ask):
                if not self._grant(member, request):
                    return None
            elif request.n_tokens:
                return request
            else:
                try:
                    carry_out(request)
                    member.answer(True)
                except BaseException as error:
                    member.answer_error(error)

    def _grant(self, member: Member, request: Ask) -> bool:
        """Answer a wish; False where it is to wait."""
        seating, granted = self._seating, None
        if isinstance(request, AskLanes):
            granted = seating.lanes_for(member)
        elif isinstance(request, AskAside):
            granted = seating.scratch_for(member)
        elif seating.may_give_out(member):
            granted = True
        if granted is None:
            return False
        member.answer(granted)
        return True

    def _decode(self, host: Host, members: Sequence[Member]) -> None:
        """Carry out works that end with a decode in the same context."""
        together: list[Member] = []
        room = host.n_batch
        for member in members:
            work = member.work
            if member.is_suspect or host.n_places == 1:
                self._alone(member)
            elif work.n_tokens <= room:  # the others keep their work for the next step
                room -= work.n_tokens
                together.append(member)
        if len(together) == 1:
            self._alone(together[0])
        elif together:
            self._together(host, together)

    def _alone(self, member: Member) -> None:
        try:
            carry_out(member.work)
            member.answer(True)
        except BaseException as error:
            self._is_torn(error, member.slot.host)
            member.answer_error(error)
        member.is_suspect = False
        self._go_on([member])

    def _go_on(self, members: Sequence[Member]) -> None:
        """Let tasks see to the rows of logits that a decode has left, before there is another."""
        for member in members:
            if member.request(self._answers) is None:
                self._seating.comes_home(member)

    def _together(self, host: Host, members: Sequence[Member]) -> None:
        begun, parts = [], []
        for member in members:
            try:
                part = member.work.begin()
                assert part
            except BaseException as error:
                self._put_right(member, error)
                continue
            begun.append(member)
            parts.append((member.slot, part))
        try:
            if parts:
                host.decode(parts)
        except BaseException as error:
            # Nobody knows whose fault it was: next time each is carried out alone.
            for member in begun:
                self._put_right(member, error, is_suspect=True)
            self._is_torn(error, host)
        else:
            for member in begun:
                member.work.commit()
                member.answer(True)
            self._go_on(begun)

    def _put_right(self, member: Member, error: BaseException, *, is_suspect: bool = False) -> None:
        try:
            member.work.put_right(error)
        except BaseException as worse:
            error, is_suspect = worse, False
        if is_suspect:
            member.is_suspect = True
            member.answer(False)
        else:
            member.answer_error(error)

    def _is_torn(self, error: BaseException, host: Host | None) -> None:
        """Where a K-shift has failed, the keys of all streams in the context are in doubt."""
        if isinstance(error, TornError) and error.everywhere:
            self._seating.lose_cells(host)

    def _answer(self) -> None:
        while self._answers:
            self._answers.popleft()()
