"""The facts of the recall benchmark: made of words, told apart by one token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from streamsink.errors import CapabilityError
from streamsink.model import Model

QUESTION = "\nThe password of the {} is"
# fmt: off
ADJECTIVES = (
    "green", "old", "red", "quiet", "northern", "small", "white", "broken", "golden", "distant",
    "dark", "narrow", "royal", "empty", "southern", "famous", "blue", "ancient", "lonely", "wooden",
    "bright", "hidden", "cold", "great",
)
NOUNS = (
    "river", "castle", "garden", "tower", "mill", "market", "museum", "harbor", "village",
    "library", "station", "school", "church", "hotel", "palace", "farm", "temple", "theatre",
    "hospital", "factory", "bakery", "prison", "cottage", "lighthouse", "monastery", "mine", "bank",
    "court", "club", "camp", "fort", "island", "port", "square", "road", "gate", "inn", "lodge",
    "barn", "chapel", "studio", "office", "shop", "lake", "hill", "park", "valley", "college",
)
VALUES = (
    "marble", "ginger", "silver", "rocket", "velvet", "copper", "lemon", "tiger", "winter",
    "candle", "feather", "thunder", "pepper", "shadow", "crystal", "honey", "falcon", "cotton",
    "ladder", "mirror", "orange", "diamond", "basket", "camera", "dragon", "engine", "flame",
    "guitar", "hammer", "insect", "jungle", "kitten", "magnet", "needle", "ocean", "pencil",
    "queen", "rabbit", "saddle", "amber", "umbrella", "violin", "walnut", "yellow", "zebra",
    "anchor", "bottle", "carpet", "desert", "eagle", "fabric", "glass", "helmet", "ivory", "jacket",
    "kettle", "lantern", "mountain", "nickel", "onion", "piano", "quartz", "ribbon", "salmon",
    "table", "uncle", "window", "bridge", "cherry", "dolphin", "elbow", "forest", "garlic",
    "hunter", "jewel", "knight", "leather", "mango", "night", "oxygen", "paper", "rain", "spider",
    "trumpet", "urban", "vinegar", "whisper", "apple", "bronze", "chalk", "drum",
)
# fmt: on
MOST_FACTS = len(ADJECTIVES) * len(NOUNS)


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact in tokens.

    Attributes
    ----------
    number : int
        Its place among all facts.
    question : tuple of int
        How it begins: all before the value.
    statement : tuple of int
        All of it.
    choices : tuple of int
        First tokens of the values of its group.
    correct : int
        Which of them is its own.
    """

    number: int
    question: tuple[int, ...]
    statement: tuple[int, ...]
    choices: tuple[int, ...]
    correct: int


def _words(model: Model) -> list[tuple[int, ...]]:
    """The values as they go on after a question, in tokens; of one first token only one value."""
    question = QUESTION.format(f"{ADJECTIVES[0]} {NOUNS[0]}")
    start = model.tokenize(question)
    found: dict[int, tuple[int, ...]] = {}
    for value in VALUES:
        tokens = model.tokenize(f"{question} {value}")
        if tokens[: len(start)] == start:
            found.setdefault(tokens[len(start)], tuple(tokens[len(start) :]))
    return list(found.values())


def draw_facts(model: Model, n_facts: int, n_choices: int, draw: random.Random) -> list[Fact]:
    """Draw whole groups of facts: at least as many as there are questions.

    Subjects never repeat. Values do if there are more facts than words, but always in the same
    order, so that one comes again only after all others.

    Raises
    ------
    CapabilityError
        The model's tokens do not tell enough words apart.
    """
    words = _words(model)
    if len(words) < n_choices:
        raise CapabilityError(
            f"this model's tokens tell only {len(words)} words apart: "
            f"--choices {n_choices} is too many"
        )
    draw.shuffle(words)
    adjectives, nouns = list(ADJECTIVES), list(NOUNS)
    draw.shuffle(adjectives)
    draw.shuffle(nouns)
    full_stop = model.tokenize(".")
    facts: list[Fact] = []
    for first in range(0, n_facts, n_choices):
        group = [words[number % len(words)] for number in range(first, first + n_choices)]
        choices = tuple(word[0] for word in group)
        for correct, word in enumerate(group):
            number = first + correct
            adjective = adjectives[(number + number // len(nouns)) % len(adjectives)]
            subject = f"{adjective} {nouns[number % len(nouns)]}"
            question = tuple(model.tokenize(QUESTION.format(subject)))
            statement = (*question, *word, *full_stop)
            facts.append(Fact(number, question, statement, choices, correct))
    return facts


def draw_asked(
    facts: Sequence[Fact], n_facts: int, n_choices: int, draw: random.Random
) -> set[int]:
    """Numbers of the facts that are asked about; of a last group perhaps not all, but any."""
    last = len(facts) - n_choices
    return {*range(last), *draw.sample(range(last, len(facts)), n_facts - last)}
