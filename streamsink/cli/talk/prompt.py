"""The line that somebody types into: history, completion, many lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from streamsink.cli.talk.messages import MANY_LINES, is_command
from streamsink.cli.talk.table import COMMANDS, named
from streamsink.cli.terminal import line
from streamsink.system.folders import data_dir
from streamsink.system.reading import typed

if TYPE_CHECKING:
    from streamsink.cli.talk.talk import Talk


class CommandCompleter(Completer):
    """Completes commands, each with what it does, and their arguments.

    Parameters
    ----------
    talk : Talk
        The chat whose commands they are.
    """

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def get_completions(self, document: Document, _: CompleteEvent) -> Iterable[Completion]:
        """Words that may stand where the cursor is."""
        text = document.text_before_cursor
        if not is_command(text) or "\n" in text:
            return
        name, blank, argument = text[1:].partition(" ")
        if not blank:
            for one in COMMANDS:
                for known in (one.name, *one.others):
                    if known.startswith(name):
                        yield Completion(
                            f"/{known}",
                            -len(text),
                            display=f"/{known} {one.argument}",
                            display_meta=one.says,
                        )
            return
        command = named(name)
        if command is None:
            return
        *before, last = argument.split(" ")
        values = command.values(self._talk, [word for word in before if word])
        for word, says in values.items():
            if word.startswith(last):
                yield Completion(word, -len(last), display=line(word), display_meta=line(says))


class Prompt:
    """Asks for the next message.

    Parameters
    ----------
    talk : Talk
        The chat.
    status : callable
        Gives the line at the bottom.
    """

    def __init__(self, talk: Talk, status: Callable[[], str]) -> None:
        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        history = data_dir() / "history"
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)

        @Condition
        def is_begun() -> bool:
            return is_command(self._session.app.current_buffer.text)

        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)),
            completer=CommandCompleter(talk),
            complete_while_typing=is_begun,
            key_bindings=keys,
            bottom_toolbar=status,
            enable_open_in_editor=True,
        )

    def ask(self, begun: str = "") -> str:
        """The next message; ``begun`` stands in the line already.

        Raises
        ------
        KeyboardInterrupt, EOFError
            Ctrl-C, Ctrl-D.
        """
        text = typed(self._session.prompt("> ", default=begun))
        opened = text.lstrip().removeprefix(MANY_LINES)
        if opened == text.lstrip():
            return text
        lines = [opened]
        while MANY_LINES not in lines[-1]:
            lines.append(typed(self._session.prompt("… ")))
        before, _, after = lines[-1].partition(MANY_LINES)
        return "\n".join([*lines[:-1], before]).strip("\n") + after
