"""A chat, where it is saved, and what is said about it: the same for a terminal and for a pipe."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeAlias

from streamsink.cli import terminal
from streamsink.cli.life import reading
from streamsink.cli.talk.keeping import Keeping
from streamsink.cli.talk.speaking import InMarkdown, Plain, Show, Silent, Spoken, speak

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from streamsink.chat.chat import Chat
    from streamsink.cli.talk.speaking import Begin
    from streamsink.cli.terminal import Write
    from streamsink.core.events import Event
    from streamsink.core.policy import SinkPolicy
    from streamsink.engine.stream import Stream
    from streamsink.model import Model
    from streamsink.session import shelf

    OpenOther: TypeAlias = Callable[
        [str, SinkPolicy, int], AbstractContextManager[tuple[Model, Stream]]
    ]
    """Opens another model, by name, with a stream under a policy and a context."""

LEAST_WINDOW = 64
"""Tokens beside what is pinned below which a chat is told that there are too few."""


class Talk:
    """A chat in the command line.

    Parameters
    ----------
    chat : Chat
        The chat, perhaps out of a session.
    model : Model
        Its model.
    cuts : list of Event
        Fills with the evictions that cut a turn in two.
    kept : shelf.Kept or None
        Session file that is written after every turn.
    open_other : callable
        Opens another model.
    markdown, thoughts, silent, verbose : bool
        Whether answers are drawn as Markdown, thoughts shown, nothing shown at all, and speeds
        told.
    once : bool
        Whether there is one question, and no command after it.
    """

    def __init__(
        self,
        chat: Chat,
        model: Model,
        cuts: list[Event],
        kept: shelf.Kept | None,
        open_other: OpenOther,
        *,
        markdown: bool = False,
        thoughts: bool = True,
        silent: bool = False,
        verbose: bool = False,
        once: bool = False,
    ) -> None:
        self.chat = chat
        self.model = model
        self.keeping = Keeping(chat, kept)
        self.markdown = markdown
        self.thoughts = thoughts
        self.verbose = verbose
        self._silent = silent
        self._once = once
        self._cuts = cuts
        self._open_other = open_other
        self._others = ExitStack()
        self._window_told: int | None = None
        self.spoken: Spoken | None = None
        """The newest answer that was whole."""
        self.n_retries = 0

    def close(self) -> None:
        """Let others have the session file, once it is written, and close other models.

        Raises
        ------
        SessionError
            The file cannot be written.
        """
        with self._others:
            self.keeping.let_go()

    # -- answers --------------------------------------------------------------------------------

    def say(self, text: str, write: Write) -> Spoken:
        """Ask something, and show the answer."""
        return self.answer(lambda: self.chat.say(text), write)

    def answer(self, begin: Begin, write: Write, began: str = "") -> Spoken:
        """Show an answer, save it, and tell what has to be told of it.

        Parameters
        ----------
        begin : callable
            Takes in what is asked, and begins the answer.
        write : Write
            Where remarks go.
        began : str
            What there was of the answer before.
        """
        spoken = speak(
            self.chat,
            begin,
            self._show(),
            began=began,
            taken=lambda: self._tell_what_is_seen(write),
        )
        self.spoken = spoken
        # Saved before the line ends: what stands there whole is in the file.
        self.keeping.save()
        if not self._silent:
            terminal.out("\n")
        if spoken.finish == "length":
            n_tokens = self.chat.max_tokens or spoken.n_said
            then = "--max-tokens allows more" if self._once else "/continue goes on"
            write(f"(cut at {n_tokens:,} tokens: {then})\n")
        elif spoken.finish == "grammar":
            write("(the grammar lets nothing follow)\n")
        elif not spoken.text.strip() and not began:
            write("(the model had nothing to say)\n")
        if self.verbose:
            write(f"({spoken.speed})\n", dim=True)
        self.tell_cuts(write)
        return spoken

    def _show(self) -> Show:
        if self._silent:
            return Silent()
        if self.markdown and terminal.is_terminal():
            return InMarkdown(thoughts=self.thoughts)
        return Plain(thoughts=self.thoughts)

    # -- what has to be told --------------------------------------------------------------------

    def greet(self, write: Write) -> None:
        """Tell what came out of a session, if this is one."""
        restored = self.chat.stream.restored
        if restored is None:
            return
        n = self.chat.conversation().n_turns
        write(f"going on after {n:,} turn{'s' * (n != 1)}; /history shows them\n")
        if restored.why:
            write(
                f"{restored.n_evaluated:,} visible tokens were evaluated again, and remember "
                f"nothing of what was evicted: {terminal.line(restored.why)}\n"
            )

    def _tell_what_is_seen(self, write: Write) -> None:
        """Tell when the window is too small for what is said in it."""
        chat = self.chat
        stats, n_ctx = chat.stream.stats, chat.stream.n_ctx
        window = n_ctx - stats.pinned
        if window < LEAST_WINDOW and window != self._window_told:
            self._window_told = window
            write(
                f"(of {n_ctx} tokens of context {stats.pinned} are pinned, and {window} are left "
                "to talk in: raise --ctx, or pin less by --keep or a shorter --system)\n"
            )
        *_, question, _ = chat.messages
        if chat.memory(question) in ("cut", "forgotten"):
            seen = sum(
                max(0, min(stop, question.stop) - max(start, question.start))
                for start, stop in stats.sees
            )
            write(
                f"(your message is longer than the window: only its last {seen:,} of "
                f"{question.stop - question.start:,} tokens are seen)\n"
            )

    def tell_cuts(self, write: Write) -> None:
        """Tell of a turn or a sentence that was cut in two."""
        if self._cuts:
            n_tokens = sum(event.n_tokens for event in self._cuts)
            self._cuts.clear()
            what = self.chat.stream.policy.n_discard
            write(f"({n_tokens:,} tokens of one {what} were cut off: it alone fills the window)\n")

    # -- another model --------------------------------------------------------------------------

    def change_model(self, name: str) -> int:
        """Go on with another model; return how many tokens it has evaluated.

        Raises
        ------
        StreamsinkError
            It cannot be loaded, or not take the conversation in; nothing has changed.
        """
        from streamsink.chat.template import ChatTemplate

        stream = self.chat.stream
        with ExitStack() as opened:
            model, other = opened.enter_context(self._open_other(name, stream.policy, stream.n_ctx))
            template = ChatTemplate(model.chat_template, model.special_texts)
            with reading(other):
                n_evaluated = self.chat.move_to(other, template)
            before, self._others = self._others, opened.pop_all()
            self.model = model
        before.close()
        self.keeping.save()
        return n_evaluated
