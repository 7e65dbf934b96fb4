"""What a call on a stream is while it is under way: a task, which asks for one step after another.

A task is a generator. It yields a `Work`, is sent whether that was done, and returns what the call
returns; an error of its work is raised where it was asked for. It neither waits nor decodes:
whoever runs it does, one task alone in the caller's thread (`Alone`), or many of them side by side
with their rows in one batch (`streamsink.engine.engine`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar

from streamsink.engine.context import Context, Part

T = TypeVar("T")
P = ParamSpec("P")
S = TypeVar("S", bound="Caller")


class Work(Protocol):
    """A step that is to be carried out: operations on cells, then perhaps a decode."""

    @property
    def context(self) -> Context:
        """Whose cells it acts on."""

    @property
    def n_tokens(self) -> int:
        """Tokens that are to be decoded; 0 where there is no decode."""

    def begin(self) -> Part | None:
        """Note that it is under way and do its operations; return what is to be decoded then."""

    def commit(self) -> None:
        """Note that all of it is done."""

    def put_right(self, error: BaseException) -> None:
        """Put right what is left after `begin` or the decode has raised."""


class Ask:
    """What a task may wish for instead of having a work done.

    Parameters
    ----------
    context : Context
        The stream's.
    """

    def __init__(self, context: Context) -> None:
        self.context = context


class AskLanes(Ask):
    """To have lanes; answered with how many there are."""


class AskAside(Ask):
    """To be where a head can be evaluated beside the stream; answered whether that is so.

    In a pool of a stream's own there is no `SCRATCH`.
    """


class AskPlace(Ask):
    """To have the cells at hand, no key waiting to be rotated: for what is no plan."""


Request: TypeAlias = Work | Ask
Task: TypeAlias = Generator[Request, Any, T]


class Runner(Protocol):
    """Who runs the tasks of one stream, one at a time."""

    @property
    def why(self) -> str:
        """Why the stream's cells are where they are, as a clause; empty where it is alone."""

    def run(self, task: Task[T]) -> T:
        """Run a task to its end, and give back what it returns."""

    async def arun(self, task: Task[T]) -> T:
        """The same for an event loop, which is free meanwhile."""

    def cancel(self) -> None:
        """Let the task that is under way end where nothing is half done."""

    def look(self, look: Callable[[], T]) -> T:
        """Call something that decodes nothing, at a moment when no task is at work."""

    def pause(self) -> None:
        """Called by a task where nothing is half done: it may raise, to end the task there."""

    def go_ahead(self) -> None:
        """Called by a task: what it leaves pending may be decoded before anybody asks for it."""

    def leave(self, free: Callable[[], object]) -> None:
        """Free what the stream has: it is closed."""

    def joined_by(self, context: Context) -> MakeRunner:
        """Who runs the tasks of a stream that is forked off."""


class Stepper(Protocol):
    """What a runner may ask of a stream by itself."""

    @property
    def n_pending(self) -> int:
        """Tokens taken in and not decoded yet."""

    def advance(self) -> Task[None]:
        """Decode what is pending."""

    def prepare_move(self) -> None:
        """Leave no cells but the stream's own sequence: that is about to be taken elsewhere."""

    def lose_cells(self) -> None:
        """Note that all cells are gone: the tokens are evaluated anew before the stream goes on."""


MakeRunner: TypeAlias = Callable[[Stepper, Callable[[], object]], Runner]
"""Makes a runner: of a stream's steps, and of a function that lets signals act for the caller."""


class Caller(Protocol):
    """Whose calls are tasks."""

    def _do(self, task: Task[T]) -> T:
        """Run a task, no other being under way on the stream."""


def call(body: Callable[Concatenate[S, P], Task[T]]) -> Callable[Concatenate[S, P], T]:
    """Make a method that is a task one that returns what the task does, once it has ended."""

    @wraps(body)
    def called(self: S, /, *args: P.args, **given: P.kwargs) -> T:
        return self._do(body(self, *args, **given))

    return called


def quick(body: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Make a method in which nothing is decoded a task too: a stream does one thing at a time."""

    @call
    @wraps(body)
    def task(self: S, /, *args: P.args, **given: P.kwargs) -> Task[T]:
        yield from ()
        return body(self, *args, **given)

    return task


def answered(request: Request) -> Any:
    """Do alone what a task asks for, and return what it is to be sent."""
    if isinstance(request, AskLanes):
        return request.context.n_lanes
    if not isinstance(request, Ask):
        carry_out(request)
    return True


def carry_out(work: Work) -> None:
    """Do one work alone."""
    try:
        part = work.begin()
        if part is not None:
            context, (rows, outputs) = work.context, part
            if rows.lanes:
                context.decode_lanes(rows.tokens, rows.pos, rows.lanes, outputs)
            else:
                context.decode(rows.tokens, rows.pos, rows.seq, outputs)
    except BaseException as error:
        work.put_right(error)
        raise
    work.commit()


class Alone:
    """Runs the tasks of one stream, which has a context of its own, in the caller's thread.

    Parameters
    ----------
    driver : Stepper
        The stream's; it does nothing by itself.
    deliver : callable
        Lets signals act that have come meanwhile.
    """

    def __init__(self, driver: Stepper, deliver: Callable[[], object]) -> None:
        self._deliver = deliver

    @property
    def why(self) -> str:
        """Nothing: it is alone."""
        return ""

    def pause(self) -> None:
        """Let signals act."""
        self._deliver()

    async def arun(self, task: Task[T]) -> T:
        """Run it in another thread."""
        return await asyncio.to_thread(self.run, task)

    def cancel(self) -> None:
        """Do nothing: what is under way is waited for."""

    def look(self, look: Callable[[], T]) -> T:
        """Call it: nobody else is at work."""
        return look()

    def go_ahead(self) -> None:
        """Do nothing: nobody works between two calls."""

    def leave(self, free: Callable[[], object]) -> None:
        """Free it."""
        free()

    def joined_by(self, context: Context) -> MakeRunner:
        """One like this: a fork has a context of its own."""
        return Alone

    def run(self, task: Task[T]) -> T:
        """Do what a task asks for, step by step."""
        answer: Any = None
        resume: Callable[[Any], Request] = task.send
        try:
            while True:
                try:
                    request = resume(answer)
                except StopIteration as end:
                    result: T = end.value
                    return result
                resume = task.send
                try:
                    answer = answered(request)
                except BaseException as error:
                    resume, answer = task.throw, error
        finally:
            task.close()  # of one that was cut off, what it would clean up is cleaned up now
