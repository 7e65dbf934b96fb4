"""One stream of an engine: its calls, in the threads of those who call and in the engine's own."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from streamsink.engine.context import Context, Slot
from streamsink.engine.task import Ask, MakeRunner, Request, Stepper, T, Task, Work
from streamsink.errors import ClosedError

POLL = 0.05
"""Seconds after which a main thread that waits looks for signals."""


class Stopped(BaseException):
    """Ends a task whose caller does not wait for it any more."""


class Outcome(NamedTuple):
    """What a task has come to."""

    result: Any = None
    error: BaseException | None = None

    def get(self) -> Any:
        """Return what it returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self.result


class Ticket:
    """A task handed in.

    Parameters
    ----------
    member : Member
        Whose it is.
    task : Task
        What is to be done.
    tell : callable
        Told the outcome, in the engine's thread.

    Attributes
    ----------
    is_cancelled : bool
        Whether it is to end where nothing is half done.
    """

    def __init__(self, member: Member, task: Task[Any], tell: Callable[[Outcome], object]) -> None:
        self.member = member
        self.task = task
        self.tell = tell
        self.is_cancelled = False


class Crew(Protocol):
    """What a member needs of its engine."""

    @property
    def why(self) -> str:
        """Why streams are laid out as they are, as a clause."""

    def submit(self, ticket: Ticket) -> None:
        """Have a task run; raises `ClosedError` once there is nobody who would."""

    def wait(self) -> None:
        """Wait until a closed engine's thread has ended."""

    def abandon(self, ticket: Ticket) -> None:
        """Have a task run for which nobody waits, if anybody runs any; takes no lock."""

    def forget(self, member: Member) -> None:
        """Let go of a member, in the engine's thread or after that has ended."""

    def runner_of(self, slot: Slot) -> MakeRunner:
        """What makes the runner of another stream."""


