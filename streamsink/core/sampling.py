"""How the next token is chosen: plain data, turned into a native chain by the backend."""

from __future__ import annotations

from dataclasses import dataclass

from streamsink.errors import UsageError, setting
from streamsink.system.checked import real, text, whole

MAX_TOKENS = 1024
"""Tokens of an answer in a chat at most, where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of a sampler chain, in the order in which they act.

    Parameters
    ----------
    grammar : str, optional
        GBNF grammar that the text must follow; its start symbol is ``root``. It may have 256 KiB,
        50,000 elements (repeated ones counted), 100 parentheses within one another and 2,000
        repetitions of an item, and llama.cpp must have tried it within 5 seconds.
    json_schema : str, optional
        JSON schema that the text must follow, in place of a grammar; ``{}`` lets any JSON follow.
    repeat_penalty, frequency_penalty, presence_penalty : float, default 1, 0, 0
        Penalties on recent tokens; 1, 0 and 0 switch them off.
    repeat_last_n : int, default 64
        How many recent tokens the penalties look at; of those before a generation, visible ones.
    top_k : int, default 40
        Keep the k likeliest tokens; 0 keeps all.
    top_p : float, default 0.95
        Keep the likeliest tokens that hold this much probability; 1 keeps all.
    min_p : float, default 0.05
        Drop tokens less likely than this share of the likeliest; 0 drops none.
    temperature : float, default 0.8
        Divides the logits; 0, and anything below 0.0001, takes the likeliest token.
    seed : int, optional
        Seed of the random draws; ``None`` draws one. What is drawn depends on it and on a token's
        place in the stream alone, so a stream that was interrupted, forked or restored goes on as
        it would have.

    Raises
    ------
    UsageError
        A value out of its range or of another type; a grammar and a schema.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    grammar: str | None = None
    json_schema: str | None = None

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "temperature": real("temperature", self.temperature, 0, 100),
            "top_k": whole("top_k", self.top_k, 0, 2**30),
            "top_p": real("top_p", self.top_p, 0, 1),
            "min_p": real("min_p", self.min_p, 0, 1),
            "repeat_penalty": real("repeat_penalty", self.repeat_penalty, 0.01, 100),
            "repeat_last_n": whole("repeat_last_n", self.repeat_last_n, 0, 2**20),
            "frequency_penalty": real("frequency_penalty", self.frequency_penalty, -100, 100),
            "presence_penalty": real("presence_penalty", self.presence_penalty, -100, 100),
        }
        if self.seed is not None:
            checked["seed"] = whole("seed", self.seed, 0, 2**32 - 2)
        if self.grammar is not None:
            checked["grammar"] = text("grammar", self.grammar)
        if self.json_schema is not None:
            checked["json_schema"] = text("json_schema", self.json_schema)
        if self.grammar is not None and self.json_schema is not None:
            raise UsageError(
                f"{setting('grammar')} and {setting('json_schema')} exclude one another: give one"
            )
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def is_constrained(self) -> bool:
        """Whether the text must follow a grammar or a schema."""
        return self.grammar is not None or self.json_schema is not None

    @property
    def penalizes(self) -> bool:
        """Whether recent tokens matter."""
        return self.repeat_last_n > 0 and (
            self.repeat_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )
