"""A JSON schema as a grammar, by llama-cpp-python's converter (its copy of llama.cpp's)."""

from __future__ import annotations

import json
from functools import lru_cache

from streamsink.core.sampling import Sampling
from streamsink.errors import UsageError

MOST_BYTES = 2**16
"""Of a schema; those of the APIs that take one are a tenth of it."""


def grammar_of(sampling: Sampling) -> str | None:
    """The grammar that text has to follow, stated as one or as a schema; None without.

    Raises
    ------
    UsageError
        The schema is none, or has what the converter does not know.
    """
    if sampling.json_schema is None:
        return sampling.grammar
    return _converted(sampling.json_schema)


@lru_cache(maxsize=16)
def _converted(schema: str) -> str:
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    if len(schema.encode("utf-8", "replace")) > MOST_BYTES:
        raise UsageError(f"the JSON schema is too long: {MOST_BYTES:,} bytes are possible")
    try:
        found = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError("the JSON schema is no object: {} lets any JSON follow")
    try:
        grammar: str = json_schema_to_gbnf(schema)
    # It raises whatever happens to it on what it does not know.
    except Exception as error:
        what = str(error).partition(" (use")[0] or type(error).__name__
        raise UsageError(f"the JSON schema has what cannot be followed: {what}") from None
    return grammar