class Member:
    """Runs the tasks of one stream in an engine; implements `streamsink.engine.task.Runner`.

    Parameters
    ----------
    crew : Crew
        The engine.
    slot : Slot
        The stream's cells.
    driver : Stepper
        What the stream does with its plans.
    deliver : bound method
        Lets signals act in the thread that has called. It is the stream's, of which a member keeps
        nothing alive: a stream that is dropped gives up its place.

    Attributes
    ----------
    is_suspect : bool
        Whether its next work is to be carried out alone: one in which it took part has failed.
    is_generating : bool
        Whether it makes tokens one by one.
    """

    def __init__(
        self, crew: Crew, slot: Slot, driver: Stepper, deliver: Callable[[], object]
    ) -> None:
        self.slot = slot
        self.driver = driver
        self.is_suspect = False
        self.is_generating = False
        self._crew = crew
        self._deliver = weakref.WeakMethod(deliver, self._is_dropped)
        self._ticket: Ticket | None = None
        # What follows is the engine's thread's alone.
        self._waiting: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._task: Task[Any] | None = None
        self._resume: Callable[[Any], Request] | None = None
        self._given: Any = None
        self._request: Request | None = None
        self._goes_ahead = False

    @property
    def why(self) -> str:
        """Why the stream's cells are where they are, as a clause."""
        return self._crew.why

    # -- for those who call ---------------------------------------------------------------------

    def run(self, task: Task[T]) -> T:
        """Have a task run, and wait for its end; signals act while it does not."""
        replies: SimpleQueue[Outcome] = SimpleQueue()
        ticket = self._submit(task, replies.put)
        is_main = threading.current_thread() is threading.main_thread()
        while True:
            try:
                result: T = replies.get(timeout=POLL if is_main else None).get()
                return result
            except Empty:
                deliver = self._deliver()
                try:
                    if deliver:
                        deliver()
                except BaseException:
                    ticket.is_cancelled = True
                    replies.get()
                    raise

    async def arun(self, task: Task[T]) -> T:
        """Have a task run, and await its end."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        def tell(outcome: Outcome) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, outcome)

        self._submit(task, tell)
        result: T = (await future).get()
        return result

    def _submit(self, task: Task[Any], tell: Callable[[Outcome], object]) -> Ticket:
        ticket = self._ticket = Ticket(self, task, tell)
        self._crew.submit(ticket)
        return ticket

    def cancel(self) -> None:
        """Let the task that is under way end where nothing is half done."""
        if self._ticket:
            self._ticket.is_cancelled = True

    def look(self, look: Callable[[], T]) -> T:
        """Call something between two steps."""

        def task() -> Task[T]:
            yield from ()
            return look()

        try:
            return self.run(task())
        except ClosedError:
            self._crew.wait()
            return look()

    def leave(self, free: Callable[[], object]) -> None:
        """Free what the stream has, for good."""

        def free_all() -> None:
            free()
            self._crew.forget(self)

        self.look(free_all)

    def _is_dropped(self, _: object) -> None:
        def task() -> Task[None]:
            yield from ()
            self.slot.close()
            self._crew.forget(self)

        # Garbage is collected anywhere, in the midst of whatever a thread does.
        self._crew.abandon(Ticket(self, task(), lambda outcome: None))

    # -- for its tasks --------------------------------------------------------------------------

    def pause(self) -> None:
        """End the task here if nobody waits for it any more."""
        if self.is_cancelled:
            raise Stopped

    def go_ahead(self) -> None:
        """Decode what the task leaves pending, though nobody has asked for more yet."""
        self._goes_ahead = True

    def joined_by(self, context: Context) -> MakeRunner:
        """Another member of the same engine."""
        slot: Any = context
        return self._crew.runner_of(slot)

    # -- for the engine -------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether there is something to be done."""
        return self._task is not None or bool(self._waiting) or self._goes_ahead

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for its task any more."""
        return self._running is not None and self._running.is_cancelled

    @property
    def work(self) -> Work:
        """The work that it waits for."""
        request: Any = self._request
        work: Work = request
        return work

    def begin(self, ticket: Ticket) -> None:
        """Take in a task."""
        self._waiting.append(ticket)
        self._goes_ahead = False  # the task does it, if it is to be done

    def request(self, answers: deque[Callable[[], object]]) -> Request | None:
        """What it waits for; None where nothing is to be done.

        Parameters
        ----------
        answers : deque
            Receives calls that tell outcomes.
        """
        while self._request is None:
            if self._task is None and not self._start():
                return None
            assert self._resume
            try:
                self._request = self._resume(self._given)
            except StopIteration as end:
                self._end(Outcome(end.value), answers)
            except BaseException as error:
                self._end(Outcome(error=error), answers)
        return self._request

    def answer(self, given: Any) -> None:
        """Let the task go on with an answer to its request."""
        assert self._task is not None
        self._request, self._resume, self._given = None, self._task.send, given

    def answer_error(self, error: BaseException) -> None:
        """Raise an error in the task, where it made its request."""
        assert self._task is not None
        self._request, self._resume, self._given = None, self._task.throw, error

    def loses_place(self) -> None:
        """Put the stream's cells into memory; a work that was planned is to be planned anew."""
        self.driver.prepare_move()
        self._plans_anew()

    def loses_cells(self) -> None:
        """Note that the stream's cells are gone."""
        self.driver.lose_cells()
        self._plans_anew()

    def _plans_anew(self) -> None:
        if self._request is not None and not isinstance(self._request, Ask):
            self.answer(False)

    def end(self, error: BaseException, answers: deque[Callable[[], object]]) -> None:
        """End all that is under way."""
        if self._task is not None:
            self._task.close()
            self._end(Outcome(error=error), answers)
        while self._waiting:
            answers.append(partial(self._waiting.popleft().tell, Outcome(error=error)))
        self._goes_ahead = False

    def _start(self) -> bool:
        if self._waiting:
            self._running = self._waiting.popleft()
            self._task = self._running.task
        elif self._goes_ahead:
            self._goes_ahead = False
            self._task = self.driver.advance()
        else:
            return False
        self._resume, self._given = self._task.send, None
        return True

    def _end(self, outcome: Outcome, answers: deque[Callable[[], object]]) -> None:
        self._task = self._resume = self._request = None
        # What went ahead and failed will fail again for whoever asks for it.
        if self._running:
            answers.append(partial(self._running.tell, outcome))
            self._running = None
            self.is_generating = self._goes_ahead
