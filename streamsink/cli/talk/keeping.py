"""Where a conversation is saved: nowhere yet, or in a session file that nobody else writes.

Nothing that was saved is lost by what a chat does later: what else stands in a file that is to be
written is set aside under a name of its own, and that is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from streamsink import session
from streamsink.cli import terminal
from streamsink.errors import SessionError, UsageError
from streamsink.session import shelf
from streamsink.session.saver import Saver
from streamsink.system.memory import available_bytes

if TYPE_CHECKING:
    from streamsink.chat.chat import Chat
    from streamsink.engine.saving import Capture


ROOM = 0.5
"""Part of the free memory that copies of the cells may take that wait to be written."""


class Keeping:
    """A chat and its session file.

    Parameters
    ----------
    chat : Chat
        The chat.
    kept : shelf.Kept or None
        The file, which is the chat's own until `let_go`.
    aside : bool
        Whether `save` writes while somebody reads or types; else it ends when all is on the disk.
    """

    def __init__(self, chat: Chat, kept: shelf.Kept | None, *, aside: bool = False) -> None:
        self.aside = aside
        self._saver = Saver()
        self._chat = chat
        # File and lock are one value, so that nothing can come between their change.
        self._kept = kept
        self._seen = kept.found if kept else None
        self._n_bytes = 0

    def let_go(self) -> None:
        """Let others have the file, once it is written.

        Raises
        ------
        SessionError
            As for `save`.
        """
        try:
            self._saver.close()
        except KeyboardInterrupt:  # it is still being written: the lock goes with the process
            raise
        except BaseException:
            self._release()
            raise
        self._release()

    def _release(self) -> None:
        if self._kept:
            self._kept.release()

    def check(self) -> None:
        """Raise what went wrong with a file that was written aside, once."""
        self._saver.check()

    def save(self) -> Path | None:
        """Write the file, if there is one; return it.

        Raises
        ------
        SessionError
            It cannot be written, or somebody else has taken it since its lock was removed; or it
            is written, and what somebody else wrote into it is set aside. Of a file that is
            written aside, `check` and whatever comes next raise it.
        """
        if self._kept is None:
            return None
        if self._saver.is_busy and not self._has_room():
            self._saver.wait()
        captured = self._chat.capture()
        self._saver.give(lambda: self._write(captured))
        if not self.aside:
            self._saver.wait()
        return self._kept.path

    def save_now(self) -> Path | None:
        """As `save`, and all is on the disk when it ends."""
        path = self.save()
        self._saver.wait()
        return path

    def _has_room(self) -> bool:
        """Whether memory has room for one more copy of the cells beside one that is written."""
        return 2 * self._n_bytes < ROOM * available_bytes()

    def _write(self, captured: Capture) -> None:
        assert self._kept
        self._n_bytes = len(captured.cells or b"")
        self._kept = kept = self._kept.renew()
        # A program that asks for no lock, or another machine: not every file system tells it.
        others = kept.set_aside() if kept.stamp() not in (None, self._seen) else None
        captured.write(kept.path)
        self._seen = kept.stamp()
        if others:
            raise SessionError(
                f"the session {kept.path} was written by somebody else meanwhile: that is kept as "
                f"{shelf.name_of(others)}, and this conversation is saved"
            )

    def save_as(self, path: Path) -> str:
        """Save into a file; the first is kept from then on, others are copies.

        Returns
        -------
        str
            What to tell.

        Raises
        ------
        SessionError
            Another chat has it, or it cannot be written.
        UsageError
            Something else than a session is there.
        """
        self._saver.wait()
        if self._kept and self._kept.is_at(path):
            return f"saved: {terminal.line(str(self.save_now()))}\n"
        taken = shelf.take(path)
        try:
            aside = None if self._may_overwrite(taken.path) else taken.set_aside()
            self._chat.save(taken.path)
            if self._kept is None:
                self._kept, self._seen = taken, taken.stamp()
        finally:
            if self._kept is not taken:
                taken.release()
        kept = f"what was there is kept as {_name(aside)}\n" if aside else ""
        always = ", and will be after every turn" if self._kept is taken else ""
        return f"saved{always}: {terminal.line(str(taken.path))}\n{kept}"

    def load(self, path: Path, tell: Callable[[], object]) -> None:
        """Go on with another session; what was said until now has to be saved somewhere.

        Tokens, turns and file change together or not at all; a Ctrl-C that comes when they have
        waits until ``tell`` has said so.

        Raises
        ------
        UsageError
            What was said is saved nowhere.
        SessionError
            Another chat has it, or it cannot be read; nothing has changed.
        """
        self._saver.wait()
        if self._has_begun and not self._kept:
            raise UsageError("what was said is saved nowhere: /save NAME, or else /reset, first")
        taken = self._kept if self._kept and self._kept.is_at(path) else shelf.take(path)
        try:
            if taken is not self._kept:
                self.save_now()
            seen = taken.stamp()
            with session.SessionFile(taken.path) as file:
                saved, cells, logits = file.session, file.cells(), file.logits()
            with self._chat.stream.transaction():
                self._chat.restore(saved, cells, logits)
                self._kept, self._seen, taken = taken, seen, self._kept or taken
                tell()
        finally:
            if taken is not self._kept:  # the one before, or the one that could not be loaded
                taken.release()

    def reset(self) -> str:
        """Begin anew, in a file of its own if this one is saved; return what to tell.

        Raises
        ------
        SessionError
            What was said cannot be saved, or nothing new beside it: nothing has changed.
        """
        self._saver.wait()
        if not (self._has_begun and self._kept):
            told = "; what was said was saved nowhere" if self._has_begun else ""
            self._chat.reset()
            self.save()
            return f"begun anew{told}\n"
        self.save_now()
        fresh = self._kept.beside()
        try:
            with self._chat.stream.transaction():
                self._chat.reset()
                self._kept, self._seen, fresh = fresh, None, self._kept
        finally:
            fresh.release()  # the one before, or the new one that is not needed
        self.save()
        return f"begun anew as {self.name}; what was said stays in {_name(fresh.path)}\n"

    @property
    def name(self) -> str:
        """What the session is called; '' if there is none."""
        return _name(self._kept.path) if self._kept else ""

    @property
    def _has_begun(self) -> bool:
        return bool(self._chat.messages) or self._chat.stream.stats.index > 0

    def _may_overwrite(self, path: Path) -> bool:
        """Whether a file holds nothing but what was said in this conversation too.

        Raises
        ------
        UsageError
            It is no session: somebody's own file.
        """
        if not os.path.exists(path):
            return True
        try:
            conversation = session.read(path).conversation
        except SessionError as error:
            raise UsageError(f"{path} is not overwritten: {error}; take another name") from None
        if conversation is None:
            return False
        mine, there = (
            [(turn.role, turn.text) for turn in turns[: len(conversation.messages)]]
            for turns in (self._chat.messages, conversation.messages)
        )
        return mine == there


def _name(path: Path) -> str:
    return terminal.line(shelf.name_of(path))
