"""Runs chat templates, in the environment that their authors wrote them for.

A template comes out of a file and is a program. So this is run as a module, in a process with
limits (`streamsink.chat.template`), and the template in a sandbox there. The environment is that of
transformers (``utils/chat_template_utils.py``), against which templates are written.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from streamsink.errors import ModelError
from streamsink.system.serve import Answer, serve

MOST_REASON = 400
"""Characters of what a template says when it refuses."""

_AS_TRANSFORMERS: dict[str, Any] = {"tools": None, "documents": None}
# For templates that count tools without asking whether there are any; the other names are those
# that llama-cpp-python has (llama_chat_format.py: Jinja2ChatFormatter).
_NO_TOOLS: dict[str, Any] = {
    "tools": [],
    "documents": [],
    "functions": None,
    "function_call": None,
    "tool_choice": None,
}

# What a template may make of a conversation. Its own words are in its source, and a message may
# bring all of them; a character of a message grows twelvefold at most, as two escapes of JSON.
LEAST_SOURCE, MOST_SOURCE = 4096, 65_536
GROWTH = 12


def answer(request: Answer) -> Answer:
    """Render ``messages`` by the template ``source``; without messages, only read it."""
    template = _template(request["source"])
    messages = request["messages"]
    if messages is None:
        return {"text": ""}
    now = datetime.fromtimestamp(request["now"])
    text, refused = "", ""
    for given in (_AS_TRANSFORMERS, _NO_TOOLS):
        try:
            text = template.render(
                messages=messages,
                add_generation_prompt=request["add_generation_prompt"],
                strftime_now=lambda form: now.strftime(form),
                **given,
                **request["variables"],
            )
            break
        except MemoryError:
            refused = refused or "it takes too much memory"
        except Exception as error:  # whatever a program out of a file may raise
            refused = refused or str(error)[:MOST_REASON] or type(error).__name__
    else:
        raise ModelError(f"the model's chat template failed: {refused}")
    most = most_characters(request["source"], messages)
    if len(text) > most:
        raise ModelError(
            f"the model's chat template failed: it makes {len(text):,} characters of a "
            f"conversation of which it may make {most:,}"
        )
    return {"text": text}


def most_characters(source: str, messages: list[dict[str, Any]]) -> int:
    """Length of the longest text that a template may make of a conversation."""
    own = min(max(len(source), LEAST_SOURCE), MOST_SOURCE)
    return (len(messages) + 1) * own + GROWTH * len(json.dumps(messages, ensure_ascii=False))


@lru_cache(maxsize=4)
def _template(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(source)
    except (TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
        raise ModelError(f"the model's chat template cannot be read: {error}") from None


class _Generation(Extension):
    """``{% generation %}`` marks what a model is trained on; the text is that of its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON with its characters as they are: Jinja's own filter escapes them for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: Any) -> NoReturn:
    raise TemplateError(str(message))


if __name__ == "__main__":
    serve(answer)
