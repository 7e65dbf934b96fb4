"""Commands that change how a chat goes on; without an argument they show how it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamsink.cli import terminal
from streamsink.cli.talk.commands import command
from streamsink.cli.talk.settings import SETTINGS, find, read
from streamsink.cli.talk.turning import settings, words
from streamsink.cli.values import discard_of, keep_of
from streamsink.errors import UsageError
from streamsink.gguf.advice import NO_SINK

if TYPE_CHECKING:
    from streamsink.cli.talk.talk import Talk
    from streamsink.cli.terminal import Write

_THINK = {
    "on": "think before answering",
    "off": "answer at once",
    "auto": "as the template has it",
    "show": "show thoughts, dimmed",
    "hide": "do not show thoughts",
}


def model_names(_: Talk, __: list[str]) -> dict[str, str]:
    """Models that are here, to be completed."""
    from streamsink.registry.catalog import load_registry
    from streamsink.registry.files import is_here

    try:
        return {one.name: one.description for one in load_registry().values() if is_here(one)}
    except UsageError:
        return {}


@command("set", "[NAME [VALUE]]", "show or change a setting, by the names of the options",
         values=settings)  # fmt: skip
def _set(talk: Talk, argument: str, write: Write) -> None:
    chat = talk.chat
    given = words(argument)
    if given[:1] == ["parameter"]:  # as ollama has it
        given = given[1:]
    if not given:
        for setting in SETTINGS:
            write(f"{setting.name:18} {setting.of(chat):8} {setting.says}\n")
        return
    if given[0] in _ELSEWHERE:
        _ELSEWHERE[given[0]].do(talk, " ".join(given[1:]), write)
        return
    if len(given) == 1 and "=" not in given[0]:
        setting = find(given[0])
        write(f"{setting.name} {setting.of(chat)}: {setting.says}\n")
        return
    changes = read(given)
    chat.change(**changes)
    talk.keeping.save()
    for setting in SETTINGS:
        if setting.python in changes:
            write(f"{setting.name} {setting.of(chat)}\n")
    warn_of_no_sink(talk, write)


@command("keep", "[N]", "pin the first N visible tokens (or: system)",
         values=lambda *_: {"system": "the system prompt", "-1": "the first prompt"})  # fmt: skip
def _keep(talk: Talk, argument: str, write: Write) -> None:
    stream = talk.chat.stream
    if argument:
        stream.change(n_keep=keep_of(argument))
        talk.keeping.save()
    write(f"keep {stream.policy.n_keep}: {stream.stats.pinned} tokens are pinned\n")
    if argument:
        warn_of_no_sink(talk, write)


@command("discard", "[N]", "evict N tokens at once (or: half, turn, sentence)",
         values=lambda _, __: dict.fromkeys(("half", "turn", "sentence"), ""))  # fmt: skip
def _discard(talk: Talk, argument: str, write: Write) -> None:
    stream = talk.chat.stream
    if argument:
        stream.change(n_discard=discard_of(argument))
        talk.keeping.save()
    write(f"discard {stream.policy.n_discard}\n")


@command("pin", "[last]", "keep the last turn for good",
         values=lambda _, __: {"last": "the last question and its answer"})  # fmt: skip
def _pin(talk: Talk, argument: str, write: Write) -> None:
    chat = talk.chat
    if argument not in ("", "last"):
        raise UsageError(f"/pin {argument} is not possible: /pin last, or /pin to see what is")
    if argument:
        chat.pin()
        talk.keeping.save()
    stream = chat.stream
    for tokens in stream.pins:
        write(f"pinned: {' '.join(stream.text(tokens).split())}\n")
    hint = "" if stream.pins or argument else "; /pin last pins the last turn"
    write(f"{stream.stats.pinned} tokens are pinned{hint}\n")


@command("unpin", "", "release what was pinned last")
def _unpin(talk: Talk, _: str, write: Write) -> None:
    talk.chat.unpin()
    talk.keeping.save()
    write(f"{talk.chat.stream.stats.pinned} tokens are pinned\n")


@command("system", "[TEXT]", "change the system prompt in mid-stream; what is visible stays")
def _system(talk: Talk, argument: str, write: Write) -> None:
    if not argument:
        write(f"system: {talk.chat.system or '(left to the template)'}\n")
        return
    n_evaluated = talk.chat.change_system(argument)
    talk.keeping.save()
    write(f"system prompt changed, {n_evaluated} tokens evaluated\n")


@command("think", "[on|off|show|hide]", "whether the model thinks first, and whether that is shown",
         values=lambda _, __: _THINK)  # fmt: skip
def _think(talk: Talk, argument: str, write: Write) -> None:
    chat = talk.chat
    if argument in ("show", "hide"):
        talk.thoughts = argument == "show"
    elif argument in ("on", "off", "auto"):
        chat.think({"on": True, "off": False, "auto": None}[argument])
        talk.keeping.save()
    elif argument:
        raise UsageError(f"/think {argument} is not possible: {', '.join(_THINK)}")
    template = chat.template
    if not template.has_thinking_switch:
        how = "this model's template has no switch for thinking"
    else:
        thinking = {True: "on", False: "off", None: "as the template has it"}[template.thinking]
        how = f"thinking is {thinking}"
    write(f"{how}; thoughts are {'shown' if talk.thoughts else 'hidden'}\n")


@command("model", "[NAME]", "go on with another model", values=model_names, tells=True)
def _model(talk: Talk, name: str, write: Write) -> None:
    if name:
        n_evaluated = talk.change_model(name)
        write(f"{n_evaluated:,} tokens of what was visible were evaluated again\n")
    write(f"model: {talk.model.path.name} · {talk.model.description}\n")


def warn_of_no_sink(talk: Talk, write: Write) -> None:
    """Tell what becomes of a model without a sink."""
    if talk.chat.stream.policy.n_keep == 0:
        write(f"warning: {terminal.line(NO_SINK)}\n")


_ELSEWHERE = {"system": _system, "think": _think, "model": _model}
"""What ``/set`` is asked for that has a command of its own."""


COMMANDS = (_set, _keep, _discard, _pin, _unpin, _system, _think, _model)
