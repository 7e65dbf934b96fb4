"""Commands that take turns back, answer them anew, or go on with them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streamsink.cli.talk.commands import After, command
from streamsink.cli.talk.settings import SETTINGS, find, read
from streamsink.errors import UsageError

if TYPE_CHECKING:
    from streamsink.cli.talk.talk import Talk
    from streamsink.cli.terminal import Write
    from streamsink.core.sampling import Sampling

_ANSWERS = ("max_tokens", "stop")


def words(text: str) -> list[str]:
    """The words of an argument, quoted ones whole.

    Raises
    ------
    UsageError
        A quote has no end.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text} is not possible: {str(error).lower()}") from None


def settings(talk: Talk, before: list[str]) -> dict[str, str]:
    """Names of settings, and the values of one, to be completed."""
    if len(before) % 2 == 0:
        return {one.name: one.says for one in SETTINGS}
    try:
        setting = find(before[-1])
    except UsageError:
        return {}
    return {**dict.fromkeys(setting.values, ""), setting.of(talk.chat): "as it is"}


def sampling_settings(talk: Talk, before: list[str]) -> dict[str, str]:
    """As `settings`, without those that are no matter of one answer."""
    found = settings(talk, before)
    if len(before) % 2:
        return found
    return {one.name: one.says for one in SETTINGS if _is_of_an_answer(talk, one.python)}


@command("retry", "[NAME VALUE]…", "answer the last question anew; with other settings, this once",
         "regenerate", values=sampling_settings, tells=True)  # fmt: skip
def _retry(talk: Talk, argument: str, write: Write) -> None:
    chat = talk.chat
    asked = read(words(argument))
    if others := [name for name in asked if not _is_of_an_answer(talk, name)]:
        raise UsageError(f"/retry takes no {others[0]}: /set changes it for good")
    before = chat.messages[-1].text if chat.messages else ""
    how = {name: asked.pop(name) for name in _ANSWERS if name in asked}
    sampling = replace(chat.sampling, **asked)
    if "seed" not in asked and sampling.seed is not None:
        sampling = _with_another_seed(talk, sampling, write)
    talk.answer(lambda: chat.retry(sampling=sampling, **how), write)
    if before and chat.messages[-1].text == before:
        write("(the same answer again: /retry temp 1 may give another)\n")


@command("continue", "", "go on with an answer that was cut off", "go", tells=True)
def _continue(talk: Talk, _: str, write: Write) -> None:
    chat = talk.chat
    begun = chat.messages[-1].text if chat.messages else ""
    talk.answer(chat.go_on, write, begun)


@command("undo", "", "take back the last question and its answer")
def _undo(talk: Talk, _: str, write: Write) -> None:
    talk.chat.undo()
    talk.keeping.save()
    n = talk.chat.conversation().n_turns
    write(f"taken back; {n:,} turn{'s' * (n != 1)} left\n")


@command("edit", "[TEXT]", "ask the last question otherwise", tells=True)
def _edit(talk: Talk, text: str, write: Write) -> After | None:
    chat = talk.chat
    if not text:
        if not chat.messages:
            raise UsageError("nothing was asked yet: say something first")
        return After(typed=f"/edit {chat.messages[-2].text}")
    talk.answer(lambda: chat.edit(text), write)
    return None


def _is_of_an_answer(talk: Talk, name: str) -> bool:
    return name in _ANSWERS or hasattr(talk.chat.sampling, name)


def _with_another_seed(talk: Talk, sampling: Sampling, write: Write) -> Sampling:
    """What is drawn depends on seed and place alone: with the same the answer would be the same."""
    if sampling.temperature == 0:
        return sampling
    talk.n_retries += 1
    seed: Any = (sampling.seed or 0) + talk.n_retries
    write(f"(seed {seed} this once)\n", dim=True)
    return replace(sampling, seed=seed)


COMMANDS = (_retry, _continue, _undo, _edit)
