"""Which model: by name, file or repository; one that is not here is offered, and pulled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from streamsink.cli import terminal
from streamsink.cli.options import model_names
from streamsink.errors import UsageError

if TYPE_CHECKING:
    from streamsink.registry.entries import Entry

STDIN = "-"
"""As a prompt: all of standard input."""

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL [PROMPT]",
        help="A model: a name of `streamsink models` or a .gguf file; the default model without. "
        "What follows it is a prompt; - is all of standard input.",
        autocompletion=model_names,
        show_default=False,
    ),
]


class Chosen(NamedTuple):
    """What the words of a command line come to.

    Attributes
    ----------
    model : str
        A name or a path; '' is the default model.
    prompt : str or None
        The prompt, if there is one.
    """

    model: str
    prompt: str | None


@dataclass(frozen=True)
class ModelOptions:
    """Model."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|FILE",
            help="The model, where it does not come first.",
            autocompletion=model_names,
        ),
    ] = None
    hf: Annotated[
        str | None,
        typer.Option(
            "--hf-repo",
            "-hf",
            metavar="REPO[:QUANT]",
            help="A model of the Hugging Face Hub, as llama.cpp has it: "
            "ggml-org/gemma-3-1b-it-GGUF:Q4_K_M.",
        ),
    ] = None
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Pull a model that is not here without asking.")
    ] = False

    def choose(self, words: Sequence[str] | None, prompt: str | None) -> Chosen:
        """What is meant by the words of a command line, and by ``--prompt``.

        Raises
        ------
        UsageError
            A model or a prompt is given twice.
        """
        words = list(words or ())
        if self.model is not None and self.hf is not None:
            raise UsageError("--model and --hf-repo exclude one another: give one")
        is_named = self.model is not None or self.hf is not None
        model = self.model or ""
        if self.hf is not None:
            model = self._from_hub(self.hf)
        elif not is_named and words and not _is_prompt(words[0]):
            model = words.pop(0)
        if words and prompt is not None:
            raise UsageError(
                f"the prompt is given twice, as {terminal.line(' '.join(words), 40)!r} and by "
                "--prompt: give it once"
                + (" (the model is named by an option already)" if is_named else "")
            )
        return Chosen(model, " ".join(words) if words else prompt)

    def locate(self, model: str) -> Path:
        """The file of a model; one that has a name and is not here is pulled, if that is wanted.

        Raises
        ------
        UsageError
            There is no such model; or it is not here, and nobody is there to be asked.
        FetchError
            It cannot be pulled.
        typer.Exit
            It is not wanted.
        """
        from streamsink.registry.files import entry_for, is_here, resolve
        from streamsink.registry.sources import PathSource

        entry = entry_for(model)
        if entry is None or is_here(entry) or isinstance(entry.source, PathSource):
            return resolve(model)
        return self._pulled(entry)

    def _pulled(self, entry: Entry) -> Path:
        from streamsink.cli.pulling import pull, summary

        if not self.yes:
            if not terminal.is_asked():
                raise UsageError(
                    f"{entry.name} is not here yet: `streamsink models pull {entry.name}`, or -y"
                )
            terminal.confirm(f"{entry.name} is not here yet: {summary(entry)}. Pull it?", yes=True)
        return pull(entry)

    def _from_hub(self, asked: str) -> str:
        """The name of a model of the Hub, which is entered in the user's registry."""
        from streamsink.registry.repository import named

        return named(asked)


def _is_prompt(word: str) -> bool:
    """Whether the first word of a command line is no model's: several words are a question."""
    return word == STDIN or (len(word.split()) > 1 and not os.path.exists(word))
