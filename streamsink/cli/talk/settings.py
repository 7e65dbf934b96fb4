"""Settings of a chat by the names of its options: what there is, how it stands, how it changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsink.cli.values import discard_of, keep_of, number, schema_of
from streamsink.errors import UsageError
from streamsink.system.reading import given, read_whole

if TYPE_CHECKING:
    from streamsink.chat.chat import Chat


@dataclass(frozen=True)
class Setting:
    """One that can be changed while a chat goes on.

    Attributes
    ----------
    name : str
        As the option has it, without its dashes.
    python : str
        As `Chat.change` has it.
    says : str
        What it does.
    read : callable
        Its value out of a text.
    values : tuple of str
        Values that are words.
    others : tuple of str
        Other names of it: those of ollama and of llama.cpp.
    """

    name: str
    python: str
    says: str
    read: Callable[[str], Any]
    values: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def of(self, chat: Chat) -> str:
        """Its value, as text."""
        if self.python in ("max_tokens", "stop"):
            value = getattr(chat, self.python)
        elif hasattr(chat.sampling, self.python):
            value = getattr(chat.sampling, self.python)
        else:
            value = getattr(chat.stream.policy, self.python)
        if value is None or value == ():
            return _NOTHING[self.python]
        if isinstance(value, tuple):
            return " ".join(map(repr, value))
        return "on" if value is True else "off" if value is False else str(value)


_NOTHING = {
    "seed": "random",
    "grammar": "none",
    "json_schema": "none",
    "stop": "none",
    "slack": "auto",
    "max_tokens": "-1",
}
"""What a value is called that is none."""


def _real(name: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"{name} {text} is not possible: it takes a number") from None

    return read


def _whole(name: str) -> Callable[[str], int]:
    return lambda text: number(name, text)


def _or_none(read: Callable[[str], Any], *words: str) -> Callable[[str], Any]:
    return lambda text: None if text in words else read(text)


def _truth(text: str) -> bool:
    if text in ("on", "off"):
        return text == "on"
    raise UsageError(f"{text} is not possible: on or off")


def _grammar(text: str) -> str:
    return read_whole(Path(text).expanduser(), "grammar")


SETTINGS = (
    Setting("temp", "temperature", "temperature; 0: always the likeliest token", _real("temp"),
            others=("temperature",)),
    Setting("top-k", "top_k", "keep the k likeliest tokens; 0: all", _whole("top-k")),
    Setting("top-p", "top_p", "keep the likeliest tokens of this share; 1: all", _real("top-p")),
    Setting("min-p", "min_p", "drop tokens below this share of the likeliest; 0: none",
            _real("min-p")),
    Setting("repeat-penalty", "repeat_penalty", "divides logits of recent tokens; 1: off",
            _real("repeat-penalty")),
    Setting("repeat-last-n", "repeat_last_n", "how many tokens are recent",
            _whole("repeat-last-n")),
    Setting("frequency-penalty", "frequency_penalty", "for each recent use; 0: off",
            _real("frequency-penalty")),
    Setting("presence-penalty", "presence_penalty", "for any recent use; 0: off",
            _real("presence-penalty")),
    Setting("seed", "seed", "a number, or random", _or_none(_whole("seed"), "random", "-1"),
            ("random",)),
    Setting("grammar", "grammar", "a file with a GBNF grammar, or none",
            _or_none(_grammar, "none"), ("none",)),
    Setting("json-schema", "json_schema", "a JSON schema or a file with one, or none",
            _or_none(schema_of, "none"), ("none",), ("format",)),
    Setting("max-tokens", "max_tokens", "maximum tokens per answer; -1: no limit",
            _or_none(_whole("max-tokens"), "-1"), ("-1",), ("n", "num_predict", "n_predict")),
    Setting("stop", "stop", "text that ends an answer, or none",
            lambda text: () if text == "none" else (given(text, "stop"),), ("none",)),
    Setting("keep", "n_keep", "tokens pinned: a number, -1 (the first prompt) or system",
            keep_of, ("system", "-1"), ("num_keep", "n_keep")),
    Setting("discard", "n_discard", "evict N tokens at once, half, or a whole turn or sentence",
            discard_of, ("half", "turn", "sentence"), ("n_discard",)),
    Setting("placement", "placement", "auto, rotate or reanchor", str,
            ("auto", "rotate", "reanchor")),
    Setting("slack", "slack", "positions the sink may trail; or auto",
            _or_none(_whole("slack"), "auto"), ("auto",)),
    Setting("force", "force", "take a placement that is only approximate: on or off", _truth,
            ("on", "off")),
)  # fmt: skip


def find(name: str) -> Setting:
    """The setting of a name, in whatever spelling.

    Raises
    ------
    UsageError
        There is none.
    """
    plain = name.strip("-").replace("_", "-").lower()
    for setting in SETTINGS:
        if plain in (setting.name, *(other.replace("_", "-") for other in setting.others)):
            return setting
    raise UsageError(
        f"there is no setting {name}: {', '.join(setting.name for setting in SETTINGS)}"
    )


def read(words: Sequence[str]) -> dict[str, Any]:
    """Settings out of ``NAME VALUE``, ``NAME=VALUE`` or ``--NAME VALUE``, any number of them.

    Raises
    ------
    UsageError
        One has no value, or not this one.
    """
    found: dict[str, Any] = {}
    left = list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        setting = find(name)
        if not equals:
            if not left:
                raise UsageError(f"{setting.name} takes a value: {setting.says}")
            value = left.pop(0)
        found[setting.python] = setting.read(value)
    return found
