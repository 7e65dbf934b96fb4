"""Options that say how tokens are chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from streamsink.cli.values import schema_of, stated
from streamsink.core.sampling import Sampling
from streamsink.system.reading import read_whole


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling."""

    temp: Annotated[
        float | None,
        typer.Option(
            "--temp",
            "--temperature",
            help="Temperature; 0: always the likeliest token.",
            metavar="N",
            show_default="0.8",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(
            help="Top-k: keep the k likeliest tokens; 0: all.", metavar="N", show_default="40"
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Top-p: keep the likeliest tokens of this share; 1: all.",
            metavar="N",
            show_default="0.95",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Min-p: drop tokens below this share of the likeliest; 0: none.",
            metavar="N",
            show_default="0.05",
        ),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        typer.Option(help="Penalty on recent tokens; 1: off.", metavar="N", show_default="1"),
    ] = None
    repeat_last_n: Annotated[
        int | None,
        typer.Option(
            help="Number of tokens that count as recent; 0: off.", metavar="N", show_default="64"
        ),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        typer.Option(
            help="Penalty for each recent use of a token; 0: off.", metavar="N", show_default="0"
        ),
    ] = None
    presence_penalty: Annotated[
        float | None,
        typer.Option(
            help="Penalty for any recent use of a token; 0: off.", metavar="N", show_default="0"
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="Seed of the random draws.", metavar="N", show_default="random"
        ),
    ] = None
    grammar: Annotated[
        Path | None,
        typer.Option(help="File with a GBNF grammar that the text must follow.", metavar="FILE"),
    ] = None
    json_schema: Annotated[
        str | None,
        typer.Option(
            "--json-schema",
            "-j",
            help="JSON schema that the text must follow, or a file with one; {} lets any JSON "
            "follow.",
            metavar="JSON|FILE",
        ),
    ] = None

    def sampling(self, before: Sampling | None = None) -> Sampling:
        """The sampler settings that the options ask for, or else those of before."""
        asked = asdict(self)
        asked["temperature"] = asked.pop("temp")
        asked["grammar"] = read_whole(self.grammar, "grammar") if self.grammar else None
        asked["json_schema"] = self.json_schema and schema_of(self.json_schema)
        if before and (asked["grammar"] or asked["json_schema"]):
            before = replace(before, grammar=None, json_schema=None)
        return replace(before or Sampling(), **stated(asked))
